r"""`pyro.infer.SVI`'s interface at compiled speed."""

__all__ = ["CompiledSVI"]

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyrovae.errors import InputError, NonFiniteError
from pyrovae.svi.estimators import estimate_with, has_estimate, has_own_loss
from pyrovae.svi.guard import find_cause, placed
from pyrovae.svi.stepper import Stepper
from pyrovae.svi.updates import Optimizer


class CompiledSVI:
    r"""Stochastic variational inference on any Pyro program of static structure, compiled.

    In place of `pyro.infer.SVI`: the program runs in Python once, and what it did, Pyro's
    handlers gone, is compiled and run at every further step. The numbers are those of `SVI`,
    with the same noise; `pyrovae.svi.faithfulness` says how a program that cannot be
    captured is found out. That first run, validated as Pyro is set to, is no step: the noise
    is wound back after it, also where the run drew some to make a parameter, to set up an
    automatic guide or to guess how deep plates are nested, and there the first step draws other
    noise than `SVI` would.

    Like `SVI` it trains the parameter sites of the run, in Pyro's parameter store, and moreover
    the parameters of the modules whose methods model and guide are. Parameters hidden by
    `poutine.block` stay as they are.

    Args:
        model: The model, a callable with Pyro primitives.
        guide: The guide, likewise.
        optim: An optimizer of `pyro.optim` or of `torch.optim`.
        loss: One of Pyro's `ELBO` objects: `Trace_ELBO`, `TraceMeanField_ELBO`,
            `TraceEnum_ELBO`, `RenyiELBO`, their subclasses and their jitted forms, which are
            compiled by the engine instead; any object with a
            `differentiable_loss`; or a function of (model, guide, *args, **kwargs).
        engine: `inductor`, `graph`, `eager`, on a GPU `cuda-graph`, or `auto`, which tries all
            and keeps the fastest. If None, `graph`, and on a CPU with a C++ compiler `inductor`
            from the 2,000th step of a kind on: compiling takes seconds.
        precision: `float32`, or `bf16` for networks whose matrix products are of bfloat16
            matrices; all that is a probability stays in float32. On a GPU also `tf32`, in which
            all matrix products of a step are of so many bits.

    Raises:
        InputError: If the optimizer is of another kind, the loss calls `backward` by itself, as
            `TraceGraph_ELBO` does, or is always infinite, as that of `TraceTailAdaptive_ELBO`, or
            there is no such engine or precision. A step raises it for `tf32` off a GPU.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.zeros(()))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> svi = CompiledSVI(
        ...     model, lambda x: None, pyro.optim.SGD({"lr": 0.1}), pyro.infer.Trace_ELBO(),
        ...     engine="graph",
        ... )
        >>> losses = [svi.step(torch.ones(10)) for _ in range(3)]
        >>> [f"{loss:.2f}" for loss in losses]
        ['14.19', '9.19', '9.19']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Optimizer,
        loss: Any,
        *,
        engine: str | None = None,
        precision: str = "float32",
    ) -> None:
        if not isinstance(optim, PyroOptim | torch.optim.Optimizer):
            raise InputError(
                f"{type(optim).__name__} is no optimizer.",
                "Take one of pyro.optim or torch.optim.",
            )
        if isinstance(optim, torch.optim.LBFGS):
            raise InputError(
                "LBFGS asks for the loss several times in a step.",
                "Take another optimizer, or torch's own loop for it.",
            )
        if not has_estimate(loss):
            raise InputError(
                f"{type(loss).__name__} takes its gradient by itself, which cannot be captured.",
                "Take pyro.infer.SVI for it, or another estimator, or replace its "
                "differentiable_loss rather than its loss_and_grads.",
            )
        self._model = model
        self._guide = guide
        self._optim = optim
        self._loss = loss
        self._stepper = Stepper(
            estimate_with(loss, model, guide),
            optim,
            owners=_owners(model, guide),
            readers=(loss, getattr(loss, "kl", None), model, guide),
            engine=engine,
            precision=precision,
            find_cause=partial(find_cause, model, guide),
        )
        self._steps = 0
        self._slots = _Slots()

    @property
    def model(self) -> Callable[..., Any]:
        """The model, which stays the one that this was made with."""
        return self._model

    @property
    def guide(self) -> Callable[..., Any]:
        """The guide, likewise."""
        return self._guide

    @property
    def optim(self) -> Optimizer:
        """The optimizer, likewise."""
        return self._optim

    @property
    def loss(self) -> Callable[..., Any]:
        """The loss, likewise: as of `SVI` a function of (model, guide, *args, **kwargs)."""
        return getattr(self._loss, "loss", self._loss)

    @property
    def engines(self) -> list[str]:
        """The back ends in use, one for each kind of arguments met so far."""
        return self._stepper.engines

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Takes a gradient step.

        Args:
            args: The arguments of model and guide.
            kwargs: Their keyword arguments.

        Returns:
            The loss, a 0-dimensional tensor without gradient, not yet read from the device.

        Raises:
            InputError: If there is nothing to train.
            NonFiniteError: If the loss or a gradient is not finite, naming the site; the
                parameters are as they were before the step.
        """
        try:
            loss = self._stepper(*args, **kwargs).loss
        except NonFiniteError as error:
            step = self._steps - error.steps_ago
            raise placed(error, f"In step {step}", step=step) from error
        self._steps += 1
        return self._slots.keep(loss)

    def check(self) -> None:
        """Asks about the last steps on a GPU, where that is left for up to 64 steps.

        To be called before the parameters are saved.

        Raises:
            NonFiniteError: If one of them was not finite.
        """
        self._stepper.check()

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """An estimate of the loss in float32, without a step."""
        self.check()
        with torch.no_grad():
            if has_own_loss(self._loss):
                return torch.as_tensor(self._loss.loss(self.model, self.guide, *args, **kwargs))
            value, _ = estimate_with(self._loss, self.model, self.guide)(*args, **kwargs)
        return value


class _Slots:
    """Places for numbers, handed out one by one, of blocks of many.

    A script that keeps every loss would else keep, for each, a few bytes in the midst of what a
    step has just given back, which the next step then cannot take again: memory would grow by
    more than a hundred KiB a step.
    """

    SIZE = 1024

    def __init__(self) -> None:
        self._block = torch.empty(0)
        self._taken = 0

    @torch.no_grad()
    def keep(self, number: Tensor) -> Tensor:
        """The number, in a place of its own."""
        block, taken = self._block, self._taken
        if taken == len(block) or (block.dtype, block.device) != (number.dtype, number.device):
            self._block, self._taken = number.new_empty(self.SIZE), 0
        place = self._block[self._taken]
        self._taken += 1
        return place.copy_(number)


def _owners(*functions: Callable[..., Any]) -> list[nn.Module]:
    """The modules whose methods, or which themselves, functions are."""
    found: list[nn.Module] = []
    for function in functions:
        owner = getattr(function, "__self__", function)
        if isinstance(owner, nn.Module) and owner not in found:
            found.append(owner)
    return found

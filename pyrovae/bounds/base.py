"""What all bounds share: they run a program, weigh its draws, and are Pyro's `ELBO` objects."""

__all__ = ["Bound", "joined", "weighs_kl", "with_gradient"]

import math
from abc import abstractmethod
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.bounds.controls import Control, written
from pyrovae.bounds.draws import Draw, Layout, Pair
from pyrovae.errors import InputError

_OF_PYRO = frozenset(signature(PyroELBO.__init__).parameters) - {"num_particles"}


def with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor of one value and the gradient of another."""
    return value.detach() + surrogate - surrogate.detach()


class Bound(PyroELBO):
    r"""A bound on $\log p(x)$ of each example, by K draws from the guide.

    It is one of Pyro's `ELBO` objects: `fit`, `CompiledSVI` and `pyro.infer.SVI` take it. Unlike
    theirs it never waits for the device, and a subsampled plate multiplies each example's bound
    rather than its log-weights. One object belongs to one program.

    Args:
        num_particles: The number K of draws for each example.
        kl: What is made of the latents' KL: `FreeBits`, `Capacity`, `BalancedKL`, or a function
            like them.
        vectorize_particles: Whether the draws are one more dimension on the left; else the
            program runs K times.
        max_plate_nesting: The depth of the program's plates, if it is not to be found out.

    Raises:
        InputError: If there are fewer draws than the bound needs; at the first step, if a site
            stands outside the plate of the examples, or a draw carries no gradient and the bound
            needs it.
    """

    least_particles = 1
    needs_gradients = False
    """Whether the latents' draws must carry gradients, reparametrised."""

    def __init__(
        self,
        num_particles: int = 1,
        *,
        kl: Control | None = None,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        if num_particles < self.least_particles:
            raise InputError(
                f"num_particles of {type(self).__name__} is {num_particles}.",
                f"Give at least {self.least_particles}.",
            )
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.kl = kl

    def __repr__(self) -> str:
        own = {k: v for k, v in vars(self).items() if k not in _OF_PYRO and v is not None}
        return written(self, own)

    @property
    def kl_share(self) -> float:
        """What the bound itself multiplies the latents' KL by: 0 leaves nothing to weigh."""
        return 1.0

    @abstractmethod
    def _estimate(self, draws: list[Draw]) -> Tensor:
        """The bounds of all examples, whose gradient is the estimator's."""

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The negative bound, summed over examples; its gradient is the estimator's."""
        draws = [self._draw(pair) for pair in self._pairs(model, guide, args, kwargs)]
        self._check_gradients(draws[0])
        constant = self._control(draws)
        bounds = self._estimate(draws)
        return -draws[0].layout.scale * (bounds - constant).sum()

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative bound, summed over examples, as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The same, its gradient added to that of every parameter."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _pairs(self, model: Any, guide: Any, args: Any, kwargs: Any) -> list[Pair]:
        """The program once, under a plate of particles, or as often as there are particles."""
        if not self.vectorize_particles or self.num_particles == 1:
            return [Pair(model, guide, args, kwargs)] * self.num_particles
        if self.max_plate_nesting == math.inf:
            devices = {a.device for a in args if isinstance(a, Tensor) and a.is_cuda}
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                found = self._draw(Pair(model, guide, args, kwargs))
            self.max_plate_nesting = found.layout.depth
        wrap = self._vectorized_num_particles
        return [Pair(wrap(model), wrap(guide), args, kwargs)]

    def _draw(self, pair: Pair) -> Draw:
        guide_trace = pair.run_guide()
        model_trace = pair.run_model(guide_trace)
        return Draw(model_trace, guide_trace, Layout.of(model_trace, guide_trace))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """A trace of the model on the guide's draws, and that of the guide, as Pyro's have it."""
        draw = self._draw(Pair(model, guide, args, kwargs))
        return draw.model_trace, draw.guide_trace

    def _check_gradients(self, draw: Draw) -> None:
        if not self.needs_gradients:
            return
        for name, site in draw.without_gradient.items():
            # One whose distribution is not learned has none to carry.
            if draw.log_density([site]).requires_grad:
                raise InputError(
                    f"{type(self).__name__} needs draws that carry gradients, and those of the "
                    f"latent {name!r} are discrete or not reparametrised.",
                    "Take VIMCO, ReweightedWakeSleep or ELBO (--bound vimco, "
                    "reweighted-wake-sleep or elbo), which do not, or an encoder whose draws do.",
                )

    def _control(self, draws: list[Draw]) -> Tensor | float:
        """Weighs the latents' KL as the control says; what it adds to every example's loss."""
        if self.kl is None:
            return 0.0
        names = draws[0].matched
        means = {n: torch.stack([draw.mean_kl(n) for draw in draws]).mean(0) for n in names}
        weights, constants = self.kl(means)
        for draw in draws:
            draw.weights = weights
        return self.kl_share * draws[0].charge(constants)


def weighs_kl(bound: object) -> bool:
    """Whether there is a KL in what a bound maximises, for beta and a warm-up to weigh."""
    return not isinstance(bound, Bound) or bool(bound.kl_share)


def joined(terms: list[Tensor]) -> Tensor:
    """A term of every draw, with shape (K, plates)."""
    return terms[0] if len(terms) == 1 else torch.cat(terms)

r"""One step of stochastic variational inference at a time, guarded.

The parameters come from the program's modules and Pyro's parameter store is left alone. The
first step runs under Pyro's validation of shapes and supports; the others, which have the same
structure, without it.
"""

__all__ = ["GuardedStep", "StepResult"]

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Protocol

import pyro
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pyrovae.data import Batch
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.handlers import kl_weight
from pyrovae.programs import (
    Program,
    Site,
    Structure,
    as_module,
    data_frame,
    labels,
    sample_sites,
    takes_labels,
    trace_pair,
)

REMEDY = (
    "Weights are as they were before it; try a lower learning rate, gradient clipping "
    "(clip_norm), or a larger floor under a learned scale."
)

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Bound(Protocol):
    """What is asked of an estimator: Pyro's `ELBO` objects with a differentiable loss."""

    def differentiable_loss(self, model: object, guide: object, *args: object) -> Tensor:
        """The loss summed over the plate, such that its gradient is the estimator's."""
        ...


class StepResult(NamedTuple):
    """What a step found before it updated the weights.

    Attributes:
        loss: The training loss, in nats per example.
        grad_norm: The norm of its gradient, before any clipping.
    """

    loss: float
    grad_norm: float


class GuardedStep:
    """Loss, gradient, guard, update.

    Args:
        program: The program to train.
        structure: What `inspect_program` found.
        bound: The estimator of the bound.
        make_optimizer: Called with the trainable parameters.
        clip_norm: The norm that gradients are scaled down to, where they exceed it.

    Raises:
        InputError: If there is nothing to train, or the bound has no differentiable loss.
    """

    def __init__(
        self,
        program: Program,
        structure: Structure,
        bound: Bound,
        make_optimizer: MakeOptimizer,
        *,
        clip_norm: float | None = None,
    ) -> None:
        if not hasattr(bound, "differentiable_loss"):
            raise InputError(
                f"{type(bound).__name__} has no differentiable_loss, which training needs.",
                "Take pyro.infer.Trace_ELBO or TraceMeanField_ELBO.",
            )
        self.program = program
        self.structure = structure
        self.bound = bound
        self.clip_norm = clip_norm

        named = as_module(program).named_parameters()
        self.parameters = {name: p for name, p in named if p.requires_grad}
        if not self.parameters:
            raise InputError(
                f"The program {type(program).__name__} has no parameter to train.",
                "Make it an nn.Module, or keep the modules that it uses as its attributes.",
            )
        self._buffers = [buffer for _, buffer in as_module(program).named_buffers()]
        self.optimizer = make_optimizer(self.parameters.values())
        # Read once: a signature costs as much as a small layer.
        self._takes_labels = [takes_labels(f) for f in (program.model, program.guide)]
        self._validate = True

    def __call__(self, batch: Batch, weight: float, replay: Callable[[], None]) -> StepResult:
        """Takes one step.

        Args:
            batch: The examples.
            weight: The weight of the KL term.
            replay: Called before the step is run again to find the cause of a NaN; it resets
                the random generators to where they were before the step.

        Raises:
            NonFiniteError: If the loss or a gradient is not finite, naming the site or the
                parameter. The weights and the optimizer are as they were before the step.
        """
        # Networks change buffers, such as a batch norm's moments, as they run.
        buffers = [(buffer, buffer.clone()) for buffer in self._buffers]
        try:
            with pyro.validation_enabled(self._validate):
                loss = self._loss(batch, weight)
        except (ValueError, RuntimeError) as error:
            # Distributions refuse NaN in words of their own, when they check or when they draw.
            found = self._diagnose(batch, replay, buffers)
            if found is None:
                raise
            raise found from error
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = get_total_norm(gradients)
        # One transfer from the device for both.
        result = StepResult(*torch.stack([loss.detach(), norm]).tolist())
        if not all(map(math.isfinite, result)):
            found = self._diagnose(batch, replay, buffers)
            raise found or NonFiniteError("The training loss is not finite.", REMEDY)

        if self.clip_norm is not None:
            clip_grads_with_norm_(self.parameters.values(), self.clip_norm, norm)
        self.optimizer.step()
        self._validate = False

        return result

    def _loss(self, batch: Batch, weight: float) -> Tensor:
        model, guide = self.program.model, self.program.guide
        if any(self._takes_labels):
            model, guide = (partial(f, **labels(f, batch)) for f in (model, guide))
        if weight != 1:
            handler = kl_weight(weight)
            model, guide = handler(model), handler(guide)

        total = self.bound.differentiable_loss(model, guide, batch.x)
        return total / (self.structure.full_size or len(batch.x))

    def _diagnose(
        self, batch: Batch, replay: Callable[[], None], buffers: list[tuple[Tensor, Tensor]]
    ) -> NonFiniteError | None:
        """Runs the step again to find what is not finite, and restores the buffers."""
        replay()
        try:
            return self._find_parameter() or self._find_site(batch) or self._find_gradient()
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    def _find_parameter(self) -> NonFiniteError | None:
        for name, parameter in self.parameters.items():
            if not torch.isfinite(parameter).all():
                cause = f"The parameter {name!r} was not finite before the step."
                return NonFiniteError(cause, "Start from weights that are.")
        return None

    def _find_site(self, batch: Batch) -> NonFiniteError | None:
        with torch.no_grad(), pyro.validation_enabled(False):
            try:
                model_trace, guide_trace = trace_pair(self.program, batch)
            except (ValueError, RuntimeError):
                return None
            for trace in (guide_trace, model_trace):
                for name, site in sample_sites(trace).items():
                    bad = ~torch.isfinite(site["fn"].log_prob(site["value"]))
                    if bad.any():
                        return NonFiniteError(
                            f"The log-probability of site {name!r} is not finite"
                            f"{_first_row(site, bad)}.",
                            REMEDY,
                        )
        return None

    def _find_gradient(self) -> NonFiniteError | None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return NonFiniteError(f"The gradient of {name!r} is not finite.", REMEDY)
        return None


def _first_row(site: Site, bad: Tensor) -> str:
    """Where in the batch, for a site of the plate `data`."""
    frame = data_frame(site)
    if frame is None or -frame.dim > bad.dim():
        return ""
    rows = bad.movedim(frame.dim, 0).flatten(1) if bad.dim() > 1 else bad[:, None]
    return f", first in row {int(rows.any(1).nonzero()[0])} of the batch"

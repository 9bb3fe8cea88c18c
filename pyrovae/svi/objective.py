r"""What `fit` minimises: a bound's loss, per example, of a program and a batch."""

__all__ = ["Differentiable", "Objective"]

import copy
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from pyro.infer import ELBO
from torch import Tensor

from pyrovae.bounds import Bound
from pyrovae.data import Batch
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.handlers import kl_weight, share_noise
from pyrovae.programs import PLATE, Program, labels, takes_labels
from pyrovae.structure import Structure
from pyrovae.svi.estimators import estimate_with, has_estimate
from pyrovae.svi.guard import find_cause


class Differentiable(Protocol):
    """What is asked of an estimator that is none of Pyro's `ELBO` objects."""

    def differentiable_loss(self, model: object, guide: object, *args: object) -> Tensor:
        """The loss summed over the plate, such that its gradient is the estimator's."""
        ...


class Objective:
    """A bound's loss, in nats per example, as an estimate of (x, y).

    Args:
        program: The program.
        structure: What `inspect_program` found.
        bound: The estimator of the bound.
        weight: The weight of the KL term, a 0-dimensional tensor that may be changed between
            steps; 1 if None. It is that of a warm-up, which the bound's control may take for
            itself.
        prepare: What turns the x of a step into the program's, noise drawn anew each time; it
            is captured with the rest.
        shared: Whether several processes take the step together, each on a share of the batch,
            so that the noise of latents outside the plate is to be the same in all of them.

    Raises:
        InputError: If the bound's gradient cannot be had as a tensor.
    """

    def __init__(
        self,
        program: Program,
        structure: Structure,
        bound: ELBO | Differentiable,
        weight: Tensor | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        shared: bool = False,
    ) -> None:
        if isinstance(bound, type):
            raise InputError(
                f"The bound is the class {bound.__name__}, and not an object made of it.",
                f"Give {bound.__name__}(...).",
            )
        if not has_estimate(bound) or not (
            isinstance(bound, ELBO) or hasattr(bound, "differentiable_loss")
        ):
            raise InputError(
                f"{type(bound).__name__} has no differentiable_loss, which training needs.",
                "Take one of pyrovae.bounds, or pyro.infer.Trace_ELBO.",
            )
        self.structure = structure
        self.weight = weight
        self.prepare = prepare or (lambda x: x)
        self.shares_noise = shared and bool(structure.global_latents)
        bound = _for_program(bound, structure, weight)
        is_taken = getattr(getattr(bound, "kl", None), "takes_warmup", False)
        self.model, self.guide = (
            self._handled(function, None if is_taken else weight)
            for function in (program.model, program.guide)
        )
        self._estimate = estimate_with(bound, self.model, self.guide)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and its surrogate."""
        value, surrogate = self._estimate(self.prepare(x), y)
        size = self.structure.full_size or len(x)
        return value / size, surrogate / size

    def find_cause(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], parameters: dict[str, Tensor]
    ) -> NonFiniteError | None:
        """Why the loss of a batch is not finite."""
        x, *rest = args
        given = (self.prepare(x), *rest)
        return find_cause(self.model, self.guide, given, kwargs, parameters)

    def _handled(self, function: Callable[..., Any], weight: Tensor | None) -> Callable[..., Any]:
        """A model or a guide of (x, y), its noise shared and its KL weighted as is asked for."""
        handled = _with_labels(function)
        if self.shares_noise:
            handled = share_noise(PLATE)(handled)
        return handled if weight is None else kl_weight(weight)(handled)


def _with_labels(function: Callable[..., Any]) -> Callable[..., Any]:
    """A model or a guide of (x, y), whether its own signature has y or not."""
    # Read once: a signature costs as much as a small layer.
    takes_y = takes_labels(function)

    def labelled(x: Tensor, y: Tensor | None) -> Any:
        named = labels(function, Batch(x, y)) if takes_y else {}
        return function(x, **named)

    return labelled


def _for_program(
    bound: ELBO | Differentiable, structure: Structure, weight: Tensor | None
) -> ELBO | Differentiable:
    """A bound of this program's own: what it finds out of a program it keeps."""
    bound = copy.copy(bound)
    if not isinstance(bound, Bound):
        return bound
    bound.forget()
    # A control may also be a function of the user's own.
    in_warmup = getattr(bound.kl, "in_warmup", None)
    if weight is not None and in_warmup is not None:
        bound.kl = in_warmup(weight)
    vectorizes = structure.vectorizes or (bound.holds_shared and structure.vectorizes_examples)
    if bound.num_particles > 1 and not vectorizes:
        if bound.vectorize_particles:
            warnings.warn(
                "The program does not take particles as one more dimension, so every step runs "
                f"it {bound.num_particles} times.",
                stacklevel=4,
            )
        bound.vectorize_particles = False
    return bound

r"""Whether a captured step is the program's own.

A graph is what the program did once. A program that depends on Python state, on `.numpy()`, or on
its own randomness is captured without a word, and wrong from the second step on. So a captured
step is compared from time to time with the same step in Python, on the same noise.
"""

__all__ = ["Difference", "difference", "is_checked"]

from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.svi.passes import Outcome

# How far a captured step may be from the same step in Python, relative to the largest entry.
# Kernels that add in another order differ by rounding, a wrong capture by much more.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
# And where their matrix products are of fewer bits.
COARSE = {"tf32": 1e-2, "bf16": 0.1}
EVERY = 1024


def is_checked(step: int) -> bool:
    """Whether a step of a back end, from 1, is compared: steps 1, 2, 4, 8, … and every 1,024th."""
    return step & (step - 1) == 0 or step % EVERY == 0


class Difference(NamedTuple):
    """Where two outcomes differ by more than rounding.

    Attributes:
        about: What of them, in words.
        may_be_a_kink: Whether a single value may be all there is to it. At a kink, of a ReLU or
            at a knot of a spline, rounding decides on which side a value lies: the losses are
            the same, and the gradients are those of either side, and both right.
    """

    about: str
    may_be_a_kink: bool = False


def difference(found: Outcome, expected: Outcome, precision: str) -> Difference | None:
    """Where two outcomes differ by more than rounding, if they do."""
    # The first run of an automatic guide meets its parameters in another order, or by others of
    # their names.
    pairs = zip(expected.parameters.values(), expected.gradients, strict=True)
    gradients = {id(parameter): gradient for parameter, gradient in pairs}
    if {id(parameter) for parameter in found.parameters.values()} != gradients.keys():
        return Difference("the parameters that are trained")

    tolerance = TOLERANCE.get(expected.loss.dtype, COARSE["bf16"])
    tolerance = max(tolerance, COARSE.get(precision, 0.0))
    if _differ(found.loss, expected.loss, tolerance * (1.0 + expected.loss.abs())):
        return Difference("the loss")
    # Of what is no number the other gradients are not to be measured by.
    sizes = [g.abs().nan_to_num().amax() for g in expected.gradients if g.numel()]
    largest = torch.stack(sizes).amax()
    for (name, parameter), gradient in zip(found.parameters.items(), found.gradients, strict=True):
        if _differ(gradient, gradients[id(parameter)], tolerance * largest):
            return Difference(f"the gradient of {name!r}", may_be_a_kink=True)
    return None


def _differ(a: Tensor, b: Tensor, rounding: Tensor) -> bool:
    """Whether two tensors differ by more than rounding. What neither can tell does not count."""
    if not torch.isfinite(a).all() and not torch.isfinite(b).all():
        return False
    return not bool(((a - b).abs() <= rounding).all())

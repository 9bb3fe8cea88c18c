r"""Schedules: pure functions from the optimisation step to a value."""

__all__ = ["Schedule", "constant", "cosine", "linear"]

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(value: float = 1.0) -> Schedule:
    """The same value at every step."""
    return lambda step: value


def linear(start: float, end: float, steps: int) -> Schedule:
    r"""From `start` at step 0 to `end` at step `steps`, and `end` from there on.

    With zero steps it is `end` throughout.

    Example:
        >>> warmup = linear(0.0, 1.0, steps=4)
        >>> [warmup(step) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    return lambda step: end if step >= steps else start + (end - start) * step / steps


def cosine(start: float, end: float, steps: int) -> Schedule:
    r"""Half a cosine from `start` at step 0 to `end` at step `steps`, and `end` from there on.

    $$v_t = e + \tfrac12 (s - e) (1 + \cos(\pi t / T))$$

    Example:
        >>> decay = cosine(1.0, 0.0, steps=4)
        >>> [round(decay(step), 3) for step in (0, 2, 4, 9)]
        [1.0, 0.5, 0.0, 0.0]
    """

    def value(step: int) -> float:
        if step >= steps:
            return end
        return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2

    return value

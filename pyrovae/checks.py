"""Checks of an argument that are the same wherever it is given."""

__all__ = ["as_number", "check_finite", "check_whole", "whole"]

import math
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from pyrovae.errors import InputError, shorten


def as_number(value: Any) -> Any:
    """A number of NumPy's or torch's as one of Python's, and anything else as it is.

    Example:
        >>> as_number(np.int64(3)), as_number(np.float32(0.5)), as_number("three")
        (3, 0.5, 'three')
    """
    is_one = isinstance(value, np.generic | np.ndarray | Tensor) and not value.ndim
    return value.item() if is_one else value


def whole(name: str, value: Any, *, least: int | None = 1) -> int:
    """A whole number that is given under a name, as one of Python's.

    Raises:
        InputError: If it is none, or less than the least, with its name.
    """
    number = as_number(value)
    is_whole = isinstance(number, Integral) and not isinstance(number, bool)
    if not is_whole or (least is not None and number < least):
        bound = "" if least is None else f", at least {least}"
        raise InputError(f"{name} is {shorten(number)}.", f"Give a whole number{bound}.")
    return int(number)


def check_whole(*, least: int | None = 1, **numbers: Any) -> None:
    """Refuses what is no whole number, and smaller ones than the least, by their names.

    Args:
        least: The least that each may be; None where there is none.
        numbers: What is given under the names of the arguments; None where one is left out.

    Raises:
        InputError: Naming the first.

    Example:
        >>> check_whole(epochs=1.5)
        Traceback (most recent call last):
        ...
        pyrovae.errors.InputError: epochs is 1.5. Give a whole number, at least 1.
    """
    for name, value in numbers.items():
        if value is not None:
            whole(name, value, least=least)


def check_finite(*, least: float = -math.inf, above: float = -math.inf, **numbers: Any) -> None:
    """Refuses what is no finite number, and those out of bounds, by their names.

    Args:
        least: The least that each may be, where that is finite.
        above: What each is to be above, where that is finite.
        numbers: What is given under the names of the arguments; None where one is left out.

    Raises:
        InputError: Naming the first.

    Example:
        >>> check_finite(above=0, lr=0.0)
        Traceback (most recent call last):
        ...
        pyrovae.errors.InputError: lr is 0.0. Give a finite number above 0.
    """
    bound = f", at least {least}" * (least > -math.inf) or f" above {above}" * (above > -math.inf)
    for name, value in numbers.items():
        number = as_number(value)
        is_one = isinstance(number, int | float) and not isinstance(number, bool)
        if value is not None and not (is_one and above < number < math.inf and number >= least):
            raise InputError(f"{name} is {shorten(number)}.", f"Give a finite number{bound}.")

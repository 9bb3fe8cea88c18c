"""Checks of an argument that are the same wherever it is given."""

__all__ = ["as_number", "check_whole", "whole"]

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
    is_one = isinstance(value, np.generic) or (isinstance(value, Tensor) and not value.dim())
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

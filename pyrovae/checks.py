"""Checks of an argument that are the same wherever it is given."""

__all__ = ["check_whole"]

from numbers import Integral
from typing import Any

from pyrovae.errors import InputError, shorten


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
        if value is None:
            continue
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or (least is not None and value < least):
            bound = "" if least is None else f", at least {least}"
            raise InputError(f"{name} is {shorten(value)}.", f"Give a whole number{bound}.")

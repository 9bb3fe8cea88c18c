"""Warnings that are given once."""

__all__ = ["Once"]

import sys
import warnings


class Once:
    """Warns, once for each message, as from the first caller that is not of this package."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, message: str) -> None:
        """Warns, if it has not yet."""
        if message not in self._given:
            self._given.add(message)
            warnings.warn(message, stacklevel=_level_of_the_caller())


def _level_of_the_caller() -> int:
    """How many frames up the first is that is not of this package: whom a warning is for."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("pyrovae."):
        level, frame = level + 1, frame.f_back
    return level

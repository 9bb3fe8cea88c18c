"""What can go wrong, each said in one sentence of cause and one of remedy."""

__all__ = [
    "CheckpointError",
    "InputError",
    "NonFiniteError",
    "PyrovaeError",
    "RankError",
    "first_line",
    "shorten",
    "unwritable",
]

import errno
from typing import TypeVar

# How much of a value an error shows.
SHOWN = 200
# What an operating system says where there is no room: on the disk, in a quota, in a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shorten(value: object) -> str:
    """A value as an error shows it, whatever its length.

    Example:
        >>> shorten("a")
        "'a'"
    """
    text = str(value) if isinstance(value, BaseException) else repr(value)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def first_line(error: BaseException) -> str:
    r"""The first line that an error says anything on, or its class where it says nothing.

    Example:
        >>> first_line(RuntimeError("no such device\n  at line 3")), first_line(KeyError())
        ('no such device', 'KeyError')
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


class PyrovaeError(Exception):
    """An error that the user can act on.

    Args:
        cause: One sentence: what is wrong, and with which value.
        remedy: One sentence: what to do about it.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        # Pyro's tracer raises an error anew, with its words and the shapes of a trace behind them
        # as the one argument.
        cause = cause.partition("\nTrace Shapes:")[0]
        super().__init__(f"{cause} {remedy}".strip())

        self.cause = cause
        self.remedy = remedy


class InputError(PyrovaeError, ValueError):
    """The data, a program, a name or an option cannot be used as given."""


class NonFiniteError(PyrovaeError, ArithmeticError):
    """A loss or a gradient became NaN or infinite; no weight has been changed by it.

    Attributes:
        steps_ago: How many steps before the last one that was.
    """

    steps_ago: int = 0


class CheckpointError(PyrovaeError, RuntimeError):
    """A checkpoint cannot be written, or none that is whole can be found."""


class RankError(PyrovaeError, RuntimeError):
    """One of the processes that train together cannot be reached any more."""


Kind = TypeVar("Kind", bound=PyrovaeError)


def unwritable(kind: type[Kind], what: object, error: OSError, instead: str) -> Kind:
    """What to raise where something cannot be written.

    Args:
        kind: The class of the error.
        what: What was to be written.
        error: Why it cannot be.
        instead: What to choose in its place, and what else there is to say.
    """
    return kind(
        f"{what} cannot be written ({error.strerror or error}).",
        f"{'Free some space or choose' if error.errno in FULL else 'Choose'} {instead}.",
    )

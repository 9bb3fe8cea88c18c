"""The command line: a thin shell over the Python API.

torch is imported by the verbs, not by the parser, so that `--help` answers at once.
"""

__all__ = ["main"]

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrovae.cli.doctor import doctor
from pyrovae.cli.launches import begun_before, together
from pyrovae.cli.new import new
from pyrovae.cli.options import Doctor, New, Resume, Training
from pyrovae.cli.parsing import parse
from pyrovae.cli.resuming import resume
from pyrovae.cli.training import train
from pyrovae.cli.verbs import with_run
from pyrovae.errors import PyrovaeError


def main(arguments: list[str] | None = None) -> None:
    """Parses a command, runs it, and turns every error into one line and an exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        command, program = parse(given)
        with _plain_warnings(), together() as ranks:
            if isinstance(command, Training):
                begun = begun_before(command, ranks)
                if begun is None:
                    train(command, program, given)
                else:
                    resume(Resume(begun), restarted=True)
            elif isinstance(command, Resume):
                resume(command)
            elif ranks is None or ranks.is_first:
                _alone(command)
    except PyrovaeError as error:
        sys.exit(_fail(str(error), 2))
    except _Terminated:
        sys.exit(_fail("Terminated.", 128 + signal.SIGTERM))
    except KeyboardInterrupt:
        sys.exit(_fail("Interrupted.", 128 + signal.SIGINT))
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to say, or to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Lets warnings of this package be words alone: no line of the user's is meant.

    One that is for whom called the package is for the script that called the command.
    """
    own, before = Path(__file__).parent.parent, warnings.formatwarning
    script = Path(sys.argv[0])

    def words(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if own in Path(filename).parents or Path(filename) == script:
            return f"pyrovae: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = words
    try:
        yield
    finally:
        warnings.formatwarning = before


def _alone(command: Any) -> None:
    """Runs a verb that is not for several processes."""
    if isinstance(command, Doctor):
        doctor()
    elif isinstance(command, New):
        new(command)
    else:
        with_run(command)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which saves what there is as an interrupt does."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _fail(message: str, code: int) -> int:
    print(f"pyrovae: {message}", file=sys.stderr)
    return code

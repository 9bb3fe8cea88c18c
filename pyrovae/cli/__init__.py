"""The command line: a thin shell over the Python API.

torch is imported by the verbs, not by the parser, so that `--help` answers at once.
"""

__all__ = ["main"]

import os
import signal
import sys

import tyro

from pyrovae.cli.options import VERBS, Training
from pyrovae.cli.parts import list_parts, train_type
from pyrovae.cli.training import train
from pyrovae.cli.verbs import with_run
from pyrovae.errors import InputError, PyrovaeError
from pyrovae.user_files import is_own_file


def main(arguments: list[str] | None = None) -> None:
    """Parses a command, runs it, and turns every error into one line and an exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    words = given
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        program, words = _split_program(given)
        command = tyro.extras.subcommand_cli_from_dict(
            {**VERBS, "train": train_type(words, program)},
            prog="pyrovae",
            description="Variational autoencoders as probabilistic programs, in Pyro.",
            args=words,
        )
        if isinstance(command, Training):
            train(command, program, given)
        else:
            with_run(command)
    except SystemExit as stop:
        if not stop.code and words[:1] == ["train"] and {"-h", "--help"} & set(words):
            print(list_parts())
        raise
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


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which saves what there is as an interrupt does."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _fail(message: str, code: int) -> int:
    print(f"pyrovae: {message}", file=sys.stderr)
    return code


def _split_program(words: list[str]) -> tuple[str | None, list[str]]:
    """Takes the program `file.py:build` out of `train file.py:build --options`.

    Any other first word, as in `train photos/`, names the data.
    """
    if len(words) < 2 or words[0] != "train" or words[1].startswith("-"):
        return None, words
    _, first, *options = words
    if is_own_file(first):
        return first, ["train", *options]
    if any(word.partition("=")[0] == "--data" for word in options):
        raise InputError("Data are named twice.", f"Leave out {first}, or --data.")
    return None, ["train", "--data", first, *options]

"""The verb `resume`: the command that began a run, given again in its folder."""

__all__ = ["resume"]

import shlex
from collections.abc import Iterable
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.cli.options import Resume
from pyrovae.cli.parsing import parse, split_program
from pyrovae.cli.parts import own_files
from pyrovae.cli.planning import KINDS
from pyrovae.cli.training import train
from pyrovae.errors import InputError
from pyrovae.run_folder import find, read_config
from pyrovae.user_files import as_recorded, held_to, is_as_it_was

if TYPE_CHECKING:
    from pyrovae.resuming import Earlier

# What is recorded of the user's files, by their paths.
Files = dict[Path, dict[str, Any]]


def resume(command: Resume, *, restarted: bool = False) -> None:
    """Goes on with a run.

    Args:
        command: Which one.
        restarted: Whether the command that began it has been started anew, and is to do what
            it was to do to the end: a run that is over is measured.

    Raises:
        InputError: If it is no run, was not begun by `pyrovae train`, or has nothing left to do;
            or if a file of the user's that it was begun with is not as it was.
    """
    path = find(command.run).resolve()
    config = read_config(path)
    data_dir = command.data_dir and command.data_dir.resolve()
    words, folder, files = _begun_by(config, path)
    # Paths in the command are from the folder that it was given in.
    with chdir(folder) if folder.is_dir() else nullcontext():
        program, _ = split_program(words)
        # To understand a command runs its program, so that this is asked first.
        _check_files(own_files(None, program), files, path)
        with as_recorded(files.values()):
            options, program = parse(words)
            _check_files(own_files(options, program), files, path)
            earlier = _settle(options, command, config, path)
            if earlier is not None and not restarted:
                earlier.check_goes_on(options.epochs)
            options.data_dir = data_dir or config["data"].get("data_dir")
            train(options, program, words, resume=earlier or True)


def _begun_by(config: dict[str, Any], path: Path) -> tuple[list[str], Path, Files]:
    """The words that a run was begun by, the folder they were said in, and the files they name.

    Raises:
        InputError: If it was begun otherwise, or does not say so in words that make sense.
    """
    if "command" not in config:
        raise InputError(
            f"The run in {path} was trained from Python.",
            "Call fit again as it was, with resume=True.",
        )
    try:
        name, *words = shlex.split(config["command"])
        files = {Path(entry["file"]): {**entry, **held_to(entry)} for entry in config["files"]}
        folder = Path(config["folder"])
        training = config["training"]
        known = isinstance(training["epochs"], int)
        known &= isinstance(training["kl_warmup"], int | float)
    except (AttributeError, KeyError, TypeError, ValueError):
        name, words, files, folder, known = "", [], {}, Path(), False
    if not known or name != "pyrovae" or words[:1] != ["train"]:
        raise InputError(
            f"The config.json of {path} does not say how the run was begun.",
            "Restore it, or train another run from its weights: --init-from.",
        )
    return words, folder, files


def _check_files(named: Iterable[tuple[Path, str]], recorded: Files, run: Path) -> None:
    """Lets files be run only if they are the user's own, and as they were.

    Raises:
        InputError: If one is gone, has changed, or came with the run.
    """
    for path, name in named:
        if path not in recorded or not is_as_it_was({**recorded[path], "name": name}, run):
            raise InputError(
                f"The file {path}, or one beside it that it imports, is gone, has changed since, "
                "came with the run or was not trained by you on this machine, so it is not run.",
                "Restore it, or train another run from the weights: --init-from.",
            )


def _settle(options: Any, command: Resume, config: dict[str, Any], path: Path) -> "Earlier | None":
    """What of the command is another now, or was worked out from the number of epochs.

    Returns:
        The run as it was left, if it has come to save itself.
    """
    from pyrovae.resuming import Earlier

    options.run_dir = path
    options.epochs = command.epochs or config["training"]["epochs"]
    options.kl_warmup = config["training"]["kl_warmup"]
    options.device = command.device or options.device
    if options.columns is None or not Path(options.columns).is_file():
        # As they were inferred by the version that began the run, or told to it.
        options.columns = config["data"].get("columns")
    earlier = Earlier.at(path)
    if earlier is None:
        options.init_from = config.get("init_from")
    else:
        options.init_from = None
        _keep_parts(options, config.get("program"))
    return earlier


def _keep_parts(options: Any, program: Any) -> None:
    """Gives the parts the options that they were made with, whose defaults may be others now."""
    for kind in KINDS if isinstance(program, dict) else ():
        part = program.get(kind)
        for name, value in part.items() if isinstance(part, dict) else ():
            if hasattr(options, f"{kind}_{name}") and not isinstance(value, dict):
                kept = tuple(value) if isinstance(value, list) else value
                setattr(options, f"{kind}_{name}", kept)

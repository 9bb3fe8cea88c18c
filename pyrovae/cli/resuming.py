"""The verb `resume`: the command that began a run, given again in its folder."""

__all__ = ["resume"]

import os
import shlex
from pathlib import Path

from pyrovae.cli.options import Resume
from pyrovae.cli.parsing import parse, split_program
from pyrovae.cli.parts import own_files
from pyrovae.cli.training import train
from pyrovae.errors import InputError
from pyrovae.user_files import locate


def resume(command: Resume) -> None:
    """Goes on with a run.

    Raises:
        InputError: If it is no run, was not begun by `pyrovae train`, or has nothing left to do.
    """
    from pyrovae.resuming import Earlier
    from pyrovae.run_folder import find, read_config

    path = find(command.run).resolve()
    config = read_config(path)
    if not config.get("command", "").startswith("pyrovae train"):
        raise InputError(
            f"The run in {path} was trained from Python.",
            "Call fit again as it was, with resume=True.",
        )
    data_dir = command.data_dir and command.data_dir.resolve()
    # Paths in the command are from the folder that it was given in.
    if Path(config["folder"]).is_dir():
        os.chdir(config["folder"])
    words = shlex.split(config["command"])[1:]
    _check_files(words, config["files"], path)
    options, program = parse(words)
    options.run_dir = path
    # What was worked out from the number of epochs stays as it was when there are more of them.
    options.epochs = command.epochs or config["training"]["epochs"]
    options.kl_warmup = config["training"]["kl_warmup"]
    options.data_dir = data_dir or config["data"]["data_dir"]
    options.device = command.device or options.device

    earlier = Earlier.at(path)
    if earlier is not None:
        earlier.check_goes_on(options.epochs)
    train(options, program, words, resume=True)


def _check_files(words: list[str], recorded: list[dict[str, str]], run: Path) -> None:
    """Lets a command be understood, which runs the files it names, only if they are as they were.

    Raises:
        InputError: If one is gone, has changed, or came with the run.
    """
    program, rest = split_program(words)
    known = {Path(entry["file"]): entry for entry in recorded}
    for path in own_files(rest, program):
        locate(known.get(path, {"file": path}), run)

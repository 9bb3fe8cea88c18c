"""The verb `resume`: the command that began a run, given again in its folder."""

__all__ = ["resume"]

import os
import shlex
from pathlib import Path

from pyrovae.cli.options import Resume
from pyrovae.cli.parsing import parse
from pyrovae.cli.training import train
from pyrovae.errors import InputError


def resume(command: Resume) -> None:
    """Goes on with a run.

    Raises:
        InputError: If it is no run, was not begun by `pyrovae train`, or has nothing left to do.
    """
    from pyrovae.resuming import Earlier
    from pyrovae.run_folder import find, read_config

    path = find(command.run).resolve()
    config = read_config(path)
    if "command" not in config:
        raise InputError(
            f"The run in {path} was trained from Python.",
            "Call fit again as it was, with resume=True.",
        )
    words = shlex.split(config["command"])[1:]
    options, program = parse(words)
    options.run_dir = path
    # What was worked out from the number of epochs stays as it was when there are more of them.
    options.epochs = command.epochs or config["training"]["epochs"]
    options.kl_warmup = config["training"]["kl_warmup"]
    options.data_dir = command.data_dir or config["data"]["data_dir"]
    options.device = command.device or options.device

    earlier = Earlier.at(path)
    if earlier is not None and earlier.is_over(options.epochs):
        raise InputError(
            f"The run in {path} is over: it has taken {earlier.epochs} epochs.",
            "Give more of them: --epochs.",
        )
    # Paths in the command are from the folder that it was given in.
    if Path(config["folder"]).is_dir():
        os.chdir(config["folder"])
    train(options, program, words, resume=True)

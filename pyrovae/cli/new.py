"""The verb `new`: a program to begin with."""

__all__ = ["new"]

import shlex
from importlib.resources import files

from pyrovae.cli.options import New
from pyrovae.errors import InputError, unwritable


def new(command: New) -> None:
    """Writes the plain VAE as one file of the user's own, and prints what to type next.

    Raises:
        InputError: If the file is there already, is no Python file, or cannot be written.
    """
    path = command.path
    if path.suffix != ".py":
        raise InputError(f"{path} is no Python file.", "Name it FILE.py.")
    text = files("pyrovae").joinpath("template.py").read_text()
    name = shlex.quote(str(path))
    try:
        with path.open("x") as file:
            file.write(text.replace("train FILE", f"train {name}"))
    except FileExistsError as error:
        raise InputError(f"{path} exists already.", "Choose another name.") from error
    except OSError as error:
        raise unwritable(InputError, path, error, "another folder") from error
    print(f"{path}\n\nNext:\n  pyrovae train {name} --data digits")

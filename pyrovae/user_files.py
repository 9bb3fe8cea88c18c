"""Python files of the user's own: what one defines, and whether it is still as it was.

A run keeps copies of the files that its program is made of. Nothing of them is executed unless
the user's own file is where it was and as it was, or the user says that the run is trusted.
"""

__all__ = ["copy_into", "defined_in", "digest", "is_own_file", "load", "locate", "split"]

import importlib.util
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyrovae.errors import InputError

_PREFIX = "_pyrovae_user_"
# Where a run keeps copies of the files that its program is made of.
SOURCE = "source"


def is_own_file(word: str) -> bool:
    """Whether a word names something in a file, `file.py:name`, rather than a part of ours."""
    return ":" in word or word.endswith(".py")


def split(spec: str, default: str) -> tuple[Path, str]:
    """The file and the name that `file.py:name` stands for."""
    file, _, name = spec.partition(":")
    return Path(file).expanduser().resolve(), name or default


def load(path: Path, name: str) -> Any:
    """What a file defines under a name. It runs the file.

    Raises:
        InputError: If there is no such file or name, or the file cannot be run.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.", f"Name it as file.py:{name}.")

    # The path's own hash tells files of one name apart.
    key = f"{_PREFIX}{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(key, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Registered, so that dataclasses and pickling inside the user's file find their module.
    sys.modules[key] = module
    # The user's file finds its neighbours, as when it is run itself.
    sys.path.insert(0, str(path.parent))
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{path} cannot be run ({type(error).__name__}: {error}).", "Mend the file."
        ) from error
    finally:
        sys.path.remove(str(path.parent))

    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f"{path} defines no {name!r}.", "Name it as file.py:name.")
    return found


def locate(config: Mapping[str, Any], run: Path | None, *, trusted: bool = False) -> Path:
    """The file of a description, `file` and `sha256`, as it was.

    A file that lies in the run itself is no file of the user's, whatever the run says.

    Args:
        config: The description.
        run: The folder of the run that holds it, if there is one.
        trusted: Whether the run's own copy may be run.

    Raises:
        InputError: If the file is gone or has changed, and its copy is not trusted or damaged.
    """
    path, expected = Path(str(config["file"])), config.get("sha256")
    is_own = path.is_absolute() and not (run and path.resolve().is_relative_to(run.resolve()))
    if is_own and expected and digest(path) == expected:
        return path
    if run is None or not trusted:
        raise InputError(
            f"The run's file {path} is gone or has changed since, so it is not run.",
            "Restore it, name the program's file now with --program, or run the copy in the run "
            "with --trust-source.",
        )
    copy = _copy_of(path, str(expected), run / SOURCE)
    if digest(copy) != expected:
        raise InputError(
            f"The run's copy {copy} of {path} is gone or has changed.", "Restore the file."
        )
    return copy


def copy_into(run: Path, config: Any) -> None:
    """Copies every file that a tree of descriptions names into the folder of a run."""
    if isinstance(config, list):
        for item in config:
            copy_into(run, item)
    if isinstance(config, Mapping):
        if "file" in config and digest(path := Path(config["file"])) == config.get("sha256"):
            copy = _copy_of(path, config["sha256"], run / SOURCE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        for item in config.values():
            copy_into(run, item)


def _copy_of(path: Path, sha256: str, copies: Path) -> Path:
    return copies / sha256[:8] / path.name


def defined_in(cls: type) -> Path | None:
    """The user's file that `load` took a class from, or None."""
    if not cls.__module__.startswith(_PREFIX):
        return None
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return None if file is None else Path(file)


def digest(path: Path) -> str:
    """What a file holds, as a sha256; the empty string where there is no file."""
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

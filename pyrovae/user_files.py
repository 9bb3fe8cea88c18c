"""Python files of the user's own: what one defines, and whether it is still as it was.

A run keeps copies of the files that its program is made of. Nothing of them is executed unless
the user's own file is where it was and as it was when it was trained on this machine, or the user
says that the run is trusted.
"""

__all__ = ["copy", "copy_into", "defined_in", "digest", "is_own_file", "load", "locate", "split"]

import hashlib
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

from pyrovae.errors import InputError
from pyrovae.known_files import is_known, remember

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


class _AsRead(SourceFileLoader):
    """Runs the bytes that were read, and no bytecode that lies beside their file."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)

        self.content = content

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.content, self.path)


def load(path: Path, name: str, *, sha256: str | None = None) -> Any:
    """What a file defines under a name. It runs the file, and no bytecode that lies beside it.

    Args:
        path: The file.
        name: What it defines.
        sha256: What the file must hold, if it is of a run. Neighbours in a run's own folder,
            which nothing is known of, are not found by it.

    Raises:
        InputError: If there is no such file or name, it cannot be run, or holds something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"There is no file {path}.", f"Name it as file.py:{name}.") from error
    if sha256 is not None and _digest_of(content) != sha256:
        raise InputError(f"{path} has changed, so it is not run.", "Restore the file.")

    # The path's own hash tells files of one name apart.
    key = f"{_PREFIX}{path.stem}_{_digest_of(str(path).encode())[:8]}"
    spec = spec_from_file_location(key, path, loader=_AsRead(key, str(path), content))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Registered, so that dataclasses and pickling inside the user's file find their module.
    sys.modules[key] = module
    # The user's file finds its neighbours, as when it is run itself.
    neighbours = [] if SOURCE in path.parts else [str(path.parent)]
    sys.path[:0] = neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{path} cannot be run ({type(error).__name__}: {error}).", "Mend the file."
        ) from error
    finally:
        for folder in neighbours:
            sys.path.remove(folder)

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
    path, expected = Path(str(config["file"])), str(config.get("sha256"))
    is_own = path.is_absolute() and not (run and path.resolve().is_relative_to(run.resolve()))
    if is_own and digest(path) == expected and is_known(path, _name_in(config), expected):
        return path
    if run is None or not trusted:
        raise InputError(
            f"The run's file {path} is gone, has changed since or was not trained by you on this "
            "machine, so it is not run.",
            "Restore it, name the program's file now with --program, or run the copy in the run "
            "with --trust-source.",
        )
    copied = _copy_of(path, expected, run / SOURCE)
    if digest(copied) != expected:
        raise InputError(
            f"The run's copy {copied} of {path} is gone or has changed.", "Restore the file."
        )
    return copied


def copy(path: Path, sha256: str, run: Path) -> None:
    """Copies a file of the user's into a run."""
    place = _copy_of(path, sha256, run / SOURCE)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(path.read_bytes())


def _name_in(config: Mapping[str, Any]) -> str:
    """What is taken out of the file of a description."""
    return str(config.get("function") or config.get("part") or config.get("name"))


def copy_into(run: Path, config: Any) -> None:
    """Copies every file that a tree of descriptions names into a run, and remembers it."""
    if isinstance(config, list):
        for item in config:
            copy_into(run, item)
    if isinstance(config, Mapping):
        if "file" in config and digest(path := Path(config["file"])) == config.get("sha256"):
            remember(path, _name_in(config), config["sha256"])
            copy(path, config["sha256"], run)
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
    return _digest_of(path.read_bytes()) if path.is_file() else ""


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

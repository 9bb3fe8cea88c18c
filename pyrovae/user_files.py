"""Python files of the user's own: what one defines, and whether it is still as it was."""

__all__ = ["defined_in", "digest", "is_own_file", "load", "split"]

import importlib.util
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from pyrovae.errors import InputError

_PREFIX = "_pyrovae_user_"


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


def defined_in(cls: type) -> Path | None:
    """The user's file that `load` took a class from, or None."""
    if not cls.__module__.startswith(_PREFIX):
        return None
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return None if file is None else Path(file)


def digest(path: Path) -> str:
    """What a file holds, as a sha256; the empty string where there is no file."""
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

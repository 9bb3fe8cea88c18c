"""Programs of the user's own: `my_model.py:build`, a callable that takes the data's shape."""

__all__ = ["build", "describe", "keyword_arguments", "load_builder"]

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import field
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from pyrovae.errors import InputError
from pyrovae.programs import Program, as_module

Builder = Callable[..., Program]


def load_builder(spec: str) -> Builder:
    """The callable that `file.py:name` names. It runs the file.

    Raises:
        InputError: If there is no such file or callable, or the file cannot be run.
    """
    file, _, name = spec.partition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Name the program as file.py:build.")

    module_spec = importlib.util.spec_from_file_location(f"_pyrovae_user_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    # Registered, so that dataclasses and pickling inside the user's file find their module.
    sys.modules[module_spec.name] = module
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

    builder: Builder | None = getattr(module, name or "build", None)
    if builder is None or not callable(builder):
        raise InputError(
            f"{path} defines no function {name or 'build'!r}.",
            "Name the program as file.py:build.",
        )
    return builder


def keyword_arguments(builder: Builder) -> list[tuple[str, type, Any]]:
    """The arguments of a builder behind the data's shape, as fields of a dataclass.

    A type that is not annotated is that of the default.
    """
    hints = get_type_hints(builder)
    found = []
    for parameter in list(signature(builder).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        optional = parameter.default is not parameter.empty
        kind = hints.get(parameter.name, type(parameter.default) if optional else str)
        found.append(
            (parameter.name, kind, field(default=parameter.default) if optional else field())
        )
    return found


def describe(spec: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a run records of a user's program, so that it can be found and recognised again."""
    file, _, name = spec.partition(":")
    path = Path(file).expanduser().resolve()

    return {
        "file": str(path),
        "function": name or "build",
        "arguments": dict(arguments),
        "sha256": sha256(path.read_bytes()).hexdigest(),
    }


def build(config: Mapping[str, Any], x_shape: tuple[int, ...]) -> Program:
    """Builds a described program, if its file is where it was and as it was.

    Raises:
        InputError: If the file is gone or has changed: then nothing of it is run.
    """
    path = Path(config["file"])
    if not path.is_file() or sha256(path.read_bytes()).hexdigest() != config["sha256"]:
        raise InputError(
            f"The run's program {path} is gone or has changed since, so it is not run.",
            "Restore it, or give the program: pyrovae.load(run, program=...).",
        )
    program = load_builder(f"{path}:{config['function']}")(x_shape, **config["arguments"])
    as_module(program)
    return program

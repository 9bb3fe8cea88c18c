"""Programs of the user's own: `my_model.py:build`, a callable that takes the data's shape."""

__all__ = [
    "NUM_DATA",
    "build",
    "describe",
    "keyword_arguments",
    "load_builder",
    "make",
    "supplied",
]

from collections.abc import Callable, Mapping
from dataclasses import field
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from pyrovae import user_files
from pyrovae.errors import InputError
from pyrovae.programs import Program, as_module

Builder = Callable[..., Program]

# An argument that is no option: the number of training examples, which is the size of the plate
# round latents that all of them share.
NUM_DATA = "num_data"


def load_builder(spec: str) -> Builder:
    """The callable that `file.py:name` names. It runs the file.

    Raises:
        InputError: If there is no such file or callable, or the file cannot be run.
    """
    return user_files.load(*user_files.split(spec, "build"))


def keyword_arguments(builder: Builder) -> list[tuple[str, type, Any]]:
    """The arguments of a builder behind the data's shape, as fields of a dataclass.

    A type that is not annotated is that of the default. What is `supplied` is left out.
    """
    hints = get_type_hints(builder)
    found = []
    for parameter in list(signature(builder).parameters.values())[1:]:
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or parameter.name == NUM_DATA:
            continue
        optional = parameter.default is not parameter.empty
        kind = hints.get(parameter.name, type(parameter.default) if optional else str)
        found.append(
            (parameter.name, kind, field(default=parameter.default) if optional else field())
        )
    return found


def supplied(spec: str, num_data: int) -> dict[str, Any]:
    """The arguments of a builder that the data give: `num_data`, where it has one of that name."""
    return {NUM_DATA: num_data} if NUM_DATA in signature(load_builder(spec)).parameters else {}


def describe(spec: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a run records of a user's program, so that it can be found and recognised again.

    Args:
        spec: The program, whose file was loaded before.
        arguments: What its function is given behind the data's shape.
    """
    path, name = user_files.split(spec, "build")

    return {**user_files.describe(path), "function": name, "arguments": dict(arguments)}


def build(
    config: Mapping[str, Any],
    x_shape: tuple[int, ...],
    run: Path | None = None,
    *,
    trusted: bool = False,
) -> Program:
    """Builds a described program; see `user_files.locate` for what of it is run.

    Raises:
        InputError: If its file is gone or has changed: then nothing of it is run.
    """
    return make(config, x_shape, user_files.locate(config, run, trusted=trusted))


def make(config: Mapping[str, Any], x_shape: tuple[int, ...], path: Path) -> Program:
    """Makes a described program by a file that may be run.

    Raises:
        InputError: If the file holds something else, cannot be run, or makes no program.
    """
    builder = user_files.load(path, config["function"], **user_files.held_to(config))
    try:
        signature(builder).bind(x_shape, **config["arguments"])
    except TypeError as error:
        raise InputError(
            f"{path}:{config['function']} cannot be called with the shape of the data ({error}).",
            "Let its first argument be that of one observation, and name all others.",
        ) from error
    try:
        program = builder(x_shape, **config["arguments"])
    except InputError:
        raise
    except Exception as error:
        raise user_files.failure(path, error) from error
    as_module(program)
    return program

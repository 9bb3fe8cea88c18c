"""Choices: words for classes, with options of their constructors."""

__all__ = ["WHOLE", "Choice", "called", "default_decoder", "values_of"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any

from pyrovae import catalogue, user_files
from pyrovae.data import Binarize, Data
from pyrovae.errors import InputError, shorten
from pyrovae.parts import ACTIVATIONS, check_number

# The decoders of values that say all of it.
OF_VALUES = {"counts": "negative-binomial", "columns": "tabular"}
# What a likelihood's values are that reach the program as the whole numbers they are.
WHOLE = frozenset({"levels", "counts", "symbols"})


@dataclass(frozen=True)
class Choice:
    """A class by its word, or as `file.py:Class`, and options of its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def resolve(self, kind: str) -> Callable[..., Any]:
        """The class; of a network that of the encoder's.

        Raises:
            InputError: If there is no such word, file or class.
        """
        if user_files.is_own_file(self.name):
            return user_files.load(*user_files.split(self.name, kind.capitalize()))
        entry = catalogue.find(kind, self.name)
        folder = "bounds" if kind == "kl" else f"{kind}s"
        return getattr(import_module(f"pyrovae.{folder}"), entry.class_name)


def called(
    cls: Callable[..., Any], supplied: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """What a class makes of what it needs and of the options that were chosen.

    Raises:
        InputError: If a number is out of the range of its name, or the class refuses them.
    """
    given = {name: _meant(cls, name, value) for name, value in options.items()}
    for name, value in {**supplied, **given}.items():
        for number in value if isinstance(value, tuple) else (value,):
            check_number(name, number)
    try:
        return cls(**supplied, **given)
    except InputError:
        raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{cls.__name__} cannot be made of {sorted(options)} ({shorten(error)}).",
            "pyrovae train --help has the options of every part; an argument of a class of your "
            "own is one if it has a default.",
        ) from error


def _meant(cls: Callable[..., Any], name: str, value: Any) -> Any:
    """An option, a nonlinearity by its word as the class."""
    parameter = signature(cls).parameters.get(name)
    if parameter is None or not isinstance(parameter.default, type):
        return value
    named = {word.lower(): activation for word, activation in ACTIVATIONS.items()}
    return named.get(value, value)


def default_decoder(data: Data) -> str:
    """That of binary data, of counts or of tables; else a Gaussian with a learned shared scale."""
    if data.values in OF_VALUES:
        return OF_VALUES[data.values]
    binary = data.values == "binary" or isinstance(data.preprocessing, Binarize)
    return "bernoulli" if binary else "gaussian"


def values_of(decoder: Choice) -> str:
    """What the values of a likelihood are; see `pyrovae.decoders`."""
    values = getattr(decoder.resolve("decoder"), "values", "real")
    whole = values == "binary" and decoder.options.get("levels", 2) > 2
    return "levels" if whole else values

"""Parts as plain data: what a saved run needs to build its program again.

One table, of the public names of our own modules, holds every class that a configuration may
stand for; a configuration from a stranger can therefore build our own parts and nothing else,
and imports no code. It rests on one convention, kept by a test: a part keeps each argument of
its constructor under its name. A part out of a file of the user's own is named by that file and
its hash, and is built again as long as both are what they were. A module that stands in several
places, as the encoder that a VampPrior is given, is described where it is met first and named
by that place elsewhere.
"""

__all__ = ["PARTS", "check_number", "from_config", "to_config", "why_undescribed"]

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrovae import data, decoders, encoders, models, networks, priors, user_files
from pyrovae.errors import InputError, shorten

# Every class that the public names of these modules name, and no other.
_MODULES = (models, priors, encoders, decoders, networks)
_PREPROCESSING = (data.AsIs, data.Binarize, data.Dequantize, data.Standardize)
PARTS: dict[str, type] = {
    name: cls
    for module in _MODULES
    for name in module.__all__
    if isinstance(cls := getattr(module, name), type)
} | {cls.__name__: cls for cls in _PREPROCESSING}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (nn.ELU, nn.GELU, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Softplus, nn.Tanh)
}


# No size or number of a part is larger: what such a number asks for might never be done.
LARGEST = 2**24

Place = tuple[str, ...]
Locate = Callable[[Mapping[str, Any]], Path]


def to_config(value: Any) -> Any:
    """A part, or an argument of one, as plain data that JSON can hold.

    Raises:
        InputError: If a class is not in the table, or a number is larger than any part's.

    Example:
        >>> to_config(priors.GaussianMixture(2, components=3))
        {'part': 'GaussianMixture', 'latent_dim': 2, 'components': 3, 'spread': 1.0}
    """
    return _describe(value, (), {})


def _describe(value: Any, place: Place, met: dict[int, Place]) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | float | str):
        check_number(".".join(place), value)
        return value
    if isinstance(value, tuple | list):
        return [_describe(item, (*place, str(i)), met) for i, item in enumerate(value)]
    if isinstance(value, Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, type) and ACTIVATIONS.get(value.__name__) is value:
        return {"type": value.__name__}

    name, file = type(value).__name__, user_files.defined_in(type(value))
    if PARTS.get(name) is not type(value) and file is None:
        raise InputError(
            f"{name} is not one of pyrovae's own parts, so a saved run cannot name it.",
            "Give the program again when the run is loaded: pyrovae.load(run, program=...).",
        )
    if id(value) in met:
        return {"same": list(met[id(value)])}
    if isinstance(value, nn.Module):
        met[id(value)] = place
    keys = signature(type(value)).parameters
    if missing := [key for key in keys if not hasattr(value, key)]:
        raise InputError(
            f"The {name} does not keep its argument {missing[0]!r}, so a saved run cannot build "
            "it again.",
            f"Set self.{missing[0]} in its constructor.",
        )
    arguments = {key: _describe(getattr(value, key), (*place, key), met) for key in keys}
    own = {} if file is None else user_files.describe(file)
    return {"part": name, **own, **arguments}


def check_number(name: str, value: Any) -> None:
    """Refuses a whole number with which a saved part would not be built again.

    Raises:
        InputError: If it is larger than any part's.
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(
            f"{name} is {shorten(value)}, more than any part's.", f"Give at most {LARGEST:,}."
        )


def why_undescribed(config: Mapping[str, Any]) -> str:
    """Why a run that records no more than its program's class cannot build it, in a sentence."""
    if isinstance(reason := config.get("reason"), str):
        return reason
    return f"The run's program, {shorten(config.get('class'))}, is described no further."


def from_config(config: Any, run: Path | None = None, *, trusted: bool = False) -> Any:
    """What `to_config` described, built anew.

    Args:
        config: The description.
        run: The folder of the run that it is of, if it is of one.
        trusted: Whether the run's copies of the user's files may be run.

    Raises:
        InputError: If it names no part of the table, or arguments that the part does not take.

    Example:
        >>> from_config({"part": "StandardNormal", "latent_dim": 2})
        StandardNormal()
    """
    locate = partial(user_files.locate, run=run, trusted=trusted)
    return _make(config, (), {}, locate)


def _make(config: Any, place: Place, made: dict[Place, Any], locate: Locate) -> Any:
    if isinstance(config, list):
        items = enumerate(config)
        return tuple(_make(item, (*place, str(i)), made, locate) for i, item in items)
    if not isinstance(config, Mapping):
        return _checked(config, place)
    if "same" in config:
        return _made_at(config["same"], made)
    if "type" in config:
        return _look_up(ACTIVATIONS, config["type"])
    if "tensor" in config:
        return _build(torch.tensor, {"data": config["tensor"]})

    arguments = {
        key: _make(value, (*place, str(key)), made, locate)
        for key, value in config.items()
        if key not in ("part", *user_files.DESCRIBED)
    }
    made[place] = _build(_class_of(config, locate), arguments)
    return made[place]


def _checked(value: Any, place: Place) -> Any:
    """A plain value, if it is no number that no part has."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(
            f"The configuration's {'.'.join(place)} is {shorten(value)}, more than any part's.",
            "Restore the run's config.json, or give the program when the run is loaded.",
        )
    return value


def _class_of(config: Mapping[str, Any], locate: Locate) -> type:
    """The class that a part's description names; of a user's file, if it is as it was."""
    if "file" not in config:
        return _look_up(PARTS, config.get("part"))
    name = str(config.get("part"))
    return user_files.load(locate(config), name, **user_files.held_to(config))


def _made_at(place: Any, made: Mapping[Place, Any]) -> Any:
    if isinstance(place, list) and (found := made.get(tuple(map(str, place)))) is not None:
        return found
    raise InputError(
        f"The configuration refers to {shorten(place)}, which it has not described.",
        "Restore the run's config.json, or give the program when the run is loaded.",
    )


def _build(make: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            # What a part advises against was chosen when it was made first.
            warnings.filterwarnings("ignore", module=r"pyrovae\.")
            return make(**arguments)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"A {make.__name__} cannot be built from {sorted(arguments)} ({shorten(error)}).",
            "Restore the run's config.json, or give the program when the run is loaded.",
        ) from error


def _look_up(table: Mapping[str, type], name: Any) -> type:
    if not isinstance(name, str) or name not in table:
        raise InputError(
            f"The configuration names {shorten(name)}, which is no part of pyrovae.",
            "Restore the run's config.json, or give the program when the run is loaded.",
        )
    return table[name]

"""Parts as plain data: what a saved run needs to build its program again.

One explicit table names every class that a configuration may stand for; a configuration from a
stranger can therefore build our own parts and nothing else, and imports no code. It rests on
one convention, kept by a test: a part keeps each argument of its constructor under its name.
"""

__all__ = ["PARTS", "from_config", "to_config"]

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae import data, decoders, encoders, models, networks, priors
from pyrovae.errors import InputError

PARTS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        models.VAE,
        priors.StandardNormal,
        priors.DiagonalGaussian,
        priors.GaussianMixture,
        encoders.GaussianEncoder,
        decoders.BernoulliDecoder,
        decoders.ContinuousBernoulliDecoder,
        decoders.GaussianDecoder,
        decoders.PixelwiseGaussianDecoder,
        networks.MLP,
        networks.ConvNet,
        networks.DeconvNet,
        data.AsIs,
        data.Binarize,
        data.Dequantize,
        data.Standardize,
    )
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (nn.ELU, nn.GELU, nn.LeakyReLU, nn.ReLU, nn.SiLU, nn.Softplus, nn.Tanh)
}


def to_config(value: Any) -> Any:
    """A part, or an argument of one, as plain data that JSON can hold.

    Raises:
        InputError: If a class is not in the table.

    Example:
        >>> to_config(priors.GaussianMixture(2, components=3))
        {'part': 'GaussianMixture', 'latent_dim': 2, 'components': 3}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [to_config(item) for item in value]
    if isinstance(value, Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, type) and ACTIVATIONS.get(value.__name__) is value:
        return {"type": value.__name__}

    name = type(value).__name__
    if PARTS.get(name) is not type(value):
        raise InputError(
            f"{name} is not one of pyrovae's own parts, so a saved run cannot name it.",
            "Give the program again when the run is loaded: pyrovae.load(run, program=...).",
        )
    arguments = {key: to_config(getattr(value, key)) for key in signature(type(value)).parameters}
    return {"part": name, **arguments}


def from_config(config: Any) -> Any:
    """What `to_config` described, built anew.

    Raises:
        InputError: If it names no part of the table, or arguments that the part does not take.

    Example:
        >>> from_config({"part": "StandardNormal", "latent_dim": 2})
        StandardNormal()
    """
    if isinstance(config, list):
        return tuple(from_config(item) for item in config)
    if not isinstance(config, Mapping):
        return config
    if "type" in config:
        return _look_up(ACTIVATIONS, config["type"])
    if "tensor" in config:
        return _build(torch.tensor, {"data": config["tensor"]})

    arguments = {key: from_config(value) for key, value in config.items() if key != "part"}
    return _build(_look_up(PARTS, config.get("part")), arguments)


def _build(make: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return make(**arguments)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"A {make.__name__} cannot be built from {sorted(arguments)} ({error}).",
            "Restore the run's config.json, or give the program when the run is loaded.",
        ) from error


def _look_up(table: Mapping[str, type], name: Any) -> type:
    if not isinstance(name, str) or name not in table:
        raise InputError(
            f"The configuration names {name!r}, which is no part of pyrovae.",
            "Restore the run's config.json, or give the program when the run is loaded.",
        )
    return table[name]

"""The networks of an encoder and of a decoder, of one choice."""

__all__ = ["OF_SEQUENCES", "MakeNetwork", "Shape", "networks_of"]

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from pyrovae import catalogue, networks
from pyrovae.building.choices import Choice, called
from pyrovae.errors import InputError

Shape = tuple[int, ...]
MakeNetwork = Callable[[Shape, Shape], nn.Module]

# Networks of images, and of sequences, alone.
OF_IMAGES = frozenset({"conv", "residual-conv"})
OF_SEQUENCES = frozenset({"gru", "lstm"})


def networks_of(
    network: Choice, hidden: int | None, x_shape: Shape
) -> tuple[MakeNetwork, MakeNetwork]:
    """The networks of an encoder and of a decoder, as functions of their shapes.

    Raises:
        InputError: If there are none of that name, they are not for data of this shape, or have
            no hidden layer of which a width is given.
    """
    encoder = decoder = network.resolve("network")
    if network.name in catalogue.NETWORKS:
        decoder = getattr(networks, catalogue.NETWORKS[network.name][1])
    _check_shape(network.name, x_shape)
    options = {**catalogue.SET_BY_WORD.get(network.name, {}), **network.options}
    if hidden is not None:
        options["hidden"] = _widths(encoder, hidden, network)
    shared = _shared(options, encoder, decoder)
    if network.name in OF_SEQUENCES:
        shared["steps"] = x_shape[0]
    return partial(_network, encoder, options), partial(_network, decoder, shared)


def _network(
    cls: Callable[..., Any], options: Mapping[str, Any], in_shape: Shape, out_shape: Shape
) -> nn.Module:
    """A network of one class, for one input and one output."""
    return called(cls, {"in_shape": in_shape, "out_shape": out_shape}, options)


def _widths(cls: Callable[..., Any], hidden: int, network: Choice) -> int | tuple[int, ...]:
    """The widths of a network's hidden layers, all alike and as many as by its default."""
    parameters = signature(cls).parameters
    if "hidden" not in parameters:
        raise InputError(
            f"The network {network.name} has no hidden layer whose width could be given.",
            "Leave --hidden out, or take another, such as conv.",
        )
    if "hidden" in network.options:
        raise InputError("The hidden layers are given twice.", "Leave one of the two out.")
    default = parameters["hidden"].default
    return (hidden,) * len(default) if isinstance(default, tuple) else hidden


def _shared(
    options: Mapping[str, Any], encoder: Callable[..., Any], decoder: Callable[..., Any]
) -> dict[str, Any]:
    """The options that a decoder's network has too, its layers backwards where they differ."""
    first, second = (
        {name: parameter.default for name, parameter in signature(cls).parameters.items()}
        for cls in (encoder, decoder)
    )
    same = {name for name in first.keys() & second.keys() if first[name] == second[name]}
    turned = {n for n in (first.keys() & second.keys()) - same if isinstance(first[n], tuple)}
    if turned & options.keys():
        # Layers of which one thing is said are the encoder's in all else, too.
        options = {**{name: first[name] for name in turned}, **options}
    backwards = {name: tuple(options[name])[::-1] for name in turned & options.keys()}
    return {name: options[name] for name in same & options.keys()} | backwards


def _check_shape(network: str, x_shape: Shape) -> None:
    """Refuses networks of images, or of sequences, for other data."""
    if network in OF_IMAGES and len(x_shape) != 3:
        raise InputError(
            f"Convolutions need images, and the data are of shape {x_shape}.",
            "Take --network mlp.",
        )
    if network in OF_SEQUENCES and len(x_shape) != 2:
        raise InputError(
            f"A {network.upper()} needs sequences (N, T, X), and an observation is of shape "
            f"{x_shape}.",
            "Take --network mlp, or load them with sequences=True.",
        )

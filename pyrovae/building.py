"""Building a VAE of our own parts from names, for the command line.

The Python API takes parts as objects; only here does a word stand for a class.
"""

__all__ = ["DECODERS", "ENCODERS", "NETWORKS", "PRIORS", "build_vae", "default_decoder"]

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pyrovae.data import Binarize, Data, Dequantize
from pyrovae.decoders import (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    GaussianDecoder,
    PixelwiseGaussianDecoder,
)
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.models import VAE
from pyrovae.networks import MLP, ConvNet, DeconvNet
from pyrovae.priors import DiagonalGaussian, GaussianMixture, StandardNormal

Shape = tuple[int, ...]
MakeNetwork = Callable[[Shape, Shape], nn.Module]

PRIORS: Mapping[str, Callable[[int], nn.Module]] = {
    "standard-normal": StandardNormal,
    "diagonal-gaussian": DiagonalGaussian,
    "gaussian-mixture": GaussianMixture,
}
ENCODERS: Mapping[str, Callable[[nn.Module], nn.Module]] = {"gaussian": GaussianEncoder}


def _mlps(hidden: int | None) -> tuple[MakeNetwork, MakeNetwork]:
    width = (400 if hidden is None else hidden,)
    return (lambda i, o: MLP(i, o, hidden=width)), (lambda i, o: MLP(i, o, hidden=width))


def _convolutions(hidden: int | None) -> tuple[MakeNetwork, MakeNetwork]:
    width = 32 if hidden is None else hidden
    return (lambda i, o: ConvNet(i, o, hidden=width)), DeconvNet


# For each name the networks of an encoder and of a decoder, as functions of their shapes.
NETWORKS: Mapping[str, Callable[[int | None], tuple[MakeNetwork, MakeNetwork]]] = {
    "mlp": _mlps,
    "conv": _convolutions,
}


def _bernoulli(make: MakeNetwork, latent: Shape, data: Data) -> nn.Module:
    return BernoulliDecoder(make(latent, data.x_shape))


def _continuous_bernoulli(make: MakeNetwork, latent: Shape, data: Data) -> nn.Module:
    return ContinuousBernoulliDecoder(make(latent, data.x_shape))


def _gaussian(make: MakeNetwork, latent: Shape, data: Data) -> nn.Module:
    net = make(latent, data.x_shape)
    return GaussianDecoder(net, scale=0.5, learn_scale=True, min_scale=_quantum(data))


def _pixelwise_gaussian(make: MakeNetwork, latent: Shape, data: Data) -> nn.Module:
    channels, *rest = data.x_shape
    return PixelwiseGaussianDecoder(make(latent, (2 * channels, *rest)), min_scale=_quantum(data))


DECODERS: Mapping[str, Callable[[MakeNetwork, Shape, Data], nn.Module]] = {
    "bernoulli": _bernoulli,
    "continuous-bernoulli": _continuous_bernoulli,
    "gaussian": _gaussian,
    "pixelwise-gaussian": _pixelwise_gaussian,
}


def _quantum(data: Data) -> float:
    """The standard deviation of a uniform over one level of the data: a floor under a scale."""
    preprocessing = data.preprocessing
    levels = preprocessing.levels if isinstance(preprocessing, Dequantize) else 256

    return 1 / levels / math.sqrt(12)


def default_decoder(data: Data) -> str:
    """A Bernoulli for binary data, a Gaussian with a learned shared scale for all others."""
    binary = data.values == "binary" or isinstance(data.preprocessing, Binarize)
    return "bernoulli" if binary else "gaussian"


def build_vae(
    data: Data,
    *,
    prior: str = "standard-normal",
    encoder: str = "gaussian",
    decoder: str | None = None,
    network: str = "mlp",
    hidden: int | None = None,
    latent_dim: int = 50,
    beta: float = 1.0,
) -> VAE:
    """A VAE for a data set, of the parts that the words name.

    Raises:
        InputError: If a word names no part, a size is not positive, or the networks are for
            images and the data are not.
    """
    for name, size in (("latent_dim", latent_dim), ("hidden", hidden)):
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}.", "Give at least 1.")
    if beta < 0:
        raise InputError(f"beta is {beta}.", "Give 0 or more.")
    if network == "conv" and len(data.x_shape) != 3:
        raise InputError(
            f"Convolutions need images, and the data are of shape {data.x_shape}.",
            "Take --network mlp.",
        )

    encode, decode = _named(NETWORKS, "network", network)(hidden)
    make_decoder = _named(DECODERS, "decoder", decoder or default_decoder(data))
    return VAE(
        prior=_named(PRIORS, "prior", prior)(latent_dim),
        decoder=make_decoder(decode, (latent_dim,), data),
        encoder=_named(ENCODERS, "encoder", encoder)(encode(data.x_shape, (2 * latent_dim,))),
        beta=beta,
    )


def _named(table: Mapping[str, Any], kind: str, name: str) -> Any:
    if name not in table:
        raise InputError(f"There is no {kind} {name!r}.", f"Take one of {', '.join(table)}.")
    return table[name]

"""Variational autoencoders as probabilistic programs, in Pyro.

A part is a module whose forward pass returns a distribution; a model is a Pyro program that
samples from parts; everything else works on any (model, guide) pair. The public names below
are imported when they are first used, so that importing pyrovae is fast and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrovae.data import Batch, Examples, load_data
    from pyrovae.decoders import (
        BernoulliDecoder,
        ContinuousBernoulliDecoder,
        GaussianDecoder,
        PixelwiseGaussianDecoder,
    )
    from pyrovae.encoders import GaussianEncoder
    from pyrovae.errors import CheckpointError, InputError, NonFiniteError, PyrovaeError
    from pyrovae.evaluation import Evaluation, evaluate
    from pyrovae.generation import decode, interpolate, manifold, reconstruct, sample, traverse
    from pyrovae.handlers import kl_weight, register
    from pyrovae.models import VAE
    from pyrovae.networks import MLP, ConvNet, DeconvNet
    from pyrovae.priors import DiagonalGaussian, GaussianMixture, StandardNormal
    from pyrovae.runs import Run, load
    from pyrovae.svi import CompiledSVI
    from pyrovae.training import fit

__version__ = "0.1.0"

_HOMES = {
    "data": ("Batch", "Examples", "load_data"),
    "decoders": (
        "BernoulliDecoder",
        "ContinuousBernoulliDecoder",
        "GaussianDecoder",
        "PixelwiseGaussianDecoder",
    ),
    "encoders": ("GaussianEncoder",),
    "errors": ("CheckpointError", "InputError", "NonFiniteError", "PyrovaeError"),
    "evaluation": ("Evaluation", "evaluate"),
    "generation": ("decode", "interpolate", "manifold", "reconstruct", "sample", "traverse"),
    "handlers": ("kl_weight", "register"),
    "models": ("VAE",),
    "networks": ("MLP", "ConvNet", "DeconvNet"),
    "priors": ("DiagonalGaussian", "GaussianMixture", "StandardNormal"),
    "runs": ("Run", "load"),
    "svi": ("CompiledSVI",),
    "training": ("fit",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "MLP",
    "VAE",
    "Batch",
    "BernoulliDecoder",
    "CheckpointError",
    "CompiledSVI",
    "ContinuousBernoulliDecoder",
    "ConvNet",
    "DeconvNet",
    "DiagonalGaussian",
    "Evaluation",
    "Examples",
    "GaussianDecoder",
    "GaussianEncoder",
    "GaussianMixture",
    "InputError",
    "NonFiniteError",
    "PixelwiseGaussianDecoder",
    "PyrovaeError",
    "Run",
    "StandardNormal",
    "decode",
    "evaluate",
    "fit",
    "interpolate",
    "kl_weight",
    "load",
    "load_data",
    "manifold",
    "reconstruct",
    "register",
    "sample",
    "traverse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")
    return getattr(import_module(f"pyrovae.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

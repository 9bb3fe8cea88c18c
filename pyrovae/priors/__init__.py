r"""Priors $p(z)$: modules whose forward pass returns a distribution of event shape $(D,)$."""

__all__ = [
    "DiagonalGaussian",
    "GaussianMixture",
    "PowerSphericalPrior",
    "SphericalUniformPrior",
    "StandardNormal",
    "VonMisesFisherPrior",
]

from pyrovae.priors.gaussian import DiagonalGaussian, StandardNormal
from pyrovae.priors.mixtures import GaussianMixture
from pyrovae.priors.spherical import (
    PowerSphericalPrior,
    SphericalUniformPrior,
    VonMisesFisherPrior,
)

r"""Priors $p(z)$: modules whose forward pass returns a distribution of event shape $(D,)$."""

__all__ = [
    "BernoulliPrior",
    "CategoricalPrior",
    "DiagonalGaussian",
    "FlowPrior",
    "GaussianMixture",
    "PowerSphericalPrior",
    "RealNVPPrior",
    "RelaxedBernoulliPrior",
    "RelaxedCategoricalPrior",
    "SphericalUniformPrior",
    "SplineFlowPrior",
    "StandardNormal",
    "VonMisesFisherPrior",
]

from pyrovae.priors.discrete import (
    BernoulliPrior,
    CategoricalPrior,
    RelaxedBernoulliPrior,
    RelaxedCategoricalPrior,
)
from pyrovae.priors.flows import FlowPrior, RealNVPPrior, SplineFlowPrior
from pyrovae.priors.gaussian import DiagonalGaussian, StandardNormal
from pyrovae.priors.mixtures import GaussianMixture
from pyrovae.priors.spherical import (
    PowerSphericalPrior,
    SphericalUniformPrior,
    VonMisesFisherPrior,
)

r"""Priors $p(z)$: modules whose forward pass returns a distribution of event shape $(D,)$."""

__all__ = [
    "AutoregressiveGaussianPrior",
    "BernoulliPrior",
    "CategoricalPrior",
    "DiagonalGaussian",
    "ExemplarPrior",
    "FlowPrior",
    "GaussianMixture",
    "LaplacePrior",
    "PowerSphericalPrior",
    "RealNVPPrior",
    "RelaxedBernoulliPrior",
    "RelaxedCategoricalPrior",
    "SphericalUniformPrior",
    "SplineFlowPrior",
    "StandardNormal",
    "StudentTPrior",
    "UniformPrior",
    "VampPrior",
    "VonMisesFisherPrior",
]

from pyrovae.priors.autoregressive import AutoregressiveGaussianPrior
from pyrovae.priors.discrete import (
    BernoulliPrior,
    CategoricalPrior,
    RelaxedBernoulliPrior,
    RelaxedCategoricalPrior,
)
from pyrovae.priors.encoded import ExemplarPrior, VampPrior
from pyrovae.priors.factorized import (
    DiagonalGaussian,
    LaplacePrior,
    StandardNormal,
    StudentTPrior,
    UniformPrior,
)
from pyrovae.priors.flows import FlowPrior, RealNVPPrior, SplineFlowPrior
from pyrovae.priors.mixtures import GaussianMixture
from pyrovae.priors.spherical import (
    PowerSphericalPrior,
    SphericalUniformPrior,
    VonMisesFisherPrior,
)

r"""Priors $p(z)$: modules whose forward pass returns a distribution of event shape $(D,)$.

A prior $p(z_1 \mid z_2)$ takes its parents in that pass, as `GaussianEncoder(net)(z2)` does: every
part that takes an argument is one. Those here have no parents.
"""

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

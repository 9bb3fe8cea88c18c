r"""Encoders $q(z \mid x)$: modules whose forward pass returns a distribution over $(D,)$.

Where a latent is no real vector of the order of one, the encoder says in `latents` what it is:
bits, codes or unit vectors.
"""

__all__ = [
    "LOG_SCALE_BOUNDS",
    "BernoulliEncoder",
    "BetaEncoder",
    "CategoricalEncoder",
    "FullCovarianceGaussianEncoder",
    "GaussianEncoder",
    "IAFEncoder",
    "LowRankGaussianEncoder",
    "MixtureEncoder",
    "PowerSphericalEncoder",
    "RefinedEncoder",
    "RelaxedBernoulliEncoder",
    "RelaxedCategoricalEncoder",
    "SplineFlowEncoder",
    "StraightThroughBernoulliEncoder",
    "StraightThroughCategoricalEncoder",
    "VonMisesFisherEncoder",
]

from pyrovae.encoders.box import BetaEncoder
from pyrovae.encoders.correlated import FullCovarianceGaussianEncoder, LowRankGaussianEncoder
from pyrovae.encoders.discrete import (
    BernoulliEncoder,
    CategoricalEncoder,
    RelaxedBernoulliEncoder,
    RelaxedCategoricalEncoder,
    StraightThroughBernoulliEncoder,
    StraightThroughCategoricalEncoder,
)
from pyrovae.encoders.flows import IAFEncoder, SplineFlowEncoder
from pyrovae.encoders.gaussian import GaussianEncoder
from pyrovae.encoders.mixtures import MixtureEncoder
from pyrovae.encoders.outputs import LOG_SCALE_BOUNDS
from pyrovae.encoders.refined import RefinedEncoder
from pyrovae.encoders.spherical import PowerSphericalEncoder, VonMisesFisherEncoder

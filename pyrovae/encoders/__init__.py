r"""Encoders $q(z \mid x)$: modules whose forward pass returns a distribution over $(D,)$."""

__all__ = [
    "LOG_SCALE_BOUNDS",
    "BernoulliEncoder",
    "CategoricalEncoder",
    "GaussianEncoder",
    "PowerSphericalEncoder",
    "RelaxedBernoulliEncoder",
    "RelaxedCategoricalEncoder",
    "StraightThroughBernoulliEncoder",
    "StraightThroughCategoricalEncoder",
    "VonMisesFisherEncoder",
]

from pyrovae.encoders.discrete import (
    BernoulliEncoder,
    CategoricalEncoder,
    RelaxedBernoulliEncoder,
    RelaxedCategoricalEncoder,
    StraightThroughBernoulliEncoder,
    StraightThroughCategoricalEncoder,
)
from pyrovae.encoders.gaussian import LOG_SCALE_BOUNDS, GaussianEncoder
from pyrovae.encoders.spherical import PowerSphericalEncoder, VonMisesFisherEncoder

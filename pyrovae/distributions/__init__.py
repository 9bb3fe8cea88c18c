"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = [
    "LOG_CONCENTRATION_BOUNDS",
    "ContinuousBernoulli",
    "OneHotGroups",
    "PowerSpherical",
    "RelaxedBernoulli",
    "RelaxedOneHotGroups",
    "SphericalUniform",
    "StraightThroughBernoulli",
    "StraightThroughOneHotGroups",
    "VonMisesFisher",
    "check_classes",
    "check_sphere",
    "check_temperature",
]

from pyrovae.distributions.arguments import check_classes, check_sphere, check_temperature
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.one_hot import OneHotGroups
from pyrovae.distributions.relaxed import RelaxedBernoulli, RelaxedOneHotGroups
from pyrovae.distributions.spherical import (
    LOG_CONCENTRATION_BOUNDS,
    PowerSpherical,
    SphericalUniform,
)
from pyrovae.distributions.straight_through import (
    StraightThroughBernoulli,
    StraightThroughOneHotGroups,
)
from pyrovae.distributions.von_mises_fisher import VonMisesFisher

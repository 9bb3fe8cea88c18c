"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = [
    "LOG_CONCENTRATION_BOUNDS",
    "ContinuousBernoulli",
    "PowerSpherical",
    "SphericalUniform",
    "VonMisesFisher",
    "check_dim",
]

from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.spherical import (
    LOG_CONCENTRATION_BOUNDS,
    PowerSpherical,
    SphericalUniform,
    check_dim,
)
from pyrovae.distributions.von_mises_fisher import VonMisesFisher

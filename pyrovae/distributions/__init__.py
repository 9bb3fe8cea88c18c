"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = [
    "ContinuousBernoulli",
    "NormalMixture",
    "Weighted",
    "exact_kl",
    "factorizes",
    "unweighted",
]

from pyrovae.distributions import gaussian_kl as gaussian_kl  # it registers KLs
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.factors import exact_kl, factorizes
from pyrovae.distributions.normal_mixture import NormalMixture
from pyrovae.distributions.weighted import Weighted, unweighted

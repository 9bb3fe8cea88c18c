"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = ["ContinuousBernoulli", "Weighted", "exact_kl", "factorizes", "unweighted"]

from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.factors import exact_kl, factorizes
from pyrovae.distributions.weighted import Weighted, unweighted

"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = ["ContinuousBernoulli", "NormalMixture"]

from pyrovae.distributions import gaussian_kl as gaussian_kl  # it registers KLs
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.normal_mixture import NormalMixture

"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = ["Autoregressive", "ContinuousBernoulli"]

from pyrovae.distributions.autoregressive import Autoregressive
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli

"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = ["ContinuousBernoulli"]

from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli

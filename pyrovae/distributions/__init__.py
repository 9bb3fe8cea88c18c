"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = ["Codes", "ContinuousBernoulli", "MixedColumns", "NanMasked"]

from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.mixed_columns import Codes, MixedColumns
from pyrovae.distributions.nan_masked import NanMasked

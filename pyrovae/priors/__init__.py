r"""Priors $p(z)$: modules whose forward pass returns a distribution of event shape $(D,)$."""

__all__ = ["DiagonalGaussian", "GaussianMixture", "StandardNormal"]

from pyrovae.priors.gaussian import DiagonalGaussian, StandardNormal
from pyrovae.priors.mixtures import GaussianMixture

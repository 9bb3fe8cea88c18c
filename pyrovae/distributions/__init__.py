"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = [
    "Autoregressive",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Multinomial",
    "NegativeBinomial",
    "NormalMixture",
    "Poisson",
    "StudentT",
    "Weighted",
    "exact_kl",
    "factorizes",
    "unweighted",
]

from pyrovae.distributions import gaussian_kl as gaussian_kl  # it registers KLs
from pyrovae.distributions.autoregressive import Autoregressive
from pyrovae.distributions.beta import Beta
from pyrovae.distributions.categorical import Categorical
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.counts import Multinomial, NegativeBinomial, Poisson
from pyrovae.distributions.discretized_logistic import (
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyrovae.distributions.factors import exact_kl, factorizes
from pyrovae.distributions.normal_mixture import NormalMixture
from pyrovae.distributions.student_t import StudentT
from pyrovae.distributions.weighted import Weighted, unweighted

"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = [
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
]

from pyrovae.distributions.beta import Beta
from pyrovae.distributions.categorical import Categorical
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.counts import Multinomial, NegativeBinomial, Poisson
from pyrovae.distributions.discretized_logistic import (
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyrovae.distributions.student_t import StudentT

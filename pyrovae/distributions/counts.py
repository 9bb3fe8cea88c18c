r"""Distributions of counts that keep their digits in float32.

torch's own take $\log \Gamma$ of counts and rates from one another, and are off by 0.1 nats for
every count of $10^5$, more than a change of the model is worth.
"""

__all__ = ["Multinomial", "NegativeBinomial", "Poisson", "ZeroInflated"]

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.stirling import HALF_LOG_TWO_PI, deviance, stirling_error


def _log_poisson(value: Tensor, log_rate: Tensor) -> Tensor:
    r"""$-D - \tfrac12 \log 2 \pi x - \delta(x)$, with $D$ the deviance of x from the rate."""
    some = torch.where(value > 0, value, 1.0)
    log_some = some.log()
    misfit = deviance(some, log_rate - log_some)
    found = -misfit - 0.5 * log_some - HALF_LOG_TWO_PI - stirling_error(some)

    return torch.where(value > 0, found, -log_rate.exp())


class Poisson(dist.Poisson):
    r"""The probabilities $\lambda^x e^{-\lambda} / x!$ of counts.

    Args:
        rate: The mean $\lambda > 0$.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_poisson(value, self.rate.log())


class NegativeBinomial(dist.NegativeBinomial):
    r"""A Poisson whose rate is drawn from a Gamma: counts that vary more than their mean.

    $$p(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta) \, x!}
    \left(\frac{\theta}{\theta + \mu}\right)^\theta \left(\frac{\mu}{\theta + \mu}\right)^x,
    \qquad \mathrm{Var}(x) = \mu + \mu^2 / \theta$$

    Args:
        total_count: The Gamma's concentration $\theta > 0$, the inverse dispersion.
        logits: $\log \mu - \log \theta$, for the mean $\mu$.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        theta, some = self.total_count, torch.where(value > 0, value, 1.0)
        log_share, log_rest = F.logsigmoid(self.logits), F.logsigmoid(-self.logits)

        log_trials = torch.log1p(some / theta)  # beside θ
        # Of x + θ trials the shares of x and of θ, beside those that are expected.
        misfit = deviance(some, torch.log1p(theta / some) + log_share)
        misfit = misfit + deviance(theta, log_trials + log_rest)
        spread = -0.5 * (some.log() + log_trials) - HALF_LOG_TWO_PI
        errors = stirling_error(some + theta) - stirling_error(theta) - stirling_error(some)

        return torch.where(value > 0, spread + errors - misfit, theta * log_rest)


class ZeroInflated(dist.ZeroInflatedDistribution):
    r"""Counts and further zeros: $\pi 1_{x = 0} + (1 - \pi) \, p(x)$.

    Pyro's own remembers $\pi$ once it was drawn from, or its mean was asked for. From then on it
    takes $\log (1 - \pi)$ of that, which in float32 is off by 0.1 nats where $\pi$ is nearly 1,
    and cannot be expanded.

    Args:
        base_dist: The distribution $p$ of counts.
        gate_logits: The logits of $\pi$.
    """

    arg_constraints = {"gate_logits": constraints.real}  # noqa: RUF012  # pyright: ignore

    @property
    def gate(self) -> Tensor:  # pyright: ignore
        r"""The probability $\pi$ of a further zero."""
        return torch.sigmoid(self.gate_logits)  # pyright: ignore

    @property
    def mean(self) -> Tensor:
        r"""$(1 - \pi) \, E[x]$."""
        return self._share * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        r"""$(1 - \pi) (\mathrm{Var}[x] + \pi \, E[x]^2)$."""
        of_base = self.base_dist
        return self._share * (of_base.variance + self.gate * of_base.mean.square())

    @property
    def _share(self) -> Tensor:
        # Not 1 less the gate, of which float32 has nothing left where that is nearly 1.
        return torch.sigmoid(-self.gate_logits)  # pyright: ignore


class Multinomial(dist.Multinomial):
    r"""The probabilities of counts given their total, which is x's own.

    $$p(x) = \frac{n!}{\prod_i x_i!} \prod_i p_i^{x_i}
    = \prod_i \mathrm{Poisson}(x_i \mid n p_i) \Big/ \mathrm{Poisson}(n \mid n),
    \qquad n = \sum_i x_i$$

    Args:
        total_count: The total of what is drawn, and of the mean.
        logits: The logits of $p$, with shape $(*, X)$.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  # pyright: ignore
    support = constraints.independent(constraints.nonnegative_integer, 1)  # pyright: ignore

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, in nats, of every event given its own total."""
        if self._validate_args:
            self._validate_sample(value)
        total = value.sum(-1, keepdim=True)
        # An empty event is certain: with any rate the two factors are the same.
        log_total = total.clamp(min=1).log()
        counts = _log_poisson(value, log_total + self.logits).sum(-1)

        return counts - _log_poisson(total, log_total).squeeze(-1)

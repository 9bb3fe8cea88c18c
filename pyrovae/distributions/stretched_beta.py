r"""The beta distribution on an interval of any ends."""

__all__ = ["StretchedBeta"]

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Uniform, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all

from pyrovae.distributions.beta import Beta

# Draws keep this share of the interval from its ends, which float32 tells from them.
MARGIN = 2.0**-22


class StretchedBeta(dist.TorchDistribution):
    r"""The distribution of $z = a + (b - a) u$ for $u \sim \mathrm{Beta}(\alpha, \beta)$.

    $$\log p(z) = \log \mathrm{Beta}(u \mid \alpha, \beta) - \log (b - a)$$

    Draws keep $2^{-22} (b - a)$ from the ends. What would be nearer has, for
    $\alpha, \beta \ge 1$, a probability below $2^{-22} \max(\alpha, \beta)$.

    Args:
        concentration1: $\alpha > 0$.
        concentration0: $\beta > 0$.
        low: The lower end $a$.
        high: The upper end $b$.
    """

    arg_constraints = {  # noqa: RUF012  # pyright: ignore
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self,
        concentration1: Tensor,
        concentration0: Tensor,
        low: float,
        high: float,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration1, self.concentration0 = broadcast_all(concentration1, concentration0)
        self.low = low
        self.high = high
        super().__init__(self.concentration1.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "StretchedBeta":
        """The same distribution over a larger batch."""
        alpha, beta = self.concentration1, self.concentration0
        expanded = StretchedBeta(
            alpha.expand(batch_shape),
            beta.expand(batch_shape),
            self.low,
            self.high,
            validate_args=False,
        )
        expanded._validate_args = self._validate_args
        return expanded

    @property
    def width(self) -> float:
        """The length $b - a$ of the interval."""
        return self.high - self.low

    @property
    def unit(self) -> Beta:
        """The distribution of u."""
        return Beta(self.concentration1, self.concentration0, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:  # pyright: ignore
        """The interval."""
        return constraints.interval(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.low + self.width * self.unit.mean

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return self.width**2 * self.unit.variance

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        inside = ((value - self.low) / self.width).clamp(MARGIN / 2, 1 - MARGIN / 2)
        return self.unit.log_prob(inside) - math.log(self.width)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws."""
        return self.low + self.width * self.unit.rsample(sample_shape).clamp(MARGIN, 1 - MARGIN)


@register_kl(StretchedBeta, Uniform)
def _kl(q: StretchedBeta, p: Uniform) -> Tensor:
    r"""$-H(\mathrm{Beta}(\alpha, \beta)) + \log \tfrac{b_p - a_p}{b_q - a_q}$."""
    # In float32 torch's is a difference of numbers that may be a hundred thousand times as large.
    concentrations = (c.double() for c in (q.concentration1, q.concentration0))
    beta = torch.distributions.Beta(*concentrations, validate_args=False)
    of_unit = -beta.entropy().to(q.concentration1.dtype)
    within = (p.low <= q.low) & (p.high >= q.high)
    return torch.where(within, of_unit + ((p.high - p.low) / q.width).log(), math.inf)

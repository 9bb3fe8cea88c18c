"""A distribution whose dimensions count for more, or less, than they are."""

__all__ = ["Weighted", "unweighted"]

from typing import Any

import pyro.distributions as dist
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Size, Tensor
from torch.distributions import kl_divergence
from torch.distributions.kl import register_kl

from pyrovae.distributions.factors import factorizes
from pyrovae.errors import InputError


class Weighted(dist.TorchDistribution):
    r"""A factorised distribution with the log-probability $\sum_d w_d \log p(x_d)$.

    It draws as its base does. Around the prior and the posterior of a latent it gives every
    dimension's KL a weight of its own, under any bound that is written in their log-probabilities
    or in their KL.

    Args:
        base: A distribution with independent dimensions, of event shape $(D,)$.
        weight: The weights $w$, with shape $(D,)$.

    Raises:
        InputError: If the dimensions are not independent, or not as many as the weights.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, base: Any, weight: Tensor, validate_args: bool | None = None) -> None:
        if not factorizes(base) or base.event_shape != weight.shape:
            raise InputError(
                f"Weights of shape {tuple(weight.shape)} do not fit a {type(base).__name__} of "
                f"event shape {tuple(base.event_shape)}.",
                "Give one weight for each dimension, of a distribution whose dimensions are "
                "independent, or one number for all.",
            )
        self.base = base
        self.weight = weight
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore
        """Whether its draws carry gradients."""
        return self.base.has_rsample

    @property
    def support(self) -> Any:  # pyright: ignore
        """The support of the base."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """The mean of the base."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance of the base."""
        return self.base.variance

    def expand(self, batch_shape: Size, _instance: "Weighted | None" = None) -> "Weighted":
        """The same distribution over a larger batch."""
        return Weighted(self.base.expand(batch_shape), self.weight)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws of the base."""
        return self.base.sample(sample_shape)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws of the base, with their gradients."""
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The weighted log-probability, in nats."""
        return _sum(self.weight * self.base.base_dist.log_prob(value), self)

    def score_parts(self, x: Tensor) -> ScoreParts:
        """What Pyro's estimators read of a draw, whose score has no weights, as it was made."""
        log_prob = self.log_prob(x)
        # Zeros, as Pyro has them itself, are of Python.
        if self.has_rsample:
            return ScoreParts(log_prob, 0, log_prob)  # pyright: ignore[reportArgumentType]
        return ScoreParts(log_prob, self.base.log_prob(x), 0)  # pyright: ignore[reportArgumentType]


def unweighted(distribution: Any) -> Any:
    """The distribution itself, its dimensions at weight 1."""
    return distribution.base if isinstance(distribution, Weighted) else distribution


@register_kl(Weighted, Weighted)
def _kl_weighted(q: Weighted, p: Weighted) -> Tensor:
    r"""$\sum_d w_d \, \mathrm{KL}(q_d \,\|\, p_d)$, for the same weights on both sides."""
    if q.weight is not p.weight:
        raise NotImplementedError
    return _sum(q.weight * kl_divergence(q.base.base_dist, p.base.base_dist), q)


def _sum(value: Tensor, distribution: Weighted) -> Tensor:
    """A sum over the dimensions of an event."""
    return sum_rightmost(value, len(distribution.event_shape))  # pyright: ignore

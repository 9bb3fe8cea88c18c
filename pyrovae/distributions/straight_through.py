r"""Discrete draws with the gradient of a continuous relaxation.

The draw is hard and its probability is that of a discrete variable, so the bound is one of the
discrete model. Only the gradient is another's, that of the Concrete variable $s$ whose largest
entry the draw is: biased, and less so at a low temperature, where it varies more. Pyro's own
score a hard draw by the density of $s$, beside which a discrete prior has a probability.
"""

__all__ = ["StraightThroughBernoulli", "StraightThroughOneHotGroups"]

from typing import Any

import pyro.distributions as dist
from torch import Size, Tensor

from pyrovae.distributions.noise import gumbel, logistic
from pyrovae.distributions.one_hot import OneHotGroups, largest


class StraightThroughBernoulli(dist.Bernoulli):
    r"""Bits whose draws have the gradient of $s = \sigma((\eta + L) / \tau)$.

    Here $L$ is logistic noise, and the draw is 1 where $s > \tfrac12$.

    Args:
        logits: The logits $\eta$.
        temperature: The temperature $\tau > 0$ of the gradient.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144.
    """

    has_rsample = True

    def __init__(
        self, logits: Tensor, temperature: float, validate_args: bool | None = None
    ) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        expanded: Any = self._get_checked_instance(StraightThroughBernoulli, _instance)
        expanded.temperature = self.temperature
        return super().expand(batch_shape, expanded)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws of zeros and ones."""
        noisy = self.logits + logistic(self._extended_shape(sample_shape), self.logits)
        hard = (noisy > 0).to(noisy.dtype)
        return _straight_through(hard, (noisy / self.temperature).sigmoid())


class StraightThroughOneHotGroups(OneHotGroups):
    r"""One-hot codes whose draws have the gradient of $s = \mathrm{softmax}((\eta + g) / \tau)$.

    Here $g$ is Gumbel noise, and the draw is 1 where $s$ is largest.

    Args:
        logits: The logits $\eta$, with shape $(*, G, K)$.
        temperature: The temperature $\tau > 0$ of the gradient.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144.
    """

    has_rsample = True

    def __init__(
        self, logits: Tensor, temperature: float, validate_args: bool | None = None
    ) -> None:
        self.temperature = temperature
        super().__init__(logits, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        expanded = super().expand(batch_shape, _instance)
        expanded.temperature = self.temperature
        return expanded

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws of one-hot codes."""
        noisy = self.logits + gumbel((*sample_shape, *self.logits.shape), self.logits)
        soft = (noisy / self.temperature).softmax(-1)
        return _straight_through(largest(noisy), soft).flatten(-2)


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of the one, exactly, with the gradient of the other."""
    return hard + (soft - soft.detach())

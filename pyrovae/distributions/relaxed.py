r"""Concrete variables: bits and one-hot codes relaxed to the inside of an interval or a simplex.

They are continuous, and so is what a bound with them bounds: the model whose prior is relaxed.
"""

__all__ = ["RelaxedBernoulli", "RelaxedOneHotGroups", "WithEnds", "WithFaces"]

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from pyrovae.distributions.noise import gumbel, logistic
from pyrovae.distributions.one_hot import Grouped

# A relaxed bit ends here, where float32 still tells it from 1, at logits of about 15.
LOW, HIGH = 2.0**-22, 1 - 2.0**-22
LIMIT = math.log(HIGH / LOW)
# No logarithm of an entry of a relaxed code is further below that of the largest: far from the
# smallest that float32 has, -87, for any number of classes. The logarithm of the entry itself is
# this to rounding, of which the second is a bound.
DEPTH, ROUNDING = 80.0, 1e-3


class WithEnds(type(constraints.unit_interval)):
    """An interval whose ends have a probability, and what lies between them a density."""


class WithFaces(type(constraints.simplex)):
    """A simplex whose faces have a probability, and what lies between them a density."""


class RelaxedBernoulli(dist.TorchDistribution):
    r"""The binary Concrete distribution: $z = \sigma(y)$, $y = (\eta + L) / \tau$, $L$ logistic.

    $$\log p(z) = \log\tau + \log\sigma(\tau y - \eta) + \log\sigma(\eta - \tau y)
    - \log z (1 - z), \qquad y = \mathrm{logit}(z)$$

    Floating point has few numbers next to 1, so $z$ is kept within $2^{-22}$ of 0 and 1, $|y|$
    below about 15. What lies beyond is the probability of the two ends, and $\log p(z)$ there
    is its logarithm. So the ratio of two such distributions is right, however sharp they are;
    that of densities at a clamped value, torch's, is not, nor is that to a density without such
    ends, as a Gaussian's, which is refused. Gradients by draws leave out what
    crosses an end as the logits change: of a KL to even bits with $\tau \ge \tfrac12$, below a
    percent where $|\eta| \le 10 \tau$, and about a tenth at $14 \tau$.

    Args:
        logits: The logits $\eta$.
        temperature: The temperature $\tau > 0$.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012  # pyright: ignore
    support = WithEnds(LOW, HIGH)  # pyright: ignore
    has_rsample = True

    def __init__(
        self, logits: Tensor, temperature: float, validate_args: bool | None = None
    ) -> None:
        (self.logits,) = broadcast_all(logits)
        self.temperature = temperature
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "RelaxedBernoulli":
        """The same distribution over a larger batch."""
        expanded = RelaxedBernoulli(
            self.logits.expand(batch_shape), self.temperature, validate_args=False
        )
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density in nats, or the log-probability of an end."""
        if self._validate_args:
            self._validate_sample(value)
        y = value.clamp(LOW, HIGH).logit()
        shift = self.temperature * y - self.logits
        log_density = (
            math.log(self.temperature)
            + F.logsigmoid(shift)
            + F.logsigmoid(-shift)
            # The logarithm of dy / dz.
            + F.softplus(y)
            + F.softplus(-y)
        )
        end = self.temperature * LIMIT
        low, high = F.logsigmoid(-end - self.logits), F.logsigmoid(self.logits - end)
        return torch.where(value > LOW, torch.where(value < HIGH, log_density, high), low)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws."""
        noise = logistic(self._extended_shape(sample_shape), self.logits)
        return ((self.logits + noise) / self.temperature).sigmoid().clamp(LOW, HIGH)


class RelaxedOneHotGroups(dist.TorchDistribution):
    r"""G Concrete variables of K classes, each on its simplex, as one vector of length $G K$.

    $$z_g = \mathrm{softmax}((\eta_g + \text{Gumbel noise}) / \tau)$$

    $$\log p(z_g) = \log (n - 1)! + (n - 1) \log\tau
    + \sum_{k: z_{gk} > \epsilon} (\eta_{gk} - (\tau + 1) \log z_{gk})
    - n \log \sum_k e^{\eta_{gk}} z_{gk}^{-\tau}$$

    It is a density of the first K - 1 entries where all n = K entries are above $\epsilon =
    e^{-80} \max_k z_{gk}$. What is below, where floating point soon ends, is put there, on a face
    of the simplex: the n entries that are left have a density within it, and the others the
    probability of being no larger. So the ratio of two such distributions is right, however sharp
    they are; that of densities at a clamped value is not, nor is that to a density without such
    faces, as a Dirichlet's, which is refused. Gradients by draws leave out what comes to a face as
    the logits change, where these differ by about $80 \tau$.

    Args:
        logits: The logits $\eta$, with shape $(*, G, K)$.
        temperature: The temperature $\tau > 0$.

    References:
        The Concrete Distribution (Maddison et al., 2017), arXiv:1611.00712.
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144.
    """

    arg_constraints = {  # noqa: RUF012  # pyright: ignore
        "logits": constraints.independent(constraints.real, 2)
    }
    has_rsample = True

    def __init__(
        self, logits: Tensor, temperature: float, validate_args: bool | None = None
    ) -> None:
        self.logits = logits
        self.temperature = temperature
        groups, classes = logits.shape[-2:]
        super().__init__(logits.shape[:-2], Size((groups * classes,)), validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "RelaxedOneHotGroups":
        """The same distribution over a larger batch."""
        expanded = RelaxedOneHotGroups(
            self.logits.expand(*batch_shape, *self.logits.shape[-2:]),
            self.temperature,
            validate_args=False,
        )
        expanded._validate_args = self._validate_args
        return expanded

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Grouped:  # pyright: ignore
        """Points of simplices."""
        return Grouped(WithFaces(), self.logits.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats, of the entries that are on no face."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.unflatten(-1, (-1, self.logits.shape[-1]))
        log_value = value.clamp(min=torch.finfo(value.dtype).tiny).log()
        y = log_value - log_value.amax(-1, keepdim=True)
        inside = y > ROUNDING - DEPTH
        score = self.logits - self.temperature * y.clamp(min=-DEPTH)
        number = inside.sum(-1).to(value.dtype)
        of_inside = torch.where(inside, score - log_value, 0.0).sum(-1)
        constant = number.lgamma() + (number - 1) * math.log(self.temperature)
        return (constant + of_inside - number * score.logsumexp(-1)).sum(-1)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws."""
        noise = gumbel((*sample_shape, *self.logits.shape), self.logits)
        y = (self.logits + noise) / self.temperature
        y = y - y.amax(-1, keepdim=True)
        return y.clamp(min=-DEPTH).softmax(-1).flatten(-2)

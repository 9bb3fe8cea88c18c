"""Mixtures of many components."""

__all__ = ["Mixture"]

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Size, Tensor

from pyrovae.distributions.recomputed import in_blocks

# How many log-densities, of one value under one component, are made at a time of Gaussians; and
# of how many elements, of components of which nothing is known and each of which may take the
# passes of several networks. So many elements of a flow take half a GiB in training, and fewer
# at a time are faster than more, whose tensors are too large to be kept from one to the next.
BLOCK = 2**22
ELEMENTS_OF_OTHERS = 2**18


class Mixture(dist.MixtureSameFamily):
    r"""The density $p(z) = \sum_k \pi_k \, p_k(z)$, also of hundreds of components.

    torch's own makes a tensor $(*, K, D)$ of the distances of all values from all components,
    and draws from every component to keep one. Where the components are Gaussian with diagonal
    covariances, the square is multiplied out here into products of matrices,

    $$\sum_d \frac{(z_d - \mu_{kd})^2}{\sigma_{kd}^2} = \sum_d \big( z_d^2 \, \sigma_{kd}^{-2}
    - 2 z_d \, \mu_{kd} \sigma_{kd}^{-2} + \mu_{kd}^2 \sigma_{kd}^{-2} \big),$$

    and nothing is larger than $(*, K)$. They are computed in float64, since in float32 the three
    terms of narrow components would cancel to noise, and from the middle of the components. Over a
    larger batch it is the same components that are looked at, not copies of them.

    Components of other kinds, as the flows of a VampPrior's encoder, are asked for the
    log-densities of 262,144 elements at a time, and in training these are computed again for
    their gradients rather than kept: time grows with values and components, and memory does not.

    Args:
        mixture_distribution: A Categorical of batch shape $(*)$ over K components.
        component_distribution: A distribution of batch shape $(*, K)$.

    Example:
        >>> component = dist.Normal(torch.zeros(500, 50), 1.0).to_event(1)
        >>> mixture = Mixture(dist.Categorical(logits=torch.zeros(500)), component)
        >>> mixture.log_prob(torch.zeros(10, 128, 50)).shape
        torch.Size([10, 128])
    """

    def expand(self, batch_shape: Size, _instance: object = None) -> ExpandedDistribution:
        """The same distribution over a larger batch."""
        return ExpandedDistribution(self, Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        if self.batch_shape:
            # Of a batch of mixtures each value is looked at by its own components alone.
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)

        batch = value.shape[: value.dim() - self.event_dim]
        value = value.reshape(-1, *self.event_shape)
        if self._is_gaussian:
            blocks = value.split(max(1, BLOCK // self._num_component))
            found = [self._gaussian_log_prob(block) for block in blocks]
        else:
            elements = self._num_component * self.event_shape.numel()
            blocks = value.split(max(1, ELEMENTS_OF_OTHERS // elements))
            score = super().log_prob
            found = in_blocks(score, blocks) if len(blocks) > 1 else [score(value)]

        return torch.cat(found).reshape(batch)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws, without gradients."""
        if not self._is_gaussian:
            return super().sample(sample_shape)

        with torch.no_grad():
            chosen = self.mixture_distribution.sample(sample_shape)
            component = self.component_distribution.base_dist
            return torch.normal(component.loc[chosen], component.scale[chosen])

    @property
    def _is_gaussian(self) -> bool:
        """Whether the components are one batch of vectors with independent normal elements."""
        component = self.component_distribution
        return (
            isinstance(component, dist.Independent)
            and isinstance(component.base_dist, dist.Normal)
            and len(component.event_shape) == len(component.batch_shape) == 1
        )

    def _gaussian_log_prob(self, value: Tensor) -> Tensor:
        """The log-density of values (N, D): (N,)."""
        component = self.component_distribution.base_dist
        loc, scale = component.loc.double(), component.scale.double()
        middle = loc.detach().mean(0)
        z, loc = value.double() - middle, loc - middle
        precision = scale**-2
        features = torch.cat([z.square(), z], dim=-1)
        weights = torch.cat([-0.5 * precision, loc * precision], dim=-1)
        constant = -0.5 * loc.square() * precision - scale.log() - 0.5 * math.log(2 * math.pi)
        log_probs = (features @ weights.T + constant.sum(-1)).to(value.dtype)

        return (self.mixture_distribution.logits + log_probs).logsumexp(-1)

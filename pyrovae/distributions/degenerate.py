"""What stands where a distribution is asked for and has no density: the flat, and points."""

__all__ = ["ImproperUniform", "innermost", "is_improper", "is_point"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class ImproperUniform(dist.ImproperUniform):
    """The flat density 1 on any support, which nothing normalises and nothing can draw from.

    Pyro's own gives its log-probability in float32 on the CPU, whatever it is asked about.

    Args:
        support: The constraint that values are under.
        batch_shape: The batch shape.
        event_shape: The event shape.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, with the dtype and on the device of the value."""
        return value.new_zeros(super().log_prob(value).shape)


def is_improper(distribution: Any) -> bool:
    """Whether a distribution is an improper uniform."""
    return isinstance(innermost(distribution), dist.ImproperUniform)


def is_point(distribution: Any) -> bool:
    """Whether a distribution is a point, without the density of what drew it."""
    base = innermost(distribution)
    return isinstance(base, dist.Delta) and not torch.as_tensor(base.log_density).any()


def innermost(distribution: Any) -> Any:
    """A distribution under whatever independence and masks are wrapped round it."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution

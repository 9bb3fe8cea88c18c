"""The uniform distribution on a closed interval."""

__all__ = ["Uniform"]

import math

import pyro.distributions as dist
import torch
from torch import Tensor


class Uniform(dist.Uniform):
    r"""The density $1 / (b - a)$ on $[a, b]$.

    torch's own is zero at $b$, which its support has in it, and which a sigmoid reaches by
    rounding.

    Args:
        low: The lower end $a$.
        high: The upper end $b$.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, -(self.high - self.low).log(), -math.inf)

"""Autoregressive distributions of real vectors."""

__all__ = ["AutoregressiveNormal"]

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Size, Tensor
from torch.distributions import constraints


class AutoregressiveNormal(dist.TorchDistribution):
    r"""The density $p(z) = \prod_d \mathcal{N}(z_d \mid \mu_d(z_{<d}), \sigma_d^2(z_{<d}))$.

    A density takes one evaluation of $\mu$ and $\sigma$. A draw takes $D$ of them: with the
    noise $\epsilon$ held, $z \leftarrow \mu(z) + \sigma(z) \epsilon$ makes one more dimension
    right each time, from the first on.

    Args:
        conditionals: A function mapping $z$ of shape $(*, D)$ to the $D$ conditionals: a Normal
            of batch shape $(*, D)$, whose element $d$ depends on $z_1, \dots, z_{d-1}$ alone.
        zeros: A $z$ to start from, with shape $(D,)$.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore
    support = constraints.real_vector  # pyright: ignore
    has_rsample = True

    def __init__(
        self,
        conditionals: Callable[[Tensor], dist.Normal],
        zeros: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.conditionals = conditionals
        self.zeros = zeros
        super().__init__(Size(), zeros.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: object = None) -> ExpandedDistribution:
        """The same distribution over a larger batch."""
        return ExpandedDistribution(self, Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.conditionals(value).log_prob(value).sum(-1)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws, one dimension after the other."""
        z = self.zeros.expand(self._extended_shape(sample_shape))
        noise = torch.randn_like(z)
        for _ in range(len(self.zeros)):
            conditional = self.conditionals(z)
            z = conditional.loc + conditional.scale * noise
        return z

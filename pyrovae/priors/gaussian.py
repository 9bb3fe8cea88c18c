"""Gaussian priors."""

__all__ = ["DiagonalGaussian", "StandardNormal"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    r"""The prior $p(z) = \mathcal{N}(z \mid 0, I)$.

    Args:
        latent_dim: The number $D$ of latent dimensions.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

        self.latent_dim = latent_dim
        # A buffer rather than a number, so that the draws follow the module's device and dtype.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return dist.Normal(self.loc, 1.0).to_event(1)


class DiagonalGaussian(nn.Module):
    r"""The learned prior $p(z) = \mathcal{N}(z \mid \mu, \mathrm{diag}(\sigma^2))$.

    Args:
        latent_dim: The number $D$ of latent dimensions.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

        self.latent_dim = latent_dim
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)

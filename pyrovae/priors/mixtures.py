"""Priors that are mixtures."""

__all__ = ["GaussianMixture"]

import math

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.checks import check_whole
from pyrovae.distributions import Mixture
from pyrovae.errors import InputError


class GaussianMixture(nn.Module):
    r"""The prior $p(z) = \sum_k \pi_k \, \mathcal{N}(z \mid \mu_k, \mathrm{diag}(\sigma_k^2))$.

    Args:
        latent_dim: The number $D$ of latent dimensions.
        components: The number $K$ of mixture components.
        spread: The standard deviation of the centres $\mu_k$ at the start, where every
            $\sigma_k$ is 1.

    Raises:
        InputError: If there is no latent dimension or no component, or the spread is not positive
            and finite.
    """

    def __init__(self, latent_dim: int, *, components: int = 10, spread: float = 1.0) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)
        check_whole(components=components)
        if not 0 < spread < math.inf:
            raise InputError(
                f"The spread of a GaussianMixture is {spread}.",
                "Give a finite one above 0: equal components would receive equal gradients.",
            )

        self.latent_dim = latent_dim
        self.components = components
        self.spread = spread
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(spread * torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        component = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)

        return Mixture(dist.Categorical(logits=self.logits), component)

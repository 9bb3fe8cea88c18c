"""Priors that are mixtures."""

__all__ = ["GaussianMixture"]

import pyro.distributions as dist
import torch
from torch import nn


class GaussianMixture(nn.Module):
    r"""The prior $p(z) = \sum_k \pi_k \, \mathcal{N}(z \mid \mu_k, \mathrm{diag}(\sigma_k^2))$.

    Args:
        latent_dim: The number $D$ of latent dimensions.
        components: The number $K$ of mixture components.
    """

    def __init__(self, latent_dim: int, *, components: int = 10) -> None:
        super().__init__()

        self.latent_dim = latent_dim
        self.components = components
        self.logits = nn.Parameter(torch.zeros(components))
        # The components start apart: equal ones would receive equal gradients for ever.
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        component = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)

        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), component)

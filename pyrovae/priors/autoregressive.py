"""Autoregressive priors."""

__all__ = ["AutoregressiveGaussianPrior"]

import warnings
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.distributions import AutoregressiveNormal
from pyrovae.drawn import DrawnWeights, weight_ranks
from pyrovae.errors import InputError
from pyrovae.networks import smooth_clamp

# Bounds on every log σ, as wide as those of a Gaussian encoder.
LOG_SCALE_BOUNDS = (-7.0, 3.5)


class AutoregressiveGaussianPrior(nn.Module):
    r"""The prior $p(z) = \prod_d \mathcal{N}(z_d \mid \mu_d(z_{<d}), \sigma_d^2(z_{<d}))$.

    One masked network gives all $\mu_d$ and $\log \sigma_d$ at once, the latter kept smoothly
    within (-7, 3.5): a density costs one pass of it, and a draw $D$ passes. It has no mean in
    closed form.

    Args:
        latent_dim: The number $D$ of latent dimensions.
        hidden: The widths of the hidden layers, each at least $D$.
        activation: The class of the nonlinearity.

    Raises:
        InputError: If there is no latent dimension or no hidden layer, or one is narrower than
            $z$.

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015),
        arXiv:1502.03509.
        Variational Lossy Autoencoder (Chen et al., 2017), arXiv:1611.02731.
    """

    zeros: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        hidden: Sequence[int] = (128,),
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)
        if not hidden or min(hidden) < latent_dim:
            raise InputError(
                f"Hidden layers of {tuple(hidden)} units are none, or too narrow for z.",
                f"Give one or more, each of at least {latent_dim} units.",
            )

        self.latent_dim = latent_dim
        self.hidden = tuple(hidden)
        self.activation = activation
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
        # Pyro warns of a single dimension, for which its network is right too.
        with warnings.catch_warnings(action="ignore"):
            self.net = AutoRegressiveNN(
                latent_dim,
                list(self.hidden),
                permutation=torch.arange(latent_dim),  # pyright: ignore
                nonlinearity=activation(),
            )
        self._ranks = weight_ranks(self)

    def conditionals(self, z: Tensor) -> dist.Normal:
        r"""The conditionals $p(z_d \mid z_{<d})$, with batch shape $(*, D)$.

        Args:
            z: The latents, with shape $(*, D)$.
        """
        loc, log_scale = self.net(z)

        return dist.Normal(loc, smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp())

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$.

        Raises:
            InputError: If its weights are draws with batch dimensions.
        """
        weights = DrawnWeights(self, self._ranks)
        if weights.batch_shape:
            raise InputError(
                f"Weights drawn {tuple(weights.batch_shape)} at a time fit no masked network.",
                "Draw them outside of every plate, or take RealNVPPrior.",
            )

        def conditionals(z: Tensor) -> dist.Normal:
            with weights.in_place():
                return self.conditionals(z)

        return AutoregressiveNormal(conditionals, self.zeros)

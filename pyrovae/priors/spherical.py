"""Priors on the sphere of unit vectors."""

__all__ = ["PowerSphericalPrior", "SphericalUniformPrior", "VonMisesFisherPrior"]

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.distributions import (
    LOG_CONCENTRATION_BOUNDS,
    PowerSpherical,
    SphericalUniform,
    VonMisesFisher,
    check_sphere,
)
from pyrovae.networks import smooth_clamp


class SphericalUniformPrior(nn.Module):
    r"""The prior $p(z)$ that is uniform on the sphere of unit vectors in $R^D$.

    Args:
        latent_dim: The number $D \ge 2$ of latent dimensions, one more than the sphere has.

    Raises:
        InputError: If it is below 2.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), arXiv:1804.00891.

    Example:
        >>> SphericalUniformPrior(3)().log_prob(torch.eye(3))
        tensor([-2.5310, -2.5310, -2.5310])
    """

    center: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

        check_sphere(latent_dim)
        self.latent_dim = latent_dim
        # A buffer, so that the draws follow the module's device and dtype.
        self.register_buffer("center", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return SphericalUniform(self.center)


class _AboutLearnedAxis(nn.Module):
    """A learned axis and concentration."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

        check_sphere(latent_dim)
        self.latent_dim = latent_dim
        self.direction = nn.Parameter(torch.randn(latent_dim))
        self.log_concentration = nn.Parameter(torch.zeros(()))

    def axis(self) -> tuple[Tensor, Tensor]:
        r"""The axis $\mu$ and the concentration $\kappa$."""
        log_concentration = smooth_clamp(self.log_concentration, *LOG_CONCENTRATION_BOUNDS)
        return F.normalize(self.direction, dim=-1), log_concentration.exp()


class PowerSphericalPrior(_AboutLearnedAxis):
    r"""The learned prior $p(z) \propto (1 + \mu^\top z)^\kappa$ on the sphere.

    It starts from $\kappa = 1$, and $\log \kappa$ is kept smoothly within (-7, 9).

    Args:
        latent_dim: The number $D \ge 2$ of latent dimensions, one more than the sphere has.

    Raises:
        InputError: If it is below 2.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020), arXiv:2006.04437.
    """

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return PowerSpherical(*self.axis())


class VonMisesFisherPrior(_AboutLearnedAxis):
    r"""The learned prior $p(z) \propto e^{\kappa \mu^\top z}$ on the sphere.

    It starts from $\kappa = 1$, and $\log \kappa$ is kept smoothly within (-7, 9).

    Args:
        latent_dim: The number $D \ge 2$ of latent dimensions, one more than the sphere has.

    Raises:
        InputError: If it is below 2.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), arXiv:1804.00891.
    """

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return VonMisesFisher(*self.axis())

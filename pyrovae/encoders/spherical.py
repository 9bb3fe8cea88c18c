"""Encoders onto the sphere of unit vectors."""

__all__ = ["PowerSphericalEncoder", "VonMisesFisherEncoder"]

from typing import ClassVar

import pyro.distributions as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.distributions import (
    LOG_CONCENTRATION_BOUNDS,
    PowerSpherical,
    VonMisesFisher,
    check_sphere,
)
from pyrovae.networks import smooth_clamp


class _AboutAxisEncoder(nn.Module):
    """A network that puts out a direction and a log-concentration."""

    latents: ClassVar[str] = "unit vectors"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    @staticmethod
    def net_shape(latent_dim: int) -> tuple[int, ...]:
        """What the network must put out for one example.

        Raises:
            InputError: If there are fewer than 2 latent dimensions.
        """
        check_sphere(latent_dim)
        return (latent_dim + 1,)

    def axis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The axis $\mu(x)$ and the concentration $\kappa(x)$."""
        output = self.net(x)
        log_concentration = smooth_clamp(output[..., -1], *LOG_CONCENTRATION_BOUNDS)
        return F.normalize(output[..., :-1], dim=-1), log_concentration.exp()


class PowerSphericalEncoder(_AboutAxisEncoder):
    r"""The encoder $q(z \mid x) \propto (1 + \mu(x)^\top z)^{\kappa(x)}$ on the sphere.

    The network's output is read as a vector along $\mu$, and $\log \kappa$, which is kept
    smoothly within (-7, 9). Its prior is on the sphere too, such as `SphericalUniformPrior`.

    Args:
        net: A network mapping $(*, x)$ to $(*, D + 1)$.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020), arXiv:2006.04437.
    """

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return PowerSpherical(*self.axis(x))


class VonMisesFisherEncoder(_AboutAxisEncoder):
    r"""The encoder $q(z \mid x) \propto e^{\kappa(x) \mu(x)^\top z}$ on the sphere.

    The network's output is read as a vector along $\mu$, and $\log \kappa$, which is kept
    smoothly within (-7, 9). Its prior is on the sphere too, such as `SphericalUniformPrior`.

    Args:
        net: A network mapping $(*, x)$ to $(*, D + 1)$.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), arXiv:1804.00891.
    """

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        return VonMisesFisher(*self.axis(x))

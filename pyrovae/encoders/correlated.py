r"""Gaussian encoders whose latent dimensions are correlated.

Both have the covariance $\mathrm{diag}(\sigma) (I + U U^\top) \, \mathrm{diag}(\sigma)$. What is
factorised is $I + U U^\top$ or $I + U^\top U$, whose eigenvalues are at least 1 and bounded
above, so that no jitter is needed in float32.
"""

__all__ = ["FullCovarianceGaussianEncoder", "LowRankGaussianEncoder"]

import math
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.encoders.outputs import LOG_SCALE_BOUNDS, check_outputs, latent_dim_of
from pyrovae.networks import smooth_clamp

# Bounds on the entries of U, before they are divided by the square root of their number.
LOADING_BOUNDS = (-50.0, 50.0)


class LowRankGaussianEncoder(nn.Module):
    r"""The encoder $q(z \mid x) = \mathcal{N}(z \mid \mu, \mathrm{diag}(\sigma^2) + F F^\top)$.

    The factor is $F = \mathrm{diag}(\sigma) \, U$ with $U$ of shape (D, R). The network's output
    is read as $(\mu, \log \sigma, \sqrt R \, U)$, with $\log \sigma$ kept smoothly within
    (-7, 3.5) and $\sqrt R \, U$ within (-50, 50). Divided by $\sqrt R$, the small outputs of a new
    network are small correlations for any $R$; at $U = 0$ itself the gradient of $U$ would vanish.

    Args:
        net: A network mapping $(*, x)$ to $(*, (2 + R) D)$.
        rank: The number $R$ of factors.

    Raises:
        InputError: If the rank is less than 1, or the network's outputs fit no $D$.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models
        (Rezende et al., 2014), arXiv:1401.4082.
        Gaussian Variational Approximation with a Factor Covariance Structure
        (Ong et al., 2018), arXiv:1701.03208.
    """

    def __init__(self, net: nn.Module, *, rank: int = 5) -> None:
        super().__init__()

        check_whole(rank=rank)
        check_outputs(net, partial(self.net_shape, rank=rank))

        self.net = net
        self.rank = rank

    @staticmethod
    def net_shape(latent_dim: int, *, rank: int = 5) -> tuple[int, ...]:
        """What the network must put out for one example.

        Raises:
            InputError: If the rank is less than 1.
        """
        check_whole(rank=rank)
        return ((2 + rank) * latent_dim,)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        output = self.net(x)
        latent_dim = latent_dim_of(output.shape[-1:], partial(self.net_shape, rank=self.rank))
        loc, log_scale, loadings = output.split(
            [latent_dim, latent_dim, self.rank * latent_dim], dim=-1
        )
        scale = smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()
        loadings = smooth_clamp(loadings, *LOADING_BOUNDS) / math.sqrt(self.rank)
        factor = scale.unsqueeze(-1) * loadings.unflatten(-1, (latent_dim, self.rank))

        return dist.LowRankMultivariateNormal(loc, factor, scale.square())


class FullCovarianceGaussianEncoder(nn.Module):
    r"""The encoder $q(z \mid x) = \mathcal{N}(z \mid \mu(x), L(x) L(x)^\top)$.

    The triangle is $L = \mathrm{diag}(\sigma) \, \mathrm{cholesky}(I + U U^\top)$ with $U$ lower
    triangular: its diagonal is at least $\sigma$, and within the bounds below it can be that of
    any covariance. A triangle read off the network directly, however its diagonal is bounded, can
    have an inverse that grows exponentially in $D$. The network's output is read as
    $(\mu, \log \sigma, \sqrt D \, U)$, the rows of $U$ one after the other, with $\log \sigma$
    kept smoothly within (-7, 3.5) and $\sqrt D \, U$ within (-50, 50). Divided by $\sqrt D$, the
    small outputs of a new network are small correlations for any $D$.

    Args:
        net: A network mapping $(*, x)$ to $(*, D (D + 5) / 2)$.

    Raises:
        InputError: If the network's outputs fit no $D$.

    References:
        An Introduction to Variational Autoencoders (Kingma & Welling, 2019), section 2.5.1,
        arXiv:1906.02691.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        check_outputs(net, self.net_shape)

        self.net = net

    @staticmethod
    def net_shape(latent_dim: int) -> tuple[int, ...]:
        """What the network must put out for one example."""
        return (latent_dim * (latent_dim + 5) // 2,)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        output = self.net(x)
        latent_dim = latent_dim_of(output.shape[-1:], self.net_shape)
        in_triangle = latent_dim * (latent_dim + 1) // 2
        loc, log_scale, loadings = output.split([latent_dim, latent_dim, in_triangle], dim=-1)
        scale = smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()
        loadings = smooth_clamp(loadings, *LOADING_BOUNDS) / math.sqrt(latent_dim)
        correlating = _identity_and_square(_lower_triangular(loadings, latent_dim))
        scale_tril = scale.unsqueeze(-1) * torch.linalg.cholesky(correlating)

        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


def _identity_and_square(matrix: Tensor) -> Tensor:
    r"""$I + U U^\top$, for $U$ of shape (*, D, D)."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)

    return identity + matrix @ matrix.mT


def _lower_triangular(entries: Tensor, size: int) -> Tensor:
    """The lower triangular matrices (*, size, size) with these entries, row by row."""
    rows, columns = torch.tril_indices(size, size, device=entries.device)
    matrix = entries.new_zeros(*entries.shape[:-1], size, size)
    matrix[..., rows, columns] = entries

    return matrix

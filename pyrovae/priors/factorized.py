"""Priors with independent dimensions."""

__all__ = ["DiagonalGaussian", "LaplacePrior", "StandardNormal", "StudentTPrior", "UniformPrior"]

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.distributions import StudentT, Uniform, check_box
from pyrovae.errors import InputError


class StandardNormal(nn.Module):
    r"""The prior $p(z) = \mathcal{N}(z \mid 0, I)$.

    Args:
        latent_dim: The number $D$ of latent dimensions.

    Raises:
        InputError: If there is no latent dimension.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)

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

    Raises:
        InputError: If there is no latent dimension.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)

        self.latent_dim = latent_dim
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class LaplacePrior(nn.Module):
    r"""The prior $p(z) = \prod_d \tfrac12 e^{-|z_d|}$, of heavier tails and with a peak at zero.

    Nothing is learned: a scale of the prior is one of the encoder and of the decoder's first
    layer already.

    Args:
        latent_dim: The number $D$ of latent dimensions.

    Raises:
        InputError: If there is no latent dimension.
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)

        self.latent_dim = latent_dim
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return dist.Laplace(self.loc, 1.0).to_event(1)


class StudentTPrior(nn.Module):
    r"""The prior $p(z) = \prod_d t_\nu(z_d)$, whose tails are those of $|z_d|^{-\nu - 1}$.

    Nothing is learned, as for `LaplacePrior`.

    Args:
        latent_dim: The number $D$ of latent dimensions.
        df: The degrees of freedom $\nu > 0$. At 1 it is a Cauchy; it becomes the standard normal
            as $\nu$ grows.

    Raises:
        InputError: If `df` is not positive and finite, or there is no latent dimension.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, *, df: float = 4.0) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)
        if not 0 < df < math.inf:
            raise InputError(
                f"The df of a StudentTPrior is {df}.",
                "Give a finite number above 0, or take a StandardNormal, which is its limit.",
            )

        self.latent_dim = latent_dim
        self.df = df
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        return StudentT(self.df, self.loc, 1.0).to_event(1)  # pyright: ignore


class UniformPrior(nn.Module):
    r"""The prior $p(z) = (b - a)^{-D}$ on the box $[a, b]^D$.

    It needs an encoder whose draws stay in the box: outside, as with some of the draws of any
    Gaussian, the bound is minus infinity. Nothing is learned.

    Args:
        latent_dim: The number $D$ of latent dimensions.
        low: The lower end $a$ of every dimension.
        high: The upper end $b$.

    Raises:
        InputError: If `low` is not below `high`, one is infinite, or there is no latent dimension.
    """

    bounds: Tensor

    def __init__(self, latent_dim: int, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)
        check_box(low, high)

        self.latent_dim = latent_dim
        self.low = low
        self.high = high
        self.register_buffer("bounds", torch.tensor([low, high]), persistent=False)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        low, high = self.bounds

        return Uniform(low, high).expand((self.latent_dim,)).to_event(1)  # pyright: ignore

"""Gaussian likelihoods."""

__all__ = ["GaussianDecoder", "PixelwiseGaussianDecoder"]

import math
from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.decoders.positive import Positive, check_scales
from pyrovae.networks import event_rank, halves, smooth_clamp


class GaussianDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \mathcal{N}(x \mid \mu(z), \sigma^2 I)$, with one $\sigma$.

    Args:
        net: A network mapping $(*, D)$ to the mean $(*, x)$.
        scale: The standard deviation $\sigma$, or where it starts if it is learned.
        learn_scale: Whether $\sigma$ is a parameter.
        min_scale: The floor of a learned $\sigma$. Without one the likelihood has no maximum;
            for quantised data take the quantisation's own $\Delta / \sqrt{12}$.

    Raises:
        InputError: If the scale is infinite or not above its floor, or a learned one has a floor
            of 0 or less.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021),
        arXiv:2006.13202.
    """

    values: ClassVar[str] = "real"

    def __init__(
        self,
        net: nn.Module,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()

        self.net = net
        self.scale = scale
        self.learn_scale = learn_scale
        self.min_scale = min_scale
        self.shared_scale = Positive(
            "scale", scale, learn=learn_scale, low=min_scale, floor="min_scale"
        )

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return x_shape

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = event_rank(self.net)
        return dist.Normal(self.net(z), self.shared_scale(rank)).to_event(rank)


class PixelwiseGaussianDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2(z))$.

    Args:
        net: A network mapping $(*, D)$ to means and log-scales joined along the first dimension
            of an observation: $(*, 2 X)$ for vectors, $(*, 2 C, H, W)$ for images.
        min_scale: The floor of every $\sigma_i$, as in `GaussianDecoder`.
        max_scale: The ceiling of every $\sigma_i$.

    Raises:
        InputError: If the floor is not above 0, or the ceiling not above it and finite; in
            `forward`, if the network's two maps are not of one size.
    """

    values: ClassVar[str] = "real"

    def __init__(self, net: nn.Module, *, min_scale: float = 1e-3, max_scale: float = 1e3) -> None:
        super().__init__()

        check_scales(min_scale, max_scale)
        self.net = net
        self.min_scale = min_scale
        self.max_scale = max_scale

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return (2 * x_shape[0], *x_shape[1:])

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = event_rank(self.net)
        loc, log_scale = halves(self.net(z), -rank)
        log_scale = smooth_clamp(log_scale, math.log(self.min_scale), math.log(self.max_scale))

        return dist.Normal(loc, log_scale.exp()).to_event(rank)

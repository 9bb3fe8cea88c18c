r"""Decoders $p(x \mid z)$, the likelihood: modules whose forward pass returns a distribution.

Its event shape is that of one observation: a vector, or an image (C, H, W).
"""

__all__ = [
    "BernoulliDecoder",
    "ContinuousBernoulliDecoder",
    "GaussianDecoder",
    "PixelwiseGaussianDecoder",
]

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.distributions import ContinuousBernoulli
from pyrovae.errors import InputError
from pyrovae.networks import smooth_clamp, smooth_floor


def _event_rank(net: nn.Module) -> int:
    """The number of dimensions of one observation; a net that does not say emits vectors."""
    return len(getattr(net, "out_shape", (1,)))


class BernoulliDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{Bernoulli}(x_i \mid \sigma(\eta_i(z)))$.

    It is a likelihood of binary data only. On grey pixels it is not a density (it integrates to
    less than one), so data outside {0, 1} are refused: binarise, or take
    `ContinuousBernoulliDecoder`.

    Args:
        net: A network mapping $(*, D)$ to the logits $(*, x)$.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        return dist.Bernoulli(logits=self.net(z)).to_event(_event_rank(self.net))


class ContinuousBernoulliDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i C(\lambda_i) \lambda_i^{x_i} (1-\lambda_i)^{1-x_i}$.

    A density on [0, 1], with $\lambda = \sigma(\eta(z))$ and $C$ its normalising constant.

    Args:
        net: A network mapping $(*, D)$ to the logits $(*, x)$.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), arXiv:1907.06845.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        return ContinuousBernoulli(self.net(z)).to_event(_event_rank(self.net))


class GaussianDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \mathcal{N}(x \mid \mu(z), \sigma^2 I)$, with one $\sigma$.

    Args:
        net: A network mapping $(*, D)$ to the mean $(*, x)$.
        scale: The standard deviation $\sigma$, or where it starts if it is learned.
        learn_scale: Whether $\sigma$ is a parameter.
        min_scale: The floor of a learned $\sigma$. Without one the likelihood has no maximum;
            for quantised data take the quantisation's own $\Delta / \sqrt{12}$.

    Raises:
        InputError: If the scale is not above its floor.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021),
        arXiv:2006.13202.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()

        floor = min_scale if learn_scale else 0.0
        if not scale > floor:
            raise InputError(
                f"The scale {scale} of a GaussianDecoder is not above {floor}.",
                "Give a larger scale, or a smaller min_scale.",
            )

        self.net = net
        self.scale = scale
        self.learn_scale = learn_scale
        self.min_scale = min_scale
        if learn_scale:
            # The inverse of smooth_floor, so that training starts from `scale` itself.
            low = math.log(min_scale)
            self.log_scale = nn.Parameter(
                torch.tensor(low + math.log(math.expm1(math.log(scale) - low)))
            )
        else:
            self.register_buffer("log_scale", torch.tensor(math.log(scale)), persistent=False)

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        log_scale = self.log_scale
        if self.learn_scale:
            log_scale = smooth_floor(log_scale, math.log(self.min_scale))

        return dist.Normal(self.net(z), log_scale.exp()).to_event(_event_rank(self.net))


class PixelwiseGaussianDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2(z))$.

    Args:
        net: A network mapping $(*, D)$ to means and log-scales joined along the first dimension
            of an observation: $(*, 2 X)$ for vectors, $(*, 2 C, H, W)$ for images.
        min_scale: The floor of every $\sigma_i$, as in `GaussianDecoder`.
        max_scale: The ceiling of every $\sigma_i$.
    """

    def __init__(self, net: nn.Module, *, min_scale: float = 1e-3, max_scale: float = 1e3) -> None:
        super().__init__()

        self.net = net
        self.min_scale = min_scale
        self.max_scale = max_scale

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = _event_rank(self.net)
        loc, log_scale = self.net(z).chunk(2, dim=-rank)
        log_scale = smooth_clamp(log_scale, math.log(self.min_scale), math.log(self.max_scale))

        return dist.Normal(loc, log_scale.exp()).to_event(rank)

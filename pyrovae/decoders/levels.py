r"""Likelihoods of levels: whole numbers $0 .. L - 1$, such as the grey values of 8-bit images.

They are probabilities, so that bits per dim need no dequantisation. Levels are left as they are
(`preprocessing=AsIs()`), numbers from 0 to 255 in float32; an encoder takes them to [-1, 1]
inside its network, `Centred`.
"""

__all__ = ["CategoricalDecoder", "DiscretizedLogisticDecoder", "DiscretizedLogisticMixtureDecoder"]

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.distributions import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from pyrovae.networks import event_rank, halves, smooth_clamp

# The floor of a scale, in levels: nothing is narrower than a cell. Its ceiling, in half ranges:
# all levels are alike.
MIN_SCALE, MAX_SCALE = 0.1, 20.0


class CategoricalDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{softmax}(\eta_i(z))_{x_i}$ of levels.

    It assumes nothing of the order of the levels.

    Args:
        net: A network mapping $(*, D)$ to the logits, one map for each level along the first
            dimension of an observation: $(*, L X)$ for vectors, $(*, L C, H, W)$ for images.
        classes: The number $L$ of levels.

    Raises:
        InputError: If there are fewer than two levels.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), arXiv:1601.06759.
    """

    values: ClassVar[str] = "levels"

    def __init__(self, net: nn.Module, *, classes: int = 256) -> None:
        super().__init__()

        check_whole(least=2, classes=classes)
        self.net = net
        self.classes = classes

    @staticmethod
    def net_shape(x_shape: tuple[int, ...], *, classes: int = 256) -> tuple[int, ...]:
        """What the network must put out for one observation.

        Raises:
            InputError: If there are fewer than two levels.
        """
        check_whole(least=2, classes=classes)
        return (classes * x_shape[0], *x_shape[1:])

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = event_rank(self.net)
        logits = self.net(z).unflatten(-rank, (self.classes, -1)).movedim(-rank - 1, -1)

        return Categorical(logits=logits).to_event(rank)


class DiscretizedLogisticDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{DL}(x_i \mid \mu_i(z), s_i(z))$ of levels.

    A logistic density, each level its mass within half a level. The network's output is read as
    $\mu$ and $\log s$ on a scale on which the levels go from -1 to 1, with $s$ kept smoothly
    between a tenth of a level and 20.

    Args:
        net: A network mapping $(*, D)$ to the two maps joined along the first dimension of an
            observation: $(*, 2 X)$ for vectors, $(*, 2 C, H, W)$ for images.
        levels: The number $L$ of levels.

    Raises:
        InputError: If there are fewer than two levels; in `forward`, if the network's two maps are
            not of one size.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        arXiv:1606.04934.
    """

    values: ClassVar[str] = "levels"

    def __init__(self, net: nn.Module, *, levels: int = 256) -> None:
        super().__init__()

        check_whole(least=2, levels=levels)
        self.net = net
        self.levels = levels

    @staticmethod
    def net_shape(x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """What the network must put out for one observation."""
        return (2 * x_shape[0], *x_shape[1:])

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        rank = event_rank(self.net)
        loc, log_scale = halves(self.net(z), -rank)
        loc, scale = _in_levels(loc, log_scale, self.levels)

        return DiscretizedLogistic(loc, scale, levels=self.levels).to_event(rank)


class DiscretizedLogisticMixtureDecoder(nn.Module):
    r"""PixelCNN++'s likelihood of levels: for every pixel a mixture of discretised logistics.

    $$p(x \mid z) = \prod_{\text{pixels}} \sum_k \pi_k \prod_c
    \mathrm{DL}(x_c \mid \mu_{kc} + \sum_{b < c} a_{kcb} x_b, \, s_{kc})$$

    The channels of a pixel share its component, and each is linear in those before it, by
    coefficients in (-1, 1): green in red, blue in both. A vector is an image of one channel.
    Locations and scales are read as in `DiscretizedLogisticDecoder`.

    Args:
        net: A network mapping $(*, D)$ to maps joined along the first dimension of an
            observation: of each component its logit, its locations and log-scales for the $C$
            channels, and its $C (C - 1) / 2$ coefficients; $(*, 10 K, H, W)$ for colour images.
        x_shape: The shape of one observation.
        components: The number $K$ of components.
        levels: The number $L$ of levels.

    Raises:
        InputError: If there is no component, or there are fewer than two levels.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications (Salimans et al., 2017), arXiv:1701.05517.
    """

    values: ClassVar[str] = "levels"

    def __init__(
        self, net: nn.Module, x_shape: tuple[int, ...], *, components: int = 10, levels: int = 256
    ) -> None:
        super().__init__()

        check_whole(least=2, levels=levels)
        check_whole(components=components)
        self.net = net
        self.x_shape = tuple(x_shape)
        self.components = components
        self.levels = levels

    @staticmethod
    def net_shape(x_shape: tuple[int, ...], *, components: int = 10) -> tuple[int, ...]:
        """What the network must put out for one observation.

        Raises:
            InputError: If there is no component.
        """
        check_whole(components=components)
        channels, *pixels = _layout(x_shape)
        return (components * sum(_maps(channels)), *pixels)

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        channels, *pixels = _layout(self.x_shape)
        output = self.net(z)
        # A drawn network has batch dimensions of its own.
        rank = len(getattr(self.net, "out_shape", output.shape[z.dim() - 1 :]))
        batch = output.shape[: output.dim() - rank]
        maps = output.reshape(*batch, self.components, -1, math.prod(pixels))
        logits, loc, log_scale, slopes = maps.split(_maps(channels), dim=-2)
        loc, scale = _in_levels(loc, log_scale, self.levels)

        return DiscretizedLogisticMixture(
            logits.squeeze(-2),
            loc,
            scale,
            torch.tanh(slopes),
            event_shape=self.x_shape,
            levels=self.levels,
        )


def _in_levels(loc: Tensor, log_scale: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Locations and scales in levels, from a scale on which these go from -1 to 1."""
    half = (levels - 1) / 2
    log_scale = smooth_clamp(log_scale, math.log(MIN_SCALE / half), math.log(MAX_SCALE))

    return half * (1 + loc), half * log_scale.exp()


def _layout(x_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Channels and pixels: those of an image, or the one channel of a vector."""
    return (1, *x_shape) if len(x_shape) == 1 else tuple(x_shape)


def _maps(channels: int) -> tuple[int, int, int, int]:
    """How many maps a component has: logit, locations, log-scales, coefficients."""
    return 1, channels, channels, channels * (channels - 1) // 2

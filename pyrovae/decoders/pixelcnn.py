"""Likelihoods of images, pixel by pixel."""

__all__ = ["PixelCNNDecoder"]

from collections.abc import Callable
from itertools import product
from typing import ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.decoders.drawn import DrawnScorer
from pyrovae.distributions import Autoregressive
from pyrovae.drawn import weight_ranks
from pyrovae.errors import InputError
from pyrovae.networks.layers import Conv2d


class PixelCNNDecoder(nn.Module):
    r"""The likelihood $p(x \mid z) = \prod_i \mathrm{Categorical}(x_i \mid x_{<i}, z)$ of images.

    Pixels are in raster order, and the channels of a pixel in theirs. A gated PixelCNN reads the
    pixels so far: one stack of convolutions the rows above, another the pixels to the left, so
    that there is no blind spot; how far they reach, kernels and layers say. What the network makes
    of z is added in every layer.

    Args:
        net: A network mapping $(*, D)$ to $(*, \text{features}, H, W)$.
        x_shape: The shape (C, H, W) of one image: whole numbers 0 .. levels - 1.
        levels: The number of levels of a pixel: 2 for binary images, 256 for 8-bit ones.
        features: The number of feature maps of each layer.
        layers: The number of gated layers.
        kernel: The odd width of the convolutions.

    Raises:
        InputError: If x is no image, there are fewer features than channels, fewer than two
            levels or no layer, or the kernel is even or no wider than a pixel.

    References:
        Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016),
        arXiv:1606.05328.
        PixelVAE: A Latent Variable Model for Natural Images (Gulrajani et al., 2017),
        arXiv:1611.05013.
    """

    values: ClassVar[str] = "binary"

    def __init__(
        self,
        net: nn.Module,
        x_shape: tuple[int, ...],
        *,
        levels: int = 2,
        features: int = 32,
        layers: int = 4,
        kernel: int = 5,
    ) -> None:
        super().__init__()

        if len(x_shape) != 3:
            raise InputError(
                f"A PixelCNNDecoder is for images, and x has the shape {tuple(x_shape)}.",
                "Give images of shape (C, H, W).",
            )
        _check_features(features, x_shape)
        check_whole(layers=layers, kernel=kernel)
        check_whole(least=2, levels=levels)
        if kernel < 3 or kernel % 2 == 0:
            raise InputError(f"The kernel is {kernel} wide.", "Give an odd number, 3 or more.")

        self.net = net
        self.x_shape = tuple(x_shape)
        self.levels = levels
        self.features = features
        self.layers = layers
        self.kernel = kernel

        channels = self.x_shape[0]
        self.reach = kernel // 2
        inputs, maps, outputs = (
            _order(count, channels) for count in (channels, features, channels * levels)
        )
        # The stack of the rows above, and that of the pixels to the left, which it informs.
        self.enter_above = Conv2d(channels, features, (1 + self.reach, kernel))
        self.above = nn.ModuleList(
            Conv2d(features, 2 * features, (1 + self.reach, kernel)) for _ in range(layers)
        )
        self.enter_left = _OrderedConv(inputs, maps, self.reach, strictly=True)
        self.left = nn.ModuleList(_GatedLayer(maps, self.reach) for _ in range(layers))
        self.read_out = nn.Sequential(
            nn.SiLU(), _OrderedConv(maps, maps), nn.SiLU(), _OrderedConv(maps, outputs)
        )
        self._ranks = weight_ranks(self, besides="net")

    @staticmethod
    def net_shape(x_shape: tuple[int, ...], *, features: int = 32) -> tuple[int, ...]:
        """What the network must put out for one image.

        Raises:
            InputError: If there are fewer features than channels.
        """
        _check_features(features, x_shape)
        return (features, *x_shape[1:])

    def forward(self, z: Tensor) -> dist.Distribution:
        """The likelihood, with batch shape $(*)$, for $z$ of shape $(*, D)$."""
        scorer = DrawnScorer(self, self._ranks)
        context, batch_shape = scorer.expand(self.net(z), 3)

        return Autoregressive(scorer, context, batch_shape, self.x_shape, self.levels)

    def logits(self, value: Tensor, context: Tensor) -> Tensor:
        """The logits of every pixel given those before it: $(*, C, H, W)$ to $(..., levels)$."""
        x, reach = self._scale(value.to(context.dtype)), self.reach
        # The rows above are the image one row further down.
        v = self.enter_above(F.pad(x, (reach, reach, reach + 1, -1)))
        h = self.enter_left(F.pad(x, (reach, 0)))
        for above, left in zip(self.above, self.left, strict=True):
            rows = above(F.pad(v, (reach, reach, reach, 0)))
            h = left(F.pad(h, (reach, 0)), rows, context)
            v = _gate(rows)

        return self._levels(self.read_out(h))

    def generate(self, context: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        r"""Images $(*, C, H, W)$, pixel by pixel.

        What each layer has found is kept, so that a new pixel costs one pixel's work in each
        (Fast Generation for Convolutional Autoregressive Models, Ramachandran et al., 2017,
        arXiv:1704.06001).
        """
        (channels, height, width), reach = self.x_shape, self.reach

        def zeros(*shape: int) -> Tensor:
            return context.new_zeros(*context.shape[:-3], *shape)

        # Everything is kept with the borders that the convolutions take for padding.
        image, x = zeros(*self.x_shape), zeros(channels, height + reach + 1, width + 2 * reach)
        seen_above = [zeros(self.features, height + reach, width + 2 * reach) for _ in self.above]
        for row in range(height):
            v, rows = self.enter_above(x[..., row : row + reach + 1, :]), []
            for above, seen in zip(self.above, seen_above, strict=True):
                seen[..., row + reach, reach : reach + width] = v[..., 0, :]
                rows.append(above(seen[..., row : row + reach + 1, :]))
                v = _gate(rows[-1])

            here = x[..., row + reach + 1 : row + reach + 2, :]
            seen_left = [zeros(self.features, 1, width + reach) for _ in self.left]
            for column, channel in product(range(width), range(channels)):
                pixel, window = slice(column, column + 1), slice(column, column + reach + 1)
                given = context[..., row : row + 1, pixel]
                h = self.enter_left(here[..., window])
                for left, seen, v in zip(self.left, seen_left, rows, strict=True):
                    seen[..., column + reach] = h[..., 0]
                    h = left(seen[..., window], v[..., pixel], given)
                level = draw(self._levels(self.read_out(h))[..., channel, 0, 0, :]).to(x.dtype)
                here[..., channel, 0, column + reach] = self._scale(level)
                image[..., channel, row, column] = level

        return image

    def _scale(self, level: Tensor) -> Tensor:
        """Levels as numbers from -1 to 1, with 0 for what lies beyond the border."""
        return level * (2 / (self.levels - 1)) - 1

    def _levels(self, maps: Tensor) -> Tensor:
        """The levels' logits, behind the pixels: $(*, C, H, W, levels)$."""
        return maps.unflatten(-3, (-1, self.levels)).movedim(-3, -1)


class _GatedLayer(nn.Module):
    """A residual layer over the pixels to the left, told of the rows above and of the context.

    No padding is done here: maps come with the border of `reach` that the convolution eats up.
    """

    def __init__(self, order: Tensor, reach: int) -> None:
        super().__init__()

        features = len(order)
        self.reach = reach
        self.across = _OrderedConv(order, order.repeat(2), reach)
        self.rows = Conv2d(2 * features, 2 * features, 1)
        self.given = Conv2d(features, 2 * features, 1)
        self.merge = _OrderedConv(order, order)

    def forward(self, h: Tensor, rows: Tensor, context: Tensor) -> Tensor:
        update = _gate(self.across(h) + self.rows(rows) + self.given(context))

        return h[..., self.reach :] + self.merge(update)


class _OrderedConv(Conv2d):
    """A convolution over a pixel and `reach` to its left that keeps the order of channels.

    Of the pixel itself, an output sees the inputs whose channel is not after (strictly: is
    before) its own.
    """

    past: Tensor

    def __init__(
        self, inputs: Tensor, outputs: Tensor, reach: int = 0, *, strictly: bool = False
    ) -> None:
        super().__init__(len(inputs), len(outputs), (1, 1 + reach))

        past = torch.ones_like(self.weight, requires_grad=False)
        past[:, :, 0, -1] = (outputs[:, None] >= inputs + strictly).to(past.dtype)
        self.register_buffer("past", past, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return self.by(input, self.weight * self.past)


def _check_features(features: int, x_shape: tuple[int, ...]) -> None:
    check_whole(features=features)
    if features < x_shape[0]:
        raise InputError(
            f"{features} features are fewer than the {x_shape[0]} channels of the image.",
            "Give as many, or more.",
        )


def _order(count: int, channels: int) -> Tensor:
    """The channel of the image that each of a number of maps belongs to."""
    return torch.arange(count) * channels // count


def _gate(maps: Tensor) -> Tensor:
    r"""$\tanh(a) \, \sigma(b)$ for the two halves of the maps."""
    value, gate = maps.chunk(2, dim=-3)
    return value.tanh() * gate.sigmoid()

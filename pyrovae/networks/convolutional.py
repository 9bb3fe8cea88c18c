"""Convolutional networks."""

__all__ = ["ConvNet", "DeconvNet"]

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.networks.layers import Conv2d, ConvTranspose2d, Linear
from pyrovae.networks.sizes import as_sizes, check_strides


class ConvNet(nn.Module):
    r"""A convolutional network $(*, C, H, W) \to (*, \text{out})$ for images of any size.

    Convolutions of width 3 with "same" padding, a dense layer, and a linear read-out. The
    defaults are the stack that most VAE tutorials use on 28x28 images: 32 channels, then 64 with
    stride 2, 64 and 64, and 32 dense units.

    Args:
        in_shape: The shape (C, H, W) of one image.
        out_shape: The shape of one output.
        channels: The channels of each convolution.
        strides: The stride of each convolution.
        hidden: The width of the dense layer.
        activation: The class of the nonlinearity.

    Raises:
        InputError: If an image is not of shape (C, H, W), the strides are not as many as the
            channels, or a size is below 1.

    Example:
        >>> import torch
        >>> ConvNet((3, 17, 23), (4,))(torch.zeros(2, 5, 3, 17, 23)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] = (32, 64, 64, 64),
        strides: Sequence[int] = (1, 2, 1, 1),
        hidden: int = 32,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape, dims="C, H, W")
        self.out_shape = as_sizes("out_shape", out_shape)
        self.channels = as_sizes("channels", channels)
        self.strides = as_sizes("strides", strides)
        check_strides(self.channels, self.strides)
        check_whole(hidden=hidden)
        self.hidden = hidden
        self.activation = activation

        depth, height, width = self.in_shape
        layers: list[nn.Module] = []
        for wide, stride in zip(self.channels, self.strides, strict=True):
            layers += [Conv2d(depth, wide, 3, stride=stride, padding=1), activation()]
            depth, height, width = wide, -(-height // stride), -(-width // stride)

        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            Linear(depth * height * width, hidden),
            activation(),
            Linear(hidden, math.prod(self.out_shape)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, C, H, W)$ to $(*, out)$."""
        return self.dense(self.convolutions(x).flatten(-3)).unflatten(-1, self.out_shape)


class DeconvNet(nn.Module):
    r"""A transposed convolutional network $(*, \text{in}) \to (*, C, H, W)$ for any image size.

    A dense layer makes a coarse map, transposed convolutions of width 3 enlarge it, and a
    convolution reads it out without a nonlinearity. The defaults are the decoder of the same
    tutorials as `ConvNet`: a coarse map of 64 channels, then 32 with stride 2.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape (C, H, W) of one output.
        coarse: The channels of the coarse map.
        channels: The channels of each transposed convolution.
        strides: The stride of each transposed convolution.
        activation: The class of the nonlinearity.

    Raises:
        InputError: If an image is not of shape (C, H, W), the strides are not as many as the
            channels, or a size is below 1.

    Example:
        >>> import torch
        >>> DeconvNet((2,), (3, 17, 23))(torch.zeros(2, 5, 2)).shape
        torch.Size([2, 5, 3, 17, 23])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        coarse: int = 64,
        channels: Sequence[int] = (32,),
        strides: Sequence[int] = (2,),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape)
        self.out_shape = as_sizes("out_shape", out_shape, dims="C, H, W")
        check_whole(coarse=coarse)
        self.coarse = coarse
        self.channels = as_sizes("channels", channels)
        self.strides = as_sizes("strides", strides)
        check_strides(self.channels, self.strides)
        self.activation = activation

        # The sizes on the way down decide the output padding on the way back up.
        sizes = [self.out_shape[1:]]
        for stride in reversed(self.strides):
            sizes.append(tuple(-(-side // stride) for side in sizes[-1]))
        sizes.reverse()

        self.map_shape = (coarse, *sizes[0])
        self.dense = nn.Sequential(
            Linear(math.prod(self.in_shape), math.prod(self.map_shape)), activation()
        )

        layers: list[nn.Module] = []
        depth = coarse
        for wide, stride, small, large in zip(
            self.channels, self.strides, sizes[:-1], sizes[1:], strict=True
        ):
            height, width = (
                big - (stride * (side - 1) + 1) for side, big in zip(small, large, strict=True)
            )
            layers += [
                ConvTranspose2d(depth, wide, 3, stride, padding=1, output_padding=(height, width)),
                activation(),
            ]
            depth = wide
        self.convolutions = nn.Sequential(*layers, Conv2d(depth, self.out_shape[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, C, H, W)$."""
        coarse = self.dense(z.flatten(-len(self.in_shape)))

        return self.convolutions(coarse.unflatten(-1, self.map_shape))

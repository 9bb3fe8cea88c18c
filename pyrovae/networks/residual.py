"""Residual convolutional networks."""

__all__ = ["ResidualConvNet", "ResidualDeconvNet"]

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.errors import InputError
from pyrovae.networks.layers import Conv2d, GroupNorm, Linear, on_maps, weight_norm
from pyrovae.networks.sizes import as_sizes, check_strides


class ResidualConvNet(nn.Module):
    r"""A residual network $(*, C, H, W) \to (*, \text{out})$ for images of any size.

    Each stage is a convolution of width 3, which may stride, and residual blocks at its size.
    Nothing depends on the batch: an example's output is its own, in training too.

    Args:
        in_shape: The shape (C, H, W) of one image.
        out_shape: The shape of one output.
        channels: The channels of each stage.
        strides: The stride of each stage.
        blocks: The number of residual blocks in each stage.
        groups: The groups of group normalisation; 0 for weight normalisation in its place.
        activation: The class of the nonlinearity.

    Raises:
        InputError: If an image is not of shape (C, H, W), the strides are not as many as the
            channels, the groups do not divide these, a number is negative,
            or a size is below 1.

    References:
        Identity Mappings in Deep Residual Networks (He et al., 2016), arXiv:1603.05027.
        Group Normalization (Wu & He, 2018), arXiv:1803.08494.
        Weight Normalization (Salimans & Kingma, 2016), arXiv:1602.07868.

    Example:
        >>> import torch
        >>> ResidualConvNet((3, 17, 23), (4,))(torch.zeros(2, 5, 3, 17, 23)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] = (32, 64, 64),
        strides: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        groups: int = 8,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape, dims="C, H, W")
        self.out_shape = as_sizes("out_shape", out_shape)
        self.channels = as_sizes("channels", channels)
        self.strides = as_sizes("strides", strides)
        check_strides(self.channels, self.strides)
        _check(self.channels, blocks, groups)
        self.blocks = blocks
        self.groups = groups
        self.activation = activation

        depth, height, width = self.in_shape
        stages: list[nn.Module] = []
        for wide, stride in zip(self.channels, self.strides, strict=True):
            stages.append(_conv(depth, wide, groups, stride=stride))
            stages += [_Block(wide, groups, activation) for _ in range(blocks)]
            depth, height, width = wide, -(-height // stride), -(-width // stride)

        self.convolutions = nn.Sequential(*stages, _norm(depth, groups), activation())
        self.read_out = Linear(depth * height * width, math.prod(self.out_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, C, H, W)$ to $(*, out)$."""
        return self.read_out(self.convolutions(x).flatten(-3)).unflatten(-1, self.out_shape)


class ResidualDeconvNet(nn.Module):
    r"""A residual network $(*, \text{in}) \to (*, C, H, W)$ for images of any size.

    A linear layer makes a coarse map. Each stage is residual blocks, the nearest-neighbour
    enlargement that a stride undoes, and a convolution of width 3.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape (C, H, W) of one output.
        channels: The channels of each stage.
        strides: How many times larger each stage makes its map.
        blocks: The number of residual blocks in each stage.
        groups: The groups of group normalisation; 0 for weight normalisation in its place.
        activation: The class of the nonlinearity.

    Raises:
        InputError: If an image is not of shape (C, H, W), the strides are not as many as the
            channels, the groups do not divide these, a number is negative,
            or a size is below 1.

    Example:
        >>> import torch
        >>> ResidualDeconvNet((2,), (3, 17, 23))(torch.zeros(2, 5, 2)).shape
        torch.Size([2, 5, 3, 17, 23])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] = (64, 64, 32),
        strides: Sequence[int] = (2, 2, 1),
        blocks: int = 1,
        groups: int = 8,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape)
        self.out_shape = as_sizes("out_shape", out_shape, dims="C, H, W")
        self.channels = as_sizes("channels", channels)
        self.strides = as_sizes("strides", strides)
        check_strides(self.channels, self.strides)
        _check(self.channels, blocks, groups)
        self.blocks = blocks
        self.groups = groups
        self.activation = activation

        sizes = [self.out_shape[1:]]
        for stride in reversed(self.strides):
            sizes.append(tuple(-(-side // stride) for side in sizes[-1]))
        sizes.reverse()

        depth = self.channels[0]
        self.map_shape = (depth, *sizes[0])
        self.dense = Linear(math.prod(self.in_shape), math.prod(self.map_shape))

        stages: list[nn.Module] = []
        for wide, size, _ in zip(self.channels, sizes[1:], self.strides, strict=True):
            stages += [_Block(depth, groups, activation) for _ in range(blocks)]
            stages += [_Resize(size), _conv(depth, wide, groups)]
            depth = wide
        self.convolutions = nn.Sequential(
            *stages,
            _norm(depth, groups),
            activation(),
            Conv2d(depth, self.out_shape[0], 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, C, H, W)$."""
        coarse = self.dense(z.flatten(-len(self.in_shape)))

        return self.convolutions(coarse.unflatten(-1, self.map_shape))


class _Block(nn.Module):
    r"""$h + C_2 \, a(n(C_1 \, a(n(h))))$, with convolutions $C$ of width 3 and a norm $n$."""

    def __init__(self, depth: int, groups: int, activation: type[nn.Module]) -> None:
        super().__init__()

        self.branch = nn.Sequential(
            _norm(depth, groups),
            activation(),
            _conv(depth, depth, groups),
            _norm(depth, groups),
            activation(),
            _conv(depth, depth, groups),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


class _Resize(nn.Module):
    """The map at another size, by nearest neighbours."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()

        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        return on_maps(lambda maps: F.interpolate(maps, self.size), h)


def _conv(depth: int, wide: int, groups: int, *, stride: int = 1) -> nn.Module:
    conv = Conv2d(depth, wide, 3, stride=stride, padding=1)
    return conv if groups else weight_norm(conv)


def _norm(depth: int, groups: int) -> nn.Module:
    return GroupNorm(groups, depth) if groups else nn.Identity()


def _check(channels: Sequence[int], blocks: int, groups: int) -> None:
    check_whole(least=0, blocks=blocks, groups=groups)
    if groups and any(wide % groups for wide in channels):
        raise InputError(
            f"{groups} groups do not divide the channels {tuple(channels)}.",
            "Give groups that do, or 0 for weight normalisation.",
        )

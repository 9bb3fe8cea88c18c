"""Networks of data in their own units, which are no numbers to multiply weights with."""

__all__ = ["Centred", "Log1p"]

import torch
from torch import Tensor, nn


class Centred(nn.Module):
    r"""A network of levels $0 .. L - 1$, taken to [-1, 1]: $\mathrm{net}(2 x / (L - 1) - 1)$.

    Args:
        net: A network of numbers of the order of one.
        levels: The number $L$ of levels: 256 for 8-bit images.
    """

    def __init__(self, net: nn.Module, *, levels: int = 256) -> None:
        super().__init__()

        self.net = net
        self.levels = levels
        self.in_shape: tuple[int, ...] = tuple(net.in_shape)  # pyright: ignore
        self.out_shape: tuple[int, ...] = tuple(net.out_shape)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        return self.net(x * (2 / (self.levels - 1)) - 1)


class Log1p(nn.Module):
    r"""A network of counts, taken to their logarithms: $\mathrm{net}(\log(1 + x))$.

    Args:
        net: A network of numbers of the order of one.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net
        self.in_shape: tuple[int, ...] = tuple(net.in_shape)  # pyright: ignore
        self.out_shape: tuple[int, ...] = tuple(net.out_shape)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        return self.net(torch.log1p(x))

"""Networks of values in their own units, which are no numbers to multiply weights with."""

__all__ = ["Centred", "Log1p", "Scaled"]

import torch
from torch import Tensor, nn

from pyrovae.checks import check_finite, check_whole


class _OfOtherUnits(nn.Module):
    """A network behind a change of units, of the shapes that it has itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()

        self.net = net
        self.in_shape: tuple[int, ...] = tuple(net.in_shape)  # pyright: ignore
        self.out_shape: tuple[int, ...] = tuple(net.out_shape)  # pyright: ignore


class Centred(_OfOtherUnits):
    r"""A network of levels $0 .. L - 1$, taken to [-1, 1]: $\mathrm{net}(2 x / (L - 1) - 1)$.

    Bits are two levels, also those of a latent.

    Args:
        net: A network of numbers of the order of one.
        levels: The number $L$ of levels: 256 for 8-bit images.

    Raises:
        InputError: If there are fewer than two levels.
    """

    def __init__(self, net: nn.Module, *, levels: int = 256) -> None:
        super().__init__(net)

        check_whole(least=2, levels=levels)

        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        return self.net(x * (2 / (self.levels - 1)) - 1)


class Log1p(_OfOtherUnits):
    r"""A network of counts, taken to their logarithms: $\mathrm{net}(\log(1 + x))$.

    Below 0, where no count is but the pseudo-inputs of a `VampPrior` may come to be, it goes on as
    $-\log(1 - x)$.

    Args:
        net: A network of numbers of the order of one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        below = x < 0
        # Either half has zeros in place of the other's numbers, lest their gradients be NaN.
        counts, others = torch.where(below, 0.0, x), torch.where(below, -x, 0.0)
        return self.net(torch.where(below, -others.log1p(), counts.log1p()))


class Scaled(_OfOtherUnits):
    r"""A network of small numbers, made larger: $\mathrm{net}(s x)$.

    A layer starts with weights for entries of the order of one. Those of a unit vector are of the
    order of $1 / \sqrt D$, those of one-hot codes of K classes of $1 / \sqrt K$: a decoder that
    reads them as they are starts almost deaf to its latent, and may stay so.

    Args:
        net: A network of numbers of the order of one.
        factor: The number $s$: $\sqrt D$ for unit vectors in $R^D$.

    Raises:
        InputError: If the factor is not above 0 and finite.
    """

    def __init__(self, net: nn.Module, *, factor: float) -> None:
        super().__init__(net)

        check_finite(above=0, factor=factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        return self.net(self.factor * x)

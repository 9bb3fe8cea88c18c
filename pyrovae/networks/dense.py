"""Fully connected networks."""

__all__ = ["MLP", "GatedMLP", "ResidualMLP", "event_rank", "halves", "near_zero"]

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.errors import InputError
from pyrovae.networks.layers import Linear
from pyrovae.networks.sizes import as_sizes


def event_rank(net: nn.Module) -> int:
    """The number of dimensions of one observation; a net that does not say emits vectors."""
    return len(getattr(net, "out_shape", (1,)))


def halves(output: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """What a network puts out for two parameters of a distribution, each half of a dimension.

    Raises:
        InputError: If its size is odd: the second would be smaller, and at size 1 broadcast.

    Example:
        >>> halves(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        (tensor([1., 2.]), tensor([3., 4.]))
    """
    size = output.shape[dim]
    if size % 2:
        raise InputError(
            f"A network puts out {size} numbers for two parameters of every dimension.",
            "Build it to put out the net_shape(...) of the encoder or the decoder, twice as many "
            "as there are dimensions.",
        )
    first, second = output.chunk(2, dim=dim)
    return first, second


class MLP(nn.Module):
    r"""A fully connected network $(*, \text{in}) \to (*, \text{out})$.

    Args:
        in_shape: The shape of one input; an image is flattened.
        out_shape: The shape of one output.
        hidden: The widths of the hidden layers.
        activation: The class of the nonlinearity.

    Raises:
        InputError: If sizes are a number, and no tuple, or one is below 1.

    Example:
        >>> import torch
        >>> MLP((1, 28, 28), (50,), hidden=(400,))(torch.zeros(3, 5, 1, 28, 28)).shape
        torch.Size([3, 5, 50])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (400,),
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape)
        self.out_shape = as_sizes("out_shape", out_shape)
        self.hidden = as_sizes("hidden", hidden)
        self.activation = activation

        widths = (math.prod(self.in_shape), *self.hidden, math.prod(self.out_shape))
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [Linear(wide, narrow), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        return self.layers(x.flatten(-len(self.in_shape))).unflatten(-1, self.out_shape)


class GatedMLP(nn.Module):
    r"""A fully connected network of gated layers, $h = (A x + a) \odot \sigma(B x + b)$.

    The read-out is linear. The defaults are the encoder and decoder of the VampPrior, and so are
    the gated layers' first weights, of variance $2 / \text{in}$: under torch's own, a sixth of
    that, every gate halves what is left of a signal.

    Args:
        in_shape: The shape of one input; an image is flattened.
        out_shape: The shape of one output.
        hidden: The widths of the hidden layers.

    Raises:
        InputError: If sizes are a number, and no tuple, or one is below 1.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), arXiv:1705.07120.
        Language Modeling with Gated Convolutional Networks (Dauphin et al., 2017),
        arXiv:1612.08083.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (300, 300),
    ) -> None:
        super().__init__()

        self.in_shape = as_sizes("in_shape", in_shape)
        self.out_shape = as_sizes("out_shape", out_shape)
        self.hidden = as_sizes("hidden", hidden)

        wide = math.prod(self.in_shape)
        layers: list[nn.Module] = []
        for narrow in self.hidden:
            layers += [_loud(Linear(wide, 2 * narrow)), nn.GLU()]
            wide = narrow
        self.layers = nn.Sequential(*layers, Linear(wide, math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        return self.layers(x.flatten(-len(self.in_shape))).unflatten(-1, self.out_shape)


class ResidualMLP(nn.Module):
    r"""A fully connected network of residual blocks, $h \leftarrow h + B \, a(A \, a(h))$.

    Between a linear layer to the width of the blocks and, past one more nonlinearity, a linear
    read-out.

    Args:
        in_shape: The shape of one input; an image is flattened.
        out_shape: The shape of one output.
        hidden: The width of every block.
        blocks: The number of blocks.
        activation: The class of the nonlinearity $a$.

    Raises:
        InputError: If the number of blocks is negative, a shape is a number, and no tuple, or a
            size is below 1.

    References:
        Identity Mappings in Deep Residual Networks (He et al., 2016), arXiv:1603.05027.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: int = 256,
        blocks: int = 2,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()

        check_whole(least=0, blocks=blocks)
        check_whole(hidden=hidden)

        self.in_shape = as_sizes("in_shape", in_shape)
        self.out_shape = as_sizes("out_shape", out_shape)
        self.hidden = hidden
        self.blocks = blocks
        self.activation = activation

        self.enter = Linear(math.prod(self.in_shape), hidden)
        self.branches = nn.ModuleList(
            nn.Sequential(
                activation(), Linear(hidden, hidden), activation(), Linear(hidden, hidden)
            )
            for _ in range(blocks)
        )
        self.read_out = nn.Sequential(activation(), Linear(hidden, math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        h = self.enter(x.flatten(-len(self.in_shape)))
        for branch in self.branches:
            h = h + branch(h)

        return self.read_out(h).unflatten(-1, self.out_shape)


def _loud(layer: Linear) -> Linear:
    """A layer whose weights start at variance 2 / in (He et al., 2015), and its biases at zero."""
    nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
    nn.init.zeros_(layer.bias)
    return layer


def near_zero(net: MLP) -> MLP:
    """A network whose outputs start a hundredth as large: what they direct starts near rest."""
    last = net.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.mul_(0.01)
    return net

"""Fully connected networks."""

__all__ = ["MLP", "event_rank"]

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def event_rank(net: nn.Module) -> int:
    """The number of dimensions of one observation; a net that does not say emits vectors."""
    return len(getattr(net, "out_shape", (1,)))


class MLP(nn.Module):
    r"""A fully connected network $(*, \text{in}) \to (*, \text{out})$.

    Args:
        in_shape: The shape of one input; an image is flattened.
        out_shape: The shape of one output.
        hidden: The widths of the hidden layers.
        activation: The class of the nonlinearity.

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

        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        self.hidden = tuple(hidden)
        self.activation = activation

        widths = (math.prod(self.in_shape), *self.hidden, math.prod(self.out_shape))
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        return self.layers(x.flatten(-len(self.in_shape))).unflatten(-1, self.out_shape)

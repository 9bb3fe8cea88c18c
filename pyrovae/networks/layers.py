r"""Layers whose weights may be one draw for each particle.

Weights with batch dimensions on their left broadcast against those of the input, as the values of
Pyro's sites do: a weight $(K, 1, w)$, drawn outside the plate of N examples, acts on an input
$(N, x)$ or $(K, N, x)$. Without such dimensions every layer is torch's own.
"""

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "Embedding",
    "GroupNorm",
    "Linear",
    "on_maps",
    "weight_norm",
]

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization


class Linear(nn.Linear):
    r"""torch's linear layer, of weights $(*, \text{out}, \text{in})$ and biases $(*, \text{out})$.

    Example:
        >>> layer, drawn = Linear(3, 2), {"weight": torch.zeros(7, 1, 2, 3)}
        >>> torch.func.functional_call(layer, drawn, torch.zeros(5, 3)).shape
        torch.Size([7, 5, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps $(*, in)$ to $(*, out)$."""
        weight, bias = self.weight, self.bias
        if weight.dim() == 2 and bias.dim() == 1:
            return super().forward(input)
        return torch.einsum("...oi,...i->...o", weight, input) + bias


class Embedding(nn.Embedding):
    r"""torch's table of vectors, $(*, \text{symbols}, E)$."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps whole numbers $(*, T)$ to $(*, T, E)$."""
        weight = self.weight
        if weight.dim() == 2:
            return super().forward(input)
        return _broadcast(F.embedding, (input, weight), (1, 2))


class Conv2d(nn.Conv2d):
    """torch's convolution, of maps and weights with any batch dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps $(*, C, H, W)$ to $(*, C', H', W')$."""
        return self.by(input, self.weight)

    def by(self, input: Tensor, weight: Tensor) -> Tensor:
        """The same by other weights, such as some of its own."""
        return _convolved(self._convolve, input, weight, self.bias)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's transposed convolution, of maps and weights with any batch dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps $(*, C, H, W)$ to $(*, C', H', W')$."""
        return _convolved(self._convolve, input, self.weight, self.bias)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)
        return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding)


class GroupNorm(nn.GroupNorm):
    """torch's group normalisation, of maps and weights with any batch dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps $(*, C, H, W)$ to the same shape."""
        weight, bias = self.weight, self.bias
        if weight.dim() == 1 and bias.dim() == 1:
            return on_maps(super().forward, input)
        normal = on_maps(lambda x: F.group_norm(x, self.num_groups, eps=self.eps), input)
        return normal * weight[..., None, None] + bias[..., None, None]


def weight_norm(layer: Conv2d) -> Conv2d:
    r"""Lets the weights of each output channel be $g v / \|v\|$, of any batch dimensions.

    References:
        Weight Normalization (Salimans & Kingma, 2016), arXiv:1602.07868.
    """
    register_parametrization(layer, "weight", _WeightNorm())
    return layer


class _WeightNorm(nn.Module):
    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / _norms(v)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _norms(weight), weight


def _norms(weight: Tensor) -> Tensor:
    """The norm of each output channel's weights, $(*, C, 1, 1, 1)$."""
    return torch.linalg.vector_norm(weight, dim=(-3, -2, -1), keepdim=True)


def on_maps(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a function of maps $(N, C, H, W)$ makes of $(*, C, H, W)$."""
    if x.dim() == 4:
        return function(x)
    found = function(x.reshape(-1, *x.shape[-3:]))
    return found.reshape(*x.shape[:-3], *found.shape[1:])


def _convolved(
    convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    assert bias is not None
    if weight.dim() == 4 and bias.dim() == 1:
        return on_maps(lambda flat: convolve(flat, weight, bias), x)
    return _broadcast(convolve, (x, weight, bias), (3, 4, 1))


def _broadcast(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], ranks: Sequence[int]
) -> Tensor:
    """A function of tensors of these ranks under their batch dimensions, one after another.

    Where a dimension is of one tensor alone, the others are not repeated along it.
    """
    depth = max(tensor.dim() - rank for tensor, rank in zip(tensors, ranks, strict=True))
    if depth == 0:
        return function(*tensors)

    given: list[Tensor] = []
    dims: list[int | None] = []
    for tensor, rank in zip(tensors, ranks, strict=True):
        is_outer = tensor.dim() - rank == depth
        is_shared = not is_outer or len(tensor) == 1
        given.append(tensor.squeeze(0) if is_outer and is_shared else tensor)
        dims.append(None if is_shared else 0)

    def inner(*tensors: Tensor) -> Tensor:
        return _broadcast(function, tensors, ranks)

    if all(dim is None for dim in dims):
        return inner(*given).unsqueeze(0)
    return torch.vmap(inner, tuple(dims))(*given)

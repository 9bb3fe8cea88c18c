"""What keeps the outputs of networks in bounds."""

__all__ = ["smooth_clamp", "smooth_floor"]

import torch.nn.functional as F
from torch import Tensor


def smooth_floor(value: Tensor, low: float) -> Tensor:
    r"""A smooth $\max(\text{value}, \text{low})$: $\ell + \mathrm{softplus}(v - \ell)$.

    The gradient never vanishes altogether, where that of a hard clamp is exactly zero.
    """
    return low + F.softplus(value - low)


def smooth_clamp(value: Tensor, low: float, high: float) -> Tensor:
    r"""Keeps a value smoothly within (low, high); nearly the identity well inside.

    The ceiling is exact; the floor is passed by at most $\log(1 + e^{-(h - \ell)})$, nothing
    unless the two are close together.

    Example:
        >>> import torch
        >>> smooth_clamp(torch.tensor([-1e9, 0.0, 1e9]), -7.0, 3.5)
        tensor([-7.0000, -0.0289,  3.5000])
    """
    return high - F.softplus(high - smooth_floor(value, low))

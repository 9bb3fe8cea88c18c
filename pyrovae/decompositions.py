r"""What Inductor computes on a CPU otherwise than it would by itself.

Its $\log(1 + x)$ is a vector function of SLEEF's that takes ten times as long as a logarithm, and
a third of what a VAE's step is besides matrix products: in softplus, in the sigmoid's logarithm,
and so in every Bernoulli likelihood.
"""

__all__ = ["decompositions"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Inductor's own, and those of this file."""
    from torch._inductor.decomposition import select_decomp_table

    return {**select_decomp_table(), torch.ops.aten.log1p.default: log1p}


def log1p(x: Tensor) -> Tensor:
    r"""$\log(1 + x)$ by a logarithm, to three units in the last place.

    The sum $u = 1 + x$ is rounded, but $\log u$ is to $u - 1$, which is exact, nearly as
    $\log(1 + x)$ is to x: $\log(1 + x) \approx x \log u / (u - 1)$.

    References:
        What every computer scientist should know about floating-point arithmetic (Goldberg,
        1991), theorem 4.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    u = 1 + x
    rest = u - 1
    # Both ends are exact by themselves: x = -1 and infinity, and x next to 0.
    share = torch.where(rest == x, 1.0, x / rest)
    return torch.where(rest == 0, x, u.log() * share)

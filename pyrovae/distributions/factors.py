r"""Distributions that are products over their dimensions, and their KL dimension by dimension."""

__all__ = ["exact_kl", "factorizes"]

from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from pyrovae.distributions.degenerate import innermost


def factorizes(distribution: Any) -> bool:
    """Whether a distribution is a product over the dimensions of its event."""
    return isinstance(distribution, Independent) and not distribution.base_dist.event_shape


def exact_kl(q: Distribution, p: Distribution) -> Tensor | None:
    r"""$\mathrm{KL}(q \,\|\, p)$ where there is a closed form, or None.

    Of a point there is none: Pyro's would leave out the density of what drew it, which those of
    automatic guides carry. At the point itself a sampled KL is exact, too.
    """
    if isinstance(innermost(q), Delta):
        return None
    # Not every KL of torch's broadcasts.
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    try:
        return kl_divergence(q.expand(shape), p.expand(shape))
    except NotImplementedError:
        return None

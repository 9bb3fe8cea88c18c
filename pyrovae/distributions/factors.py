r"""Distributions that are products over their dimensions, and their KL dimension by dimension."""

__all__ = ["exact_kl", "factorizes"]

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence


def factorizes(distribution: Any) -> bool:
    """Whether a distribution is a product over the dimensions of its event."""
    return isinstance(distribution, Independent) and not distribution.base_dist.event_shape


def exact_kl(q: Distribution, p: Distribution) -> Tensor | None:
    r"""$\mathrm{KL}(q \,\|\, p)$ where there is a closed form, or None."""
    # Not every KL of torch's broadcasts.
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    try:
        return kl_divergence(q.expand(shape), p.expand(shape))
    except NotImplementedError:
        return None

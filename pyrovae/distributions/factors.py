r"""Distributions that are products over their dimensions, and their KL dimension by dimension."""

__all__ = ["exact_kl", "factorizes"]

from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence


def factorizes(distribution: Any) -> bool:
    """Whether a distribution is a product over the dimensions of its event."""
    return isinstance(distribution, Independent) and not distribution.base_dist.event_shape


def exact_kl(q: Distribution, p: Distribution) -> Tensor | None:
    r"""$\mathrm{KL}(q \,\|\, p)$ where there is a closed form, or None."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None

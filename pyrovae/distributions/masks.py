"""Masks round a distribution, as `Distribution.mask` puts them."""

__all__ = ["outer_mask", "unmasked"]

from typing import Any

from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent


def outer_mask(distribution: Any) -> tuple[Any, Tensor | bool | None]:
    """A distribution without the masks of its whole events, and what these come to, if any."""
    mask = None
    while isinstance(distribution, MaskedDistribution):
        own: Any = distribution._mask
        mask = own if mask is None else mask & own
        distribution = distribution.base_dist
    return distribution, mask


def unmasked(distribution: Any) -> Any:
    """The same without any mask, those of single entries of its events included."""
    distribution, _ = outer_mask(distribution)
    if not isinstance(distribution, Independent):
        return distribution
    base = unmasked(distribution.base_dist)
    if base is distribution.base_dist:
        return distribution
    return base.to_event(distribution.reinterpreted_batch_ndims)

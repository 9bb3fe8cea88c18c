"""Networks that score and draw a value element by element, when their likelihood was made."""

__all__ = ["DrawnScorer"]

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.drawn import DrawnWeights


class DrawnScorer:
    """A scorer with the weights that it has now.

    Args:
        module: A module that is a `Scorer`.
        ranks: Its `weight_ranks`.
    """

    def __init__(self, module: Any, ranks: Mapping[str, int]) -> None:
        self._module = module
        self._weights = DrawnWeights(module, ranks)

    def expand(self, context: Tensor, rank: int) -> tuple[Tensor, torch.Size]:
        """What values are given, under the batch dimensions of the weights too, and all of these.

        Args:
            context: The context, with shape $(*, c)$.
            rank: How many dimensions $c$ has.
        """
        split = context.dim() - rank
        batch_shape = torch.broadcast_shapes(context.shape[:split], self._weights.batch_shape)
        return context.expand(batch_shape + context.shape[split:]), batch_shape

    def logits(self, value: Tensor, context: Tensor) -> Tensor:
        """The scorer's, by these weights."""
        with self._weights.in_place():
            return self._module.logits(value, context)

    def generate(self, context: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """The scorer's, by these weights."""
        with self._weights.in_place():
            return self._module.generate(context, draw)

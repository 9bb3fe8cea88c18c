"""The examples of a split as they are held: in memory, whole or sparse, or in their file."""

__all__ = ["Rows", "block_size", "blocks"]

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from pyrovae.data.mapped import MappedRows
from pyrovae.data.sparse import SparseRows

Rows = Tensor | SparseRows | MappedRows
# How many values are taken at a time where that is free.
BLOCK = 2**22


def block_size(x_shape: Sequence[int]) -> int:
    """How many examples to take at a time where that is free: at most 1,000."""
    return max(1, min(1000, BLOCK // max(1, math.prod(x_shape))))


def blocks(x: Rows) -> Iterator[Tensor]:
    """What is held, some rows at a time: of sparse rows the entries that are kept."""
    if isinstance(x, SparseRows):
        yield x.values
    else:
        yield from x.split(block_size(x.shape[1:]))

"""Rows that stay in their file: they are read, and become bytes or real numbers, in a batch."""

__all__ = ["MappedRows", "is_mapped"]

from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

# Arrays of fewer bytes are read into memory once.
LARGE = 2**28
# How many rows are read at a time into memory.
READ = 1000


class MappedRows:
    r"""Rows of an array (N, x) that is mapped from a file; what is read of them is a tensor.

    The array stays as it was written, whatever its type and the order of its bytes. It answers
    to those names of a tensor that a split is read by.

    Args:
        array: The array, of integers or of real numbers.
        rows: Which of its rows these are, and in which order; all of them if None.
        dtype: What they become: uint8, or a floating point type.

    Example:
        >>> rows = MappedRows(np.arange(6, dtype=">i4").reshape(3, 2))
        >>> rows[torch.tensor([2, 0])].index_select(0, torch.tensor([0]))
        tensor([[4., 5.]])
    """

    def __init__(
        self,
        array: np.ndarray,
        rows: np.ndarray | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.array = array
        self.rows = np.arange(len(array)) if rows is None else rows
        self.dtype = dtype
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> "MappedRows":
        """Some of the rows, in the same file."""
        return MappedRows(self.array, self.rows[rows.numpy()], dtype=self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, x)."""
        return len(self), *self.array.shape[1:]

    @property
    def nbytes(self) -> int:
        """What they would take up in memory."""
        return self.numel() * self.dtype.itemsize

    def dim(self) -> int:
        """The number of dimensions, that of the rows among them."""
        return self.array.ndim

    def numel(self) -> int:
        """The number of entries."""
        return int(np.prod(self.shape))

    def is_floating_point(self) -> bool:
        """Whether an entry could be NaN or infinite."""
        return self.dtype.is_floating_point

    def to(self, device: torch.device) -> "Tensor | MappedRows":
        """The same rows, on a GPU as a tensor."""
        if device.type == "cpu":
            return self
        return self.read(device)

    def read(self, device: torch.device | None = None) -> Tensor:
        """All rows, read into memory."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        for rows in torch.arange(len(self)).split(READ):
            whole[rows[0] : rows[-1] + 1] = self.index_select(0, rows).to(whole.device)
        return whole

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Some rows, read."""
        assert dim == 0
        found = self.array[self.rows[index.numpy()]]
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            found = found.astype(_numpy_type(self.dtype), order="C", copy=False)
        return torch.from_numpy(np.asarray(found))

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows, read so many at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self.index_select(0, rows)


def is_mapped(given: Any) -> TypeGuard[np.memmap]:
    """Whether something is an array in a file that is too large to be read into memory."""
    return isinstance(given, np.memmap) and given.nbytes >= LARGE


def _numpy_type(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype

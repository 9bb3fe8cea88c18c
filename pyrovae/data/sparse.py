"""Rows most of whose entries are zero: kept as those that are not, and dense only in a batch."""

__all__ = ["SparseRows", "is_sparse"]

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import InputError


class SparseRows:
    r"""A matrix (N, X) in compressed rows; whatever is read of it comes as a dense tensor.

    Row $n$ has the values `values[starts[n] : starts[n + 1]]`, at the columns
    `columns[starts[n] : starts[n + 1]]`, and is zero elsewhere. It answers to those names of a
    tensor that a split is read by.

    Args:
        values: The entries that are kept, row by row, in float32.
        columns: The column of each.
        starts: Where each row begins, and where the last one ends: (N + 1,).
        width: The number X of columns.

    Example:
        >>> from scipy.sparse import eye
        >>> rows = SparseRows.of(eye(3), "eye")
        >>> rows.index_select(0, torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    def __init__(self, values: Tensor, columns: Tensor, starts: Tensor, width: int) -> None:
        self.values = values
        self.columns = columns
        self.starts = starts
        self.width = width

    @classmethod
    def of(cls, matrix: Any, name: str) -> "SparseRows":
        """What a matrix or array of `scipy.sparse`, or a sparse tensor, holds.

        Zeros that were kept are dropped, and entries that stand twice added up, so that equal
        matrices are kept equally.

        Args:
            matrix: The matrix, (N, X).
            name: What it is called.

        Raises:
            InputError: If it is no matrix of real numbers, it is empty, or what it keeps lies
                outside of it.
        """
        rows = _compressed(matrix, name)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        columns, starts = rows.indices.astype(np.int32), rows.indptr.astype(np.int64)
        values, columns, starts = map(torch.from_numpy, (rows.data, columns, starts))
        return cls(values, columns, starts, rows.shape[1])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, rows: Tensor) -> "SparseRows":
        """Some of the rows, as sparse as they are here."""
        places, counts = self._places(rows)
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return SparseRows(self.values[places], self.columns[places], starts, self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, X)."""
        return len(self), self.width

    @property
    def dtype(self) -> torch.dtype:
        """The type of the entries."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """What they take up."""
        return sum(part.nbytes for part in self.parts)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The values, their columns, and where rows start."""
        return self.values, self.columns, self.starts

    def dim(self) -> int:
        """Two."""
        return 2

    def numel(self) -> int:
        """The number of entries, zeros among them."""
        return len(self) * self.width

    def is_floating_point(self) -> bool:
        """Whether an entry could be NaN or infinite."""
        return self.values.is_floating_point()

    def to(self, device: torch.device) -> "SparseRows":
        """The same rows on a device."""
        values, columns, starts = (part.to(device) for part in self.parts)
        return SparseRows(values, columns, starts, self.width)

    def as_type(self, dtype: torch.dtype) -> "SparseRows":
        """The same rows of another floating point type."""
        return SparseRows(self.values.to(dtype), self.columns, self.starts, self.width)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Some rows as a dense tensor."""
        assert dim == 0
        places, counts = self._places(index)
        dense = self.values.new_zeros(len(index), self.width)
        dense[_repeated(counts), self.columns[places].long()] = self.values[places]
        return dense

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows as dense tensors, so many at a time."""
        for rows in torch.arange(len(self), device=self.device).split(size):
            yield self.index_select(0, rows)

    def rows_with(self, found: Tensor) -> Tensor:
        """Which rows have a kept entry of which something was found: (N,) of bool."""
        rows = torch.searchsorted(self.starts, found.nonzero()[:, 0], right=True) - 1
        return torch.zeros(len(self), dtype=torch.bool, device=self.device).index_fill(0, rows, 1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of what was observed of each column, in float64."""
        seen = ~self.values.isnan()
        columns, values = self.columns[seen].long(), self.values[seen].double()
        zeros = values.new_zeros(self.width)
        unseen = zeros.index_add(
            0, self.columns[~seen].long(), values.new_ones(int((~seen).sum()))
        )
        kept = zeros.index_add(0, columns, torch.ones_like(values))
        count = len(self) - unseen
        mean = zeros.index_add(0, columns, values) / count
        squares = zeros.index_add(0, columns, (values - mean[columns]).square())
        return mean, ((squares + (count - kept) * mean.square()) / count).sqrt()

    def _places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the entries of some rows are kept, and how many each row has."""
        counts = self.starts[rows + 1] - self.starts[rows]
        before = counts.cumsum(0) - counts
        row = _repeated(counts)
        within = torch.arange(len(row), device=self.device) - before[row]
        return self.starts[rows][row] + within, counts


def is_sparse(given: Any) -> bool:
    """Whether something is a matrix of `scipy.sparse`, or a sparse tensor."""
    if isinstance(given, Tensor):
        return given.layout != torch.strided
    return hasattr(given, "tocsr")


def _compressed(matrix: Any, name: str) -> Any:
    """Rows of float32 by scipy, a copy, of what was checked."""
    from scipy import sparse

    if isinstance(matrix, Tensor):
        matrix = _from_torch(matrix, name)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"{name} has shape {matrix.shape}.", "Give vectors (N, X), at least one.")
    if matrix.dtype.kind not in "buif":
        raise InputError(
            f"{name} holds values of dtype {matrix.dtype}.", "Give integers or real numbers."
        )
    try:
        if hasattr(matrix, "check_format"):
            # What scipy itself would read past the end of its arrays for.
            matrix.check_format(full_check=True)
        with np.errstate(over="ignore"):  # an overflow is infinite, and refused as that
            return sparse.csr_array(matrix, dtype=np.float32, copy=True)
    except ValueError as error:
        raise InputError(
            f"The sparse matrix {name} is damaged ({error}).", "Write it again with scipy.sparse."
        ) from error


def _from_torch(matrix: Tensor, name: str) -> Any:
    from scipy import sparse

    if matrix.dim() != 2:
        raise InputError(
            f"{name} has shape {tuple(matrix.shape)}.", "Give a sparse matrix (N, X)."
        )
    rows = matrix.detach().cpu().to_sparse_csr()
    parts = rows.values(), rows.col_indices(), rows.crow_indices()
    return sparse.csr_array(tuple(part.numpy() for part in parts), shape=tuple(rows.shape))


def _repeated(counts: Tensor) -> Tensor:
    """The row of each entry of rows that have so many."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

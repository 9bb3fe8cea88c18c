"""Data as a user may give them, and the examples of one split that they are."""

__all__ = ["Given", "Source", "as_examples", "in_memory"]

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrovae.data.examples import Batch, Examples
from pyrovae.data.loaders import dataset_of
from pyrovae.data.mapped import MappedRows, is_mapped
from pyrovae.data.masked import nan_where_masked
from pyrovae.data.sequences import is_ragged, pad_sequences
from pyrovae.data.sets import Data
from pyrovae.data.sparse import SparseRows, is_sparse
from pyrovae.data.splits import DATA_SEED, Sparse
from pyrovae.errors import InputError, shorten

# A `Dataset` that takes up less than this is read into memory once.
MEMORY_LIMIT = 2 * 2**30
# Data as a user may give them.
Source = (
    Tensor | np.ndarray | list[Tensor] | list[np.ndarray] | Dataset[Any] | DataLoader[Any] | Sparse
)
Given = Data | Examples | Source


def as_examples(given: Given, split: str, *, dtype: torch.dtype | None = None) -> Examples:
    """The examples of one split, from whatever container.

    Args:
        given: A data set, of which the split is taken; examples; the program's x as a tensor,
            an array, a list of sequences or a sparse matrix; or a `Dataset`, or that of a
            `DataLoader`, which is read into memory where it fits.
        split: train, valid or test.
        dtype: The floating point type of x, which a tensor or an array is turned into here.

    Raises:
        InputError: If data are no array, empty, complex, or hold NaN or infinity.
    """
    found = _examples_of(given, split, dtype)
    return found if dtype is None else found.in_type(dtype)


def _examples_of(given: Given, split: str, dtype: torch.dtype | None) -> Examples:
    if isinstance(given, Data):
        return given.splits[split]
    if isinstance(given, Examples):
        return given
    given = dataset_of(given)
    if isinstance(given, Dataset):
        held = in_memory(given)
        return Examples(given if held is None else held.x, held and held.y, split=split)

    if is_ragged(given):
        x = pad_sequences(given)
        return Examples(x if dtype is None else x.to(dtype), missing=True, split=split)
    if is_sparse(given):
        rows = SparseRows.of(given, f"The {split} data")
        return Examples(rows if dtype is None else rows.as_type(dtype), split=split)
    if is_mapped(given) and given.dtype.kind in "buif":
        kind = torch.uint8 if given.dtype == np.uint8 else dtype or torch.float32
        return Examples(MappedRows(given, dtype=kind), split=split)
    x = _as_tensor(given, split)
    if x.dtype.is_complex:
        raise InputError(f"The {split} data are complex.", "Give real numbers.")
    if not x.dim():
        raise InputError(
            f"The {split} data are a single number.",
            "Give an array whose first dimension is that of the examples.",
        )
    if x.is_floating_point() and dtype is not None:
        x = x.to(dtype)
    return Examples(x, split=split)


def _as_tensor(given: Any, split: str) -> Tensor:
    try:
        if isinstance(given, list | tuple) and given:
            return _of_list(given)
        if isinstance(given, Tensor) or type(given) is np.ndarray:
            return torch.as_tensor(given)
        # Of a small memmap a copy: torch warns of arrays that cannot be written to. A table of
        # pandas becomes an array by itself: torch would read it by its columns.
        given = nan_where_masked(given)
        return torch.as_tensor(np.array(given) if hasattr(given, "__array__") else given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The {split} data are a {type(given).__name__} that is no array ({shorten(error)}).",
            "Give a tensor or an array, or torch.utils.data.TensorDataset(x, y) with labels.",
        ) from error


def _of_list(given: list[Any] | tuple[Any, ...]) -> Tensor:
    if isinstance(given[0], Tensor):
        return torch.stack([torch.as_tensor(x) for x in given])
    return torch.as_tensor(np.asarray(given) if hasattr(given[0], "__array__") else given)


def in_memory(dataset: "Dataset[Any]") -> Batch | None:
    """The items of a `Dataset` that fits in memory, in their own units; None of one that does not.

    Items that draw noise are drawn once.
    """
    whole = Examples(dataset)
    first = whole.raw([0]).x
    if len(whole) * first.numel() * first.element_size() > MEMORY_LIMIT:
        return None

    batches = list(whole.raw_batches(torch.arange(len(whole)).split(1000), seed=DATA_SEED))
    y = [batch.y for batch in batches if batch.y is not None]
    return Batch(torch.cat([batch.x for batch in batches]), torch.cat(y) if y else None)

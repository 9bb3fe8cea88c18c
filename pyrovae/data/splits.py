"""Splits: what a source holds, as rows and labels of tensors, in three splits."""

__all__ = ["DATA_SEED", "Split", "Splits", "fingerprint", "notes_of", "split_of", "three_splits"]

import warnings
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.examples import refuse_non_finite
from pyrovae.data.mapped import MappedRows, is_mapped
from pyrovae.data.raw import Raw
from pyrovae.data.rows import Rows, blocks
from pyrovae.data.sparse import SparseRows, is_sparse
from pyrovae.errors import InputError
from pyrovae.randomness import generator

# The seed of splits and of fixed noise is one for all runs, so that their numbers compare.
DATA_SEED = 0
# A matrix or array of `scipy.sparse`, which is imported where one is met.
Sparse = Any


class Split(NamedTuple):
    """The examples of a split, their labels, and what they are called."""

    x: Rows
    y: Tensor | None
    names: np.ndarray


Splits = Mapping[str, Split]


def split_of(raw: Raw, split: str, name: str, *, missing: bool, sequences: bool) -> Split:
    """The examples of a split, in their own units.

    Args:
        raw: What was read.
        split: Which of its splits.
        name: What the data are called in errors.
        missing: Whether a NaN stands for a missing entry.
        sequences: Whether an array (N, T, X) is of sequences.

    Raises:
        InputError: If they are empty, of a shape or dtype that is not understood, hold infinity,
            or NaN where it stands for nothing, or have labels that are none.
    """
    x, y = raw.splits[split]
    rows = _rows_of(x, name, raw, missing=missing, sequences=sequences)
    count = len(rows)
    names = np.arange(count) if raw.names is None else np.asarray(raw.names[split])
    return Split(rows, _as_labels(y, count), names)


def three_splits(found: Splits, held_out: int | None) -> tuple[Splits, str]:
    """The source's own splits, completed by a seeded rule where one is missing."""
    if set(found) >= {"train", "valid", "test"}:
        return found, "the source's own splits"

    x, own_test = found["train"].x, found.get("test")
    shares = {"valid": 0.1} if own_test else {"valid": 0.1, "test": 0.1}
    if "valid" in found:
        shares = {"test": 0.1}

    if len(x) < 10:
        raise InputError(
            f"{len(x)} examples are too few to split into training, validation and test.",
            "Give at least 10, or an .npz file with the arrays train, valid and test.",
        )
    order = torch.randperm(len(x), generator=generator(DATA_SEED, "split"))
    splits = dict(found)
    for split, share in shares.items():
        count = held_out or round(share * len(x))
        rows, order = order[-count:], order[:-count]
        splits[split] = _rows(found["train"], rows)
    splits["train"] = _rows(found["train"], order)

    kept = [split for split in ("valid", "test") if split in found]
    size = held_out or "10 %"
    rule = f"{' and '.join(shares)}: a seeded {size} of the examples each"
    return splits, f"{rule}; {kept[0]}: the source's own" if kept else rule


def notes_of(splits: Splits, *, missing: bool, is_table: bool) -> Iterator[str]:
    """What is to be known of the examples: where they are, and how much of them is missing."""
    rows = [x for x, _, _ in splits.values()]
    if mapped := sum(x.nbytes for x in rows if isinstance(x, MappedRows)):
        yield f"{mapped / 1e9:,.1f} GB stay in their file, and are read batch by batch"
    if not missing:
        return
    lacking = blank = 0
    for block in (block for x in rows for block in blocks(x) if block.is_floating_point()):
        lacking += int(block.isnan().sum())
        blank += 0 if block.dim() == 1 else int(block.isnan().flatten(1).all(1).sum())
    if lacking or not is_table:
        total = sum(x.numel() for x in rows)
        yield f"{lacking:,} of {total:,} entries are missing ({lacking / total:.1%})"
    if blank:
        yield f"{blank:,} of the examples have every entry missing, and count with log p(x) = 0"


def fingerprint(splits: Splits) -> str:
    """A sha256 over the names, shapes and values of splits."""
    digest = sha256()
    for split, (x, _, _) in sorted(splits.items()):
        digest.update(f"{split} {tuple(x.shape)} {x.dtype}".encode())
        for part in x.parts if isinstance(x, SparseRows) else blocks(x):
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def _rows(split: Split, rows: Tensor) -> Split:
    x, y, names = split
    return Split(x[rows], None if y is None else y[rows], names[rows.numpy()])


# ── Arrays to tensors ────────────────────────────────────────────────────────────────────────


def _rows_of(
    array: "np.ndarray | Sparse", name: str, raw: Raw, *, missing: bool, sequences: bool
) -> Rows:
    """Rows (N, X), (N, T, X) or (N, C, H, W) of bytes or of float32.

    A cached array is as it is mapped; what is sparse stays so, and what is large in its file.
    """
    if sequences and len(array.shape) != 3:
        raise InputError(
            f"{name} has shape {array.shape}, which is not that of sequences.",
            "Give sequences (N, T, X), all of one length, or take them for what they are "
            "(--network mlp).",
        )
    if is_sparse(array):
        rows = SparseRows.of(array, name)
        refuse_non_finite(rows, f"The values of {name}", missing=missing)
        return rows
    if raw.cache is None:
        return _read_in(array, name, missing=missing, sequences=sequences)
    with warnings.catch_warnings():
        # That the map is read-only, which torch has no word for: nothing here writes to it.
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _read_in(
    array: np.ndarray, name: str, *, missing: bool, sequences: bool
) -> Tensor | MappedRows:
    """Rows (N, X), (N, T, X) or (N, C, H, W) of bytes or of float32."""
    if array.dtype.kind not in "buif":
        raise InputError(
            f"{name} holds values of dtype {array.dtype}.", "Give integers or real numbers."
        )
    if array.ndim not in (2, 3, 4):
        raise InputError(
            f"{name} has shape {array.shape}.",
            "Give vectors (N, X), or images (N, H, W), (N, H, W, C) or (N, C, H, W).",
        )
    if 0 in array.shape:
        raise InputError(
            f"{name} is empty: its shape is {array.shape}.", "Give at least one example."
        )

    rows = MappedRows(
        array if sequences else _channels_first(array, name),
        dtype=torch.uint8 if _are_bytes(array) else torch.float32,
    )
    if rows.is_floating_point():
        refuse_non_finite(rows, f"The values of {name}", missing=missing)
    return rows if is_mapped(array) else rows.read()


def _are_bytes(array: np.ndarray) -> bool:
    """Whether a byte holds any of some whole numbers."""
    if array.dtype == np.uint8:
        return True
    return array.dtype.kind in "bui" and array.min() >= 0 and array.max() <= 255


def _channels_first(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        return array[:, None]

    first, last = array.shape[1] in (1, 3, 4), array.shape[3] in (1, 3, 4)
    if first == last:
        raise InputError(
            f"In images of shape {array.shape[1:]} the channels cannot be told from the sides.",
            "Give images (N, C, H, W) or (N, H, W, C) with 1, 3 or 4 channels.",
        )
    return array if first else array.transpose(0, 3, 1, 2)


def _as_labels(y: np.ndarray | None, count: int) -> Tensor | None:
    if y is None:
        return None
    if y.dtype.kind not in "bui" or y.ndim != 1:
        raise InputError(
            f"The labels are of shape {y.shape} and dtype {y.dtype}.",
            "Give one integer for each example.",
        )
    if len(y) != count:
        raise InputError(
            f"There are {count} examples and {len(y)} labels.", "Give one for each example."
        )
    return torch.from_numpy(y.astype(np.int64))

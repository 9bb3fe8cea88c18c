"""Examples: one split of a data set, kept on the device in its own units and batched there."""

__all__ = ["Batch", "Examples", "RawBatch", "refuse_non_finite"]

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyrovae.data.items import batches_of, items_of
from pyrovae.data.preprocessing import AsIs, Preprocessing, Standardize
from pyrovae.data.rows import Rows, block_size, blocks
from pyrovae.data.sparse import SparseRows, is_sparse
from pyrovae.devices import send
from pyrovae.errors import InputError
from pyrovae.randomness import draw_key, generator, uniform
from pyrovae.ranks import ALONE, Ranks

# How many bytes a static binarisation is kept in.
SETTLED_LIMIT = 2 * 2**30


class Batch(NamedTuple):
    """What a program sees: real numbers x of shape (N, x), and labels (N,) where there are any."""

    x: Tensor
    y: Tensor | None = None


class RawBatch(NamedTuple):
    """Rows of a data set in its own units, before preprocessing."""

    rows: Tensor
    x: Tensor
    y: Tensor | None


class Examples:
    """The examples of one split, ready to be batched.

    Tensors stay in their own dtype (an 8-bit image takes a byte per pixel) and are indexed,
    and preprocessed, on the device: no DataLoader, no Python per example. Sparse rows stay as
    sparse as they are, and become dense batch by batch; rows of a file that is mapped stay there,
    and are read batch by batch. A `Dataset` streams through DataLoader
    workers instead; whatever its items draw is a function of the seed, the epoch and the
    example, for any number of workers.

    Args:
        x: The observations: a tensor (N, x), a matrix (N, X) of `scipy.sparse` or a sparse
            tensor, or a `Dataset` of x or of (x, y).
        y: The labels of a tensor or a matrix, with shape (N,).
        preprocessing: How they become the program's x.
        missing: Whether a NaN stands for a missing entry, as `NanMaskedDecoder` and
            `TabularDecoder` take it. Otherwise NaN is refused.
        split: What the examples are for; it keys their fixed noise.
        seed: The seed of their fixed noise.
        names: What each is called, such as its file, or its row where they were drawn from more.
        num_workers: The number of DataLoader workers of a streamed `Dataset`.

    Raises:
        InputError: If there is no example, x is an array or a table, the labels are no tensor of
            one for each, or a tensor holds infinity, or NaN where it stands for nothing.

    Example:
        >>> train = Examples(torch.arange(6.0).reshape(3, 2))
        >>> [batch.x.shape for batch in train.in_order(2)]
        [torch.Size([2, 2]), torch.Size([1, 2])]
    """

    def __init__(
        self,
        x: "Rows | Dataset[Any] | Any",
        y: Tensor | None = None,
        *,
        preprocessing: Preprocessing | None = None,
        missing: bool = False,
        split: str = "train",
        seed: int = 0,
        names: "np.ndarray | None" = None,
        num_workers: int = 2,
    ) -> None:
        name = f"The {split} data"
        # An array has a length and items, as a Dataset has; those of a table are its columns.
        if hasattr(x, "__array__") and not isinstance(x, Rows):
            raise InputError(f"{name} are a {type(x).__name__}.", "Give a tensor of them.")
        self._x: Rows | Dataset[Any] = SparseRows.of(x, name) if is_sparse(x) else x
        self._y = y
        self.preprocessing: Preprocessing = preprocessing or AsIs()
        self.missing = missing
        self.split = split
        self.seed = seed
        self.names = names
        self.num_workers = num_workers
        self.device = self._x.device if isinstance(self._x, Rows) else torch.device("cpu")
        self.dtype: torch.dtype | None = None  # of x; None where it is as preprocessing leaves it

        if len(self) == 0:
            raise InputError(f"The {split} set is empty.", "Give data with at least one example.")
        if y is not None and not isinstance(y, Tensor):
            raise InputError(
                f"The labels of the {split} set are a {type(y).__name__}.",
                "Give a tensor of them: torch.as_tensor(y).",
            )
        if y is not None and len(y) != len(self):
            raise InputError(
                f"The {split} set has {len(self)} examples and {len(y)} labels.",
                "Give one label for each example.",
            )
        if isinstance(self._x, Rows) and self._x.is_floating_point():
            refuse_non_finite(self._x, name, missing=missing)

    def __len__(self) -> int:
        return len(self._x)  # pyright: ignore[reportArgumentType]

    @property
    def streams(self) -> bool:
        """Whether the examples are read as they are needed."""
        return not isinstance(self._x, Rows)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return tuple(self.raw([0]).x.shape[1:])

    def digest(self) -> str | None:
        """A sha256 over the examples in memory, without labels; None of those that stream."""
        return _digest(self._x.split(self.block)) if isinstance(self._x, Rows) else None

    def label_digest(self) -> str | None:
        """A sha256 over the labels; None where there are none, or they stream."""
        return None if self._y is None else _digest([self._y])

    @property
    def block(self) -> int:
        """How many examples to take at a time where that is free: at most 1,000."""
        return block_size(self.x_shape)

    @property
    def y(self) -> Tensor | None:
        """The labels, with shape (N,), of examples in memory."""
        return self._y

    def to(self, device: torch.device) -> "Examples":
        """These examples on a device, or with their batches made there.

        Examples in memory move as a whole where they take up at most half of what the device has
        free; streamed ones, and larger ones, are moved a batch at a time.
        """
        moved = copy(self)
        moved.device = device
        moved.__dict__.pop("_settled", None)
        if isinstance(self._x, Rows) and _fits(self._x, device):
            moved._x = self._x.to(device)
            moved._y = None if self._y is None else self._y.to(device)
        return moved

    def in_type(self, dtype: torch.dtype) -> "Examples":
        """These examples, their x in the floating point type of a program."""
        other = copy(self)
        other.dtype = dtype
        return other

    def preprocessed(self, preprocessing: Preprocessing) -> "Examples":
        """These examples with another preprocessing."""
        other = copy(self)
        other.preprocessing = preprocessing
        other.__dict__.pop("_settled", None)
        return other

    def standardization(self) -> Standardize:
        """What takes these examples, in memory, to mean zero and standard deviation one."""
        assert isinstance(self._x, Rows)
        return Standardize.of(self._x)

    def raw(self, rows: Tensor | list[int]) -> RawBatch:
        """Some examples in the data's own units."""
        rows = torch.as_tensor(rows)
        if isinstance(self._x, Rows):
            index = send(rows, self._x.device)
            y = None if self._y is None else self._y[index]
            return self._move(rows, self._x.index_select(0, index), y)

        return self._move(rows, *items_of(self._x, rows.tolist(), seed=self.seed))

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        together: int = 1,
        ranks: Ranks = ALONE,
    ) -> Iterator[RawBatch]:
        """The batches of a training epoch, their order a function of (seed, epoch).

        Of an epoch that is gone on with they are those from number `start` on. So many `together`
        come as one, up to the next multiple of that number. Of several processes each has its
        share of a batch, or else, to have something to run on, its first row.
        """
        order = torch.randperm(len(self), generator=generator(seed, "permutation", epoch))
        rest, size = order[start * batch_size :], together * batch_size
        lead = rest[: -start % together * batch_size]
        batches = [part for part in (lead, *rest[len(lead) :].split(size)) if len(part)]
        shares = [ranks.rows(b) if ranks.share(len(b)) else b[:1] for b in batches]

        return self.raw_batches(shares, seed=seed, epoch=epoch)

    def in_order(self, batch_size: int, *, limit: int | None = None) -> Iterator[Batch]:
        """The examples as they stand, with the same noise at every call: for reported numbers."""
        count = len(self) if limit is None else min(limit, len(self))

        return self.chosen(torch.arange(count), batch_size)

    def chosen(self, rows: Tensor, batch_size: int) -> Iterator[Batch]:
        """Some examples, each with the noise that it has in `in_order`."""
        for raw in self.raw_batches(rows.split(batch_size), seed=self.seed):
            yield self._fix(raw)

    def head(self, count: int) -> Batch:
        """The first examples, as `in_order` gives them."""
        return next(self.in_order(count, limit=count))

    def redraw(self, x: Tensor) -> Tensor:
        """Preprocesses values in the data's own units, noise from the global generator."""
        return self._preprocess(x, uniform(x.shape, x.device))

    def prepare(self, raw: RawBatch) -> Batch:
        """What a program is trained on: noise, where it is redrawn, from the global generator."""
        if self.preprocessing.redraws:
            return Batch(self.redraw(raw.x), raw.y)

        if self.preprocessing.needs_noise and self._can_settle:
            rows = send(raw.rows, self._settled.device)
            x = send(self._settled[rows], self.device)
            return Batch(x.to(self.dtype or torch.float32), raw.y)

        return self._fix(raw)

    @property
    def _can_settle(self) -> bool:
        # A byte cannot be missing, and what is mapped is not to be held.
        if self.missing or not isinstance(self._x, Tensor | SparseRows):
            return False
        return self._x.numel() <= SETTLED_LIMIT

    @cached_property
    def _settled(self) -> Tensor:
        """Every example after a static binarisation, a byte per value."""
        settled = torch.cat([batch.x.byte() for batch in self.in_order(self.block)])
        return settled.to(self._x.device) if isinstance(self._x, Rows) else settled

    def _fix(self, raw: RawBatch) -> Batch:
        """Preprocesses with noise from (seed, split, index): the same on every device."""
        if not self.preprocessing.needs_noise:
            return Batch(self._preprocess(raw.x, None), raw.y)

        source = torch.Generator()
        noise = [
            torch.rand(
                raw.x.shape[1:],
                generator=source.manual_seed(draw_key(self.seed, self.split, row)),
            )
            for row in raw.rows.tolist()
        ]
        return Batch(self._preprocess(raw.x, send(torch.stack(noise), raw.x.device)), raw.y)

    def _preprocess(self, x: Tensor, noise: Tensor | None) -> Tensor:
        found = self.preprocessing.apply(x, noise)
        return found if self.dtype is None else found.to(self.dtype)

    def raw_batches(
        self, groups: Sequence[Tensor], *, seed: int, epoch: int = 0
    ) -> Iterator[RawBatch]:
        """Groups of rows in the data's own units; (seed, epoch) key what a `Dataset` draws."""
        if isinstance(self._x, Rows):
            yield from map(self.raw, groups)
            return

        items = batches_of(self._x, groups, seed=seed, epoch=epoch, num_workers=self.num_workers)
        for rows, (x, y) in zip(groups, items, strict=True):
            yield self._move(rows, x, y)

    def _move(self, rows: Tensor, x: Tensor, y: Tensor | None) -> RawBatch:
        return RawBatch(rows, send(x, self.device), None if y is None else send(y, self.device))


def refuse_non_finite(x: Rows, name: str, *, missing: bool) -> None:
    """Refuses infinity, and NaN where it does not stand for a missing entry.

    Args:
        x: Real numbers, (N, x).
        name: What they are called.
        missing: Whether NaN stands for a missing entry.

    Raises:
        InputError: Naming the first example.
    """
    found = (block.isinf() if missing else ~block.isfinite() for block in blocks(x))
    if isinstance(x, SparseRows):
        rows = x.rows_with(next(found))
    else:
        rows = torch.cat([wrong.reshape(len(wrong), -1).any(1) for wrong in found])
    if rows.any():
        remedy = "Remove these examples, or fill in their values"
        raise InputError(
            f"{name} hold {'infinite' if missing else 'NaN, infinite'} or overflowing values, "
            f"first in example {int(rows.nonzero()[0])} "
            f"({int(rows.sum())} of {len(x)} examples).",
            f"{remedy}."
            if missing
            else f"{remedy}; where NaN stands for a missing entry, train with --missing, or "
            "give load_data, or Examples, missing=True.",
        )
    is_dense = not isinstance(x, SparseRows) or x.values.numel() == x.numel()
    if missing and is_dense and all(bool(block.isnan().all()) for block in blocks(x)):
        raise InputError(f"{name} hold no value at all.", "Give data of which some are observed.")


def _digest(parts: Iterable[Tensor]) -> str:
    found = sha256()
    for part in parts:
        found.update(part.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _fits(x: Rows, device: torch.device) -> bool:
    if device.type != "cuda" or x.device == device:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return x.nbytes <= free // 2

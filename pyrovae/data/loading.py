"""Loading: from a name, a file or an array to three splits with their preprocessing."""

__all__ = ["Data", "Given", "as_examples", "load_data", "load_examples"]

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrovae.data import folders, sources, tables
from pyrovae.data.decoding import Decoding
from pyrovae.data.examples import Batch, Examples, refuse_non_finite
from pyrovae.data.loaders import dataset_of
from pyrovae.data.mapped import MappedRows, is_mapped
from pyrovae.data.named import NAMED
from pyrovae.data.precision import refuse_lost_digits
from pyrovae.data.preprocessing import (
    BINARIZE_MODES,
    AsIs,
    Binarize,
    Dequantize,
    Preprocessing,
    Standardize,
    extent,
    observed,
)
from pyrovae.data.raw import Raw, data_folder
from pyrovae.data.rows import Rows, blocks
from pyrovae.data.sequences import is_ragged, pad_sequences
from pyrovae.data.sparse import SparseRows, is_sparse
from pyrovae.data.tables import Column
from pyrovae.errors import InputError, shorten
from pyrovae.randomness import generator

# The seed of splits and of fixed noise is one for all runs, so that their numbers compare.
DATA_SEED = 0
# A matrix or array of `scipy.sparse`, which is imported where one is met.
Sparse = Any
# A `Dataset` that takes up less than this is read into memory once.
MEMORY_LIMIT = 2 * 2**30


@dataclass(frozen=True)
class Data:
    """A data set in three splits, with one preprocessing.

    Attributes:
        name: The name or path that it was asked for by, or "array".
        train: The training examples.
        valid: The validation examples.
        test: The test examples.
        values: What the values are: binary, grey, unit (real, within [0, 1]), counts, real, or the
            columns of a table.
        split_rule: The rule that made the splits.
        fingerprint: A sha256 over shapes and values, or None for data that stream.
        source: The name or path to load it again by, or None for an array.
        data_dir: The folder of named sets, as it was given.
        images: What was made of the files of a folder of images: the arguments of `load_data`.
        cache: A phrase about the cache of those, with its path and size.
        columns: What the columns of a table hold.
        notes: What is to be known of how the data were read.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    values: str
    split_rule: str
    fingerprint: str | None = None
    source: str | None = None
    data_dir: str | None = None
    images: Mapping[str, Any] | None = None
    cache: str | None = None
    columns: tuple[Column, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> Preprocessing:
        """How the data become the program's x."""
        return self.train.preprocessing

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one observation: (X,), (T, X) for sequences, or (C, H, W)."""
        return self.train.x_shape

    @property
    def splits(self) -> dict[str, Examples]:
        """The three splits by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def preprocessed(self, preprocessing: Preprocessing) -> "Data":
        """The three splits with another preprocessing."""
        made = {name: x.preprocessed(preprocessing) for name, x in self.splits.items()}
        return replace(self, **made)

    def standardized(self) -> "Data":
        """The three splits, standardised by the training moments instead of as they were."""
        return self.preprocessed(self.train.standardization())

    def to(self, device: torch.device) -> "Data":
        """The three splits on a device."""
        return replace(self, **{name: split.to(device) for name, split in self.splits.items()})


# Data as a user may give them.
Source = (
    Tensor | np.ndarray | list[Tensor] | list[np.ndarray] | Dataset[Any] | DataLoader[Any] | Sparse
)
Given = Data | Examples | Source


def load_data(
    source: str | os.PathLike[str] | Source,
    y: "np.ndarray | Tensor | None" = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    binarize: str | None = None,
    preprocessing: Preprocessing | None = None,
    missing: bool = False,
    columns: tables.Asked = None,
    sequences: bool = False,
    size: "int | tuple[int, int] | str | None" = None,
    pad: bool = False,
    grey: bool | None = None,
    skip_bad: bool = False,
) -> Data:
    """Loads data by name, from files, or from an array, with defaults that follow from them.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) and become (N, C, H, W); vectors are
    (N, X). Three dimensions are those of sequences (N, T, X) only where that is said. A list of
    sequences (T, X) of several lengths becomes one array, see `pad_sequences`. A source with
    splits of its own keeps them; else a seeded permutation, the same for every run, gives 80 % to
    training and 10 % each to validation and test (Frey Faces: 200 each).

    The images of a folder become bytes of one shape, in a file that is made once and mapped into
    memory, so that they may be more than fit there. Its subfolders named train, valid and test
    are splits, any others labels; without splits, copies of one image fall into the same one.

    Of a table the first line names the columns. One of two different texts is binary, of whole
    numbers whole, of other numbers numeric, of other texts categorical, and becomes codes 0, 1,
    ...; an entry that is empty, ?, or one of the marks of pandas (NA, NaN, null, None, N/A, ...)
    is missing. `Data.columns` says what each one is.

    Sparse matrices (N, X) stay sparse, and are made dense a batch at a time. A .npy file, or a
    memmap of numpy's, of 256 MiB or more stays mapped, and is read a batch at a time.

    | data | preprocessing |
    |---|---|
    | digits and the MNIST family | dynamic binarisation |
    | values in {0, 1} | as they are |
    | other 8-bit images | dequantised: (value + u) / 256 |
    | real images within [0, 1] | as they are |
    | sparse whole numbers from 0: counts | as they are |
    | tables | numbers standardised, codes as they are |
    | other real values | standardised by the training moments |

    Args:
        source: A name (digits, mnist, fashion-mnist, kmnist, binarized-mnist, frey-faces), the
            path of a folder of images or of a file (.npy, .npz, .mtx, .h5ad, .csv, .tsv), an
            array, a tensor, a list of sequences, a matrix of `scipy.sparse` or a sparse tensor, or
            a torch `Dataset`.
        y: Labels (N,) of an array, a tensor, a list or a matrix.
        data_dir: Where named sets lie, instead of `PYROVAE_DATA` or the user's cache.
        binarize: none, threshold, static or dynamic, instead of the default of the table.
        preprocessing: A preprocessing to apply as it is, as stored in a run, or for a table with
            columns of codes, `Standardize.of(rows, columns=columns)`.
        missing: Whether a NaN stands for a missing entry, as `NanMaskedDecoder` and
            `TabularDecoder` take it. Otherwise NaN is refused. In a table it always does.
        columns: What columns of a table hold, by name, where it is not to be inferred: numeric,
            whole, binary, categorical, ignore, or the list of their categories; or the path of a
            JSON file that says so; or `Data.columns` of another table, which are then read alone.
        sequences: Whether an array (N, T, X) is of sequences, T steps of X numbers, which are
            standardised number by number as vectors are.
        size: For a folder, the size that all images are made to have: 64, or height x width as
            (48, 64) or "48x64". The shorter side is scaled and the centre cut out. If None, they
            must be of one size.
        pad: For a folder, whether to scale the longer side instead, and fill up with black.
        grey: For a folder, whether to make images grey (True) or of three colours (False). If
            None, they are grey where all of them are.
        skip_bad: For a folder, whether to leave out files that cannot be read.

    Raises:
        InputError: If the data are missing, unreadable, empty, of a shape or dtype that is not
            understood, or hold infinity, or NaN where it stands for nothing, or numbers whose
            differences float32 loses.

    Example:
        >>> data = load_data("digits")
        >>> len(data.train), len(data.valid), len(data.test), data.x_shape
        (1437, 180, 180, (1, 8, 8))
        >>> data.preprocessing
        Binarize(mode='dynamic', maximum=16)
    """
    decoding = Decoding(size, pad, grey, skip_bad)
    if is_ragged(source):
        source, missing, sequences = pad_sequences(source), True, True
    source = dataset_of(source)
    if isinstance(source, Dataset):
        if y is not None:
            raise InputError("A Dataset brings its own labels.", "Give no y, or an array for x.")
        _refuse_decoding("a Dataset", decoding)
        _refuse_columns("A Dataset", columns)
        return _from_dataset(source, binarize, preprocessing, missing, sequences)

    if isinstance(source, str | os.PathLike):
        name, raw = str(source), _read(source, data_dir, decoding, columns)
    else:
        name, raw = "array", _as_raw(source, y)
    if not _is_folder(source):
        _refuse_decoding(name, decoding)
    if raw.columns is None:
        _refuse_columns(name, columns)
    missing = missing or raw.columns is not None

    tensors = {
        split: _Split(
            _rows_of(x, name, raw, missing=missing, sequences=sequences),
            _as_labels(y, x.shape[0]),
            _names_of(raw, split, x.shape[0]),
        )
        for split, (x, y) in raw.splits.items()
    }
    # Of training data alone: others may lie close together, and are measured by its scale.
    if not is_sparse(trained_on := raw.splits["train"][0]):
        rows = trained_on.reshape(-1, trained_on.shape[-1]) if sequences else trained_on
        refuse_lost_digits(rows, name, [column.name for column in raw.columns or ()])
    fingerprint = raw.fingerprint or _fingerprint(tensors)
    splits, rule = _three_splits(tensors, raw.held_out)
    train_x = splits["train"].x
    values = "columns" if raw.columns else _kind(train_x, raw.maximum)
    if preprocessing is None:
        preprocessing = _choose(train_x, values, raw, binarize)
    for x, _, _ in splits.values():
        preprocessing.check(x)

    examples = {
        split: Examples(
            found.x,
            found.y,
            preprocessing=preprocessing,
            missing=missing,
            split=split,
            seed=DATA_SEED,
            names=found.names,
        )
        for split, found in splits.items()
    }
    return Data(
        name,
        **examples,
        values=values,
        split_rule=raw.split_rule or rule,
        fingerprint=fingerprint,
        source=_lasting_name(name),
        data_dir=str(data_folder(data_dir).resolve()) if name in NAMED else None,
        images=asdict(decoding) if _is_folder(source) else None,
        cache=raw.cache,
        columns=raw.columns,
        notes=(
            *raw.notes,
            *_notes_of(splits, missing=missing, is_table=raw.columns is not None),
        ),
    )


def _as_raw(source: "np.ndarray | Tensor | Sparse", y: "np.ndarray | Tensor | None") -> Raw:
    """An array, or what is sparse as it is, and labels."""
    array: Any = source
    if not is_sparse(source):
        array = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
        array = array if isinstance(array, np.memmap) else np.asarray(array)
    return Raw({"train": (array, None if y is None else np.asarray(y))})


def _is_folder(source: Any) -> bool:
    """Whether a source is a folder rather than a named set, a file or an array."""
    return (
        isinstance(source, str | os.PathLike)
        and str(source) not in NAMED
        and Path(source).expanduser().is_dir()
    )


def _refuse_decoding(name: str, decoding: Decoding) -> None:
    if decoding != Decoding():
        raise InputError(
            f"{name} is no folder of images, whose sizes and colours alone can be chosen.",
            "Leave out size, pad, grey and skip_bad.",
        )


def _refuse_columns(name: str, columns: tables.Asked) -> None:
    if columns is not None:
        raise InputError(f"{name} is no table.", "Leave out columns, or give a .csv or .tsv file.")


def _read(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None,
    decoding: Decoding,
    columns: tables.Asked = None,
    *,
    whole: bool = False,
) -> Raw:
    if _is_folder(source):
        return folders.read(Path(source).expanduser(), decoding, whole=whole)
    return sources.read(str(source), data_dir, columns=columns)


def as_examples(given: Given, split: str, *, dtype: torch.dtype | None = None) -> Examples:
    """The examples of one split, from whatever container.

    Args:
        given: A data set, of which the split is taken; examples; the program's x as a tensor,
            an array, a list of sequences or a sparse matrix; or a `Dataset`, or that of a
            `DataLoader`, which is read into memory where it fits.
        split: train, valid or test.
        dtype: The floating point type that a tensor or an array is turned into.

    Raises:
        InputError: If data are no array, empty, complex, or hold NaN or infinity.
    """
    if isinstance(given, Data):
        return given.splits[split]
    if isinstance(given, Examples):
        return given
    given = dataset_of(given)
    if isinstance(given, Dataset):
        held = _in_memory(given)
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
    # Of a small memmap a copy: torch warns of arrays that cannot be written to. A table of pandas
    # becomes an array by itself: torch would read it by its columns.
    plain = isinstance(given, Tensor) or type(given) is np.ndarray
    try:
        x = torch.as_tensor(
            np.array(given) if hasattr(given, "__array__") and not plain else given
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The {split} data are a {type(given).__name__} that is no array ({shorten(error)}).",
            "Give a tensor or an array, or torch.utils.data.TensorDataset(x, y) with labels.",
        ) from error
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


def _lasting_name(name: str) -> str | None:
    """What the data can be loaded by again, from any folder."""
    if name == "array":
        return None
    return name if name in NAMED else str(Path(name).expanduser().resolve())


def load_examples(
    source: str | os.PathLike[str] | np.ndarray | Tensor,
    preprocessing: Preprocessing,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    missing: bool = False,
    images: Mapping[str, Any] | None = None,
    columns: Sequence[Column] | None = None,
    sequences: bool = False,
) -> Examples:
    """The test set of a source that has one, or else all its examples, preprocessed as told.

    Args:
        source: A name, the path of a file or of a folder of images, an array or a tensor.
        preprocessing: How they become the program's x.
        data_dir: Where named sets lie.
        missing: Whether a NaN stands for a missing entry.
        images: What is to be made of the images of a folder, as `load_data` takes it.
        columns: The columns of a table that are read.
        sequences: Whether an array (N, T, X) is of sequences.

    Raises:
        InputError: As `load_data`.
    """
    if isinstance(source, str | os.PathLike):
        name = str(source)
        raw = _read(source, data_dir, Decoding(**images or {}), columns, whole=True)
    else:
        name, raw = "array", _as_raw(source, None)
    split = "test" if "test" in raw.splits else "train"
    x, y = raw.splits[split]
    rows = _rows_of(x, name, raw, missing=missing, sequences=sequences)
    preprocessing.check(rows)
    return Examples(
        rows,
        _as_labels(y, len(rows)),
        preprocessing=preprocessing,
        missing=missing,
        split="test",
        seed=DATA_SEED,
        names=_names_of(raw, split, len(rows)),
    )


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


# ── Splits and defaults ──────────────────────────────────────────────────────────────────────


class _Split(NamedTuple):
    """The examples of a split, their labels, and what they are called."""

    x: Rows
    y: Tensor | None
    names: np.ndarray


Splits = Mapping[str, _Split]


def _names_of(raw: Raw, split: str, count: int) -> np.ndarray:
    """What the source calls the examples of a split, or else the numbers of their rows."""
    return np.arange(count) if raw.names is None else np.asarray(raw.names[split])


def _three_splits(found: Splits, held_out: int | None) -> tuple[Splits, str]:
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


def _notes_of(splits: Splits, *, missing: bool, is_table: bool) -> Iterator[str]:
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


def _rows(split: _Split, rows: Tensor) -> _Split:
    x, y, names = split
    return _Split(x[rows], None if y is None else y[rows], names[rows.numpy()])


def _kind(x: Rows, maximum: float | None) -> str:
    # In blocks, of which the first mostly tells: the data may be more than memory holds.
    if all(bool(((seen == 0) | (seen == 1)).all()) for seen in observed(x)):
        return "binary"
    if isinstance(x, SparseRows):
        whole = all(bool(((seen >= 0) & (seen == seen.round())).all()) for seen in observed(x))
        return "counts" if whole else "real"
    if x.dtype == torch.uint8:
        return "grey" if x.dim() == 4 or maximum else "real"
    is_unit = x.dim() == 4 and all(bool(((s >= 0) & (s <= 1)).all()) for s in observed(x))
    return "unit" if is_unit else "real"


def _choose(x: Rows, values: str, raw: Raw, binarize: str | None) -> Preprocessing:
    mode = binarize or (raw.binarize if values != "binary" else None) or "none"
    if mode not in ("none", *BINARIZE_MODES):
        raise InputError(
            f"There is no binarisation {mode!r}.",
            f"Take one of none, {', '.join(BINARIZE_MODES)}.",
        )

    if raw.columns is not None:
        if mode != "none":
            raise InputError("A table is not binarised.", "Leave out binarize.")
        return Standardize.of(x, columns=[column.codes for column in raw.columns])
    if mode != "none":
        maximum = raw.maximum or (255.0 if x.dtype == torch.uint8 else 1.0)
        if values == "binary":
            maximum = 1.0
        low, high = extent(x)
        if low < 0 or high > maximum:
            raise InputError(
                f"Real values from {low:.3g} to {high:.3g} have no grey scale to binarise.",
                "Scale them to [0, 1] first, or take --binarize none.",
            )
        return Binarize(mode, maximum)

    if values == "grey":
        return Dequantize(int(raw.maximum or 255) + 1)
    return Standardize.of(x) if values == "real" else AsIs()


def _fingerprint(splits: Splits) -> str:
    digest = sha256()
    for split, (x, _, _) in sorted(splits.items()):
        digest.update(f"{split} {tuple(x.shape)} {x.dtype}".encode())
        for part in x.parts if isinstance(x, SparseRows) else blocks(x):
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


# ── Datasets ─────────────────────────────────────────────────────────────────────────────────


def _from_dataset(
    dataset: "Dataset[Any]",
    binarize: str | None,
    preprocessing: Preprocessing | None,
    missing: bool,
    sequences: bool,
) -> Data:
    """Reads a `Dataset` into memory where it fits, and streams it where it does not."""
    size = len(dataset)  # pyright: ignore[reportArgumentType]
    if size == 0:
        raise InputError("The Dataset is empty.", "Give data with at least one example.")

    held = _in_memory(dataset)
    if held is not None:
        return load_data(
            held.x,
            held.y,
            binarize=binarize,
            preprocessing=preprocessing,
            missing=missing,
            sequences=sequences,
        )

    if binarize not in (None, "none"):
        raise InputError(
            "A Dataset that streams cannot be binarised by name.",
            "Give preprocessing=Binarize(mode, maximum), which says what stands for one.",
        )

    order = torch.randperm(size, generator=generator(DATA_SEED, "split"))
    tenth = size // 10
    rows = {"test": order[:tenth], "valid": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    examples = {
        split: Examples(
            torch.utils.data.Subset(dataset, some.tolist()),
            preprocessing=preprocessing,
            missing=missing,
            split=split,
            seed=DATA_SEED,
        )
        for split, some in rows.items()
    }
    return Data(
        "dataset",
        train=examples["train"],
        valid=examples["valid"],
        test=examples["test"],
        values="real",
        split_rule="valid and test: a seeded 10 % of the examples each",
    )


def _in_memory(dataset: "Dataset[Any]") -> Batch | None:
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

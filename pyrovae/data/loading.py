"""Loading: from a name, a file or an array to three splits with their preprocessing."""

__all__ = ["load_data", "load_examples"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyrovae.data import folders, sources, tables
from pyrovae.data.decoding import Decoding
from pyrovae.data.defaults import kind_of, preprocessing_for
from pyrovae.data.examples import Examples
from pyrovae.data.given import Source, in_memory
from pyrovae.data.loaders import dataset_of
from pyrovae.data.masked import nan_where_masked
from pyrovae.data.named import NAMED
from pyrovae.data.precision import refuse_lost_digits
from pyrovae.data.preprocessing import Preprocessing
from pyrovae.data.raw import Raw, data_folder
from pyrovae.data.sequences import is_ragged, pad_sequences
from pyrovae.data.sets import Data
from pyrovae.data.sparse import is_sparse
from pyrovae.data.splits import (
    DATA_SEED,
    Sparse,
    Split,
    fingerprint,
    notes_of,
    split_of,
    three_splits,
)
from pyrovae.data.tables import Column
from pyrovae.errors import InputError, shorten
from pyrovae.randomness import generator


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

    found = {
        split: split_of(raw, split, name, missing=missing, sequences=sequences)
        for split in raw.splits
    }
    # Of training data alone: others may lie close together, and are measured by its scale.
    if not is_sparse(trained_on := raw.splits["train"][0]):
        rows = trained_on.reshape(-1, trained_on.shape[-1]) if sequences else trained_on
        refuse_lost_digits(rows, name, [column.name for column in raw.columns or ()])
    splits, rule = three_splits(found, raw.held_out)
    train_x = splits["train"].x
    values = "columns" if raw.columns else kind_of(train_x, raw.maximum)
    if preprocessing is None:
        preprocessing = preprocessing_for(train_x, values, raw, binarize)
    return Data(
        name,
        **{
            split: _examples(rows, split, preprocessing, missing=missing)
            for split, rows in splits.items()
        },
        values=values,
        split_rule=raw.split_rule or rule,
        fingerprint=raw.fingerprint or fingerprint(found),
        source=_lasting_name(name),
        data_dir=str(data_folder(data_dir).resolve()) if name in NAMED else None,
        images=asdict(decoding) if _is_folder(source) else None,
        cache=raw.cache,
        columns=raw.columns,
        notes=(
            *raw.notes,
            *notes_of(splits, missing=missing, is_table=raw.columns is not None),
        ),
    )


def _as_raw(source: "np.ndarray | Tensor | Sparse", y: "np.ndarray | Tensor | None") -> Raw:
    """An array, or what is sparse as it is, and labels."""
    array: Any = source
    if not is_sparse(source):
        array = (
            source.detach().cpu().numpy()
            if isinstance(source, Tensor)
            else nan_where_masked(source)
        )
        array = array if isinstance(array, np.memmap) else _as_array(array)
    return Raw({"train": (array, None if y is None else np.asarray(y))})


def _as_array(given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The data are a {type(given).__name__} that is no array ({shorten(error)}).",
            "Give an array or a tensor, and labels apart: load_data(x, y).",
        ) from error


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


def _lasting_name(name: str) -> str | None:
    """What the data can be loaded by again, from any folder."""
    if name == "array":
        return None
    return name if name in NAMED else str(Path(name).expanduser().resolve())


def load_examples(
    source: str | os.PathLike[str] | Source,
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
        source: A name, the path of a file or of a folder of images, an array or a tensor, or a
            `Dataset`, with labels where its items have some.
        preprocessing: How they become the program's x.
        data_dir: Where named sets lie.
        missing: Whether a NaN stands for a missing entry.
        images: What is to be made of the images of a folder, as `load_data` takes it.
        columns: The columns of a table that are read.
        sequences: Whether an array (N, T, X) is of sequences.

    Raises:
        InputError: As `load_data`.
    """
    source = pad_sequences(source) if is_ragged(source) else dataset_of(source)
    if isinstance(source, Dataset):
        held = in_memory(source)
        found = Examples(
            source if held is None else held.x,
            None if held is None else held.y,
            preprocessing=preprocessing,
            missing=missing,
            split="test",
            seed=DATA_SEED,
        )
        if held is not None:
            preprocessing.check(held.x)
        return found
    if isinstance(source, str | os.PathLike):
        name = str(source)
        raw = _read(source, data_dir, Decoding(**images or {}), columns, whole=True)
    else:
        name, raw = "array", _as_raw(source, None)
    split = "test" if "test" in raw.splits else "train"
    rows = split_of(raw, split, name, missing=missing, sequences=sequences)
    return _examples(rows, "test", preprocessing, missing=missing)


def _examples(rows: Split, split: str, preprocessing: Preprocessing, *, missing: bool) -> Examples:
    """The examples of a split, which the preprocessing has to understand."""
    preprocessing.check(rows.x)
    return Examples(
        rows.x,
        rows.y,
        preprocessing=preprocessing,
        missing=missing,
        split=split,
        seed=DATA_SEED,
        names=rows.names,
    )


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

    held = in_memory(dataset)
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

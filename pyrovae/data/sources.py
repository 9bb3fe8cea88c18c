"""Sources: data by name or by path, as arrays in their own units."""

__all__ = ["read"]

import os
from pathlib import Path

import numpy as np

from pyrovae.data import arrays, counts, tables
from pyrovae.data.named import NAMED
from pyrovae.data.raw import SPLITS, Raw, Split, data_folder
from pyrovae.errors import InputError


def read(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    columns: tables.Asked = None,
) -> Raw:
    """Reads a named set, or a file: of arrays, of counts, or a table of such columns.

    Raises:
        InputError: If there is no such name or file, or it cannot be read.
    """
    if name in NAMED:
        return NAMED[name].read(data_folder(data_dir))

    path = Path(name).expanduser()
    if path.suffix.lower() in tables.SUFFIXES:
        table = tables.read(path, columns)
        return Raw({"train": (table.rows, None)}, columns=table.columns, notes=table.notes)
    if path.name.lower().endswith(counts.SUFFIXES):
        x, y, names = counts.read(path)
        return Raw({"train": (x, y)}, names=None if names is None else {"train": names})
    if path.suffix.lower() not in (".npy", ".npz"):
        raise InputError(
            f"{name!r} is neither a named data set, nor a folder, nor a file of data: .npy, .npz, "
            f"{', '.join((*counts.SUFFIXES, *tables.SUFFIXES))}.",
            f"Take one of {', '.join(NAMED)}, or the path of a file or of a folder of images.",
        )
    return Raw(_read_arrays(path))


def _read_arrays(path: Path) -> dict[str, Split]:
    found = arrays.load(path)
    if isinstance(found, np.ndarray):
        return {"train": (found, None)}
    if counts.is_matrix(found):
        x, y, _ = counts.read_npz(path, found)
        return {"train": (x, y)}

    if "train" in found:
        return {
            split: (found[split], found.get(f"{split}_labels"))
            for split in SPLITS
            if split in found
        }

    labels = found.pop("y", None)
    if len(found) != 1 and "x" not in found:
        raise InputError(
            f"{path} holds the arrays {sorted(found)}, and none is named x.",
            "Name the observations x (and labels y), or the splits train, valid and test.",
        )
    return {"train": (found["x"] if "x" in found else next(iter(found.values())), labels)}

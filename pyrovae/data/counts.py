"""Files of sparse matrices: what scipy and Matrix Market write, and single cells in .h5ad."""

__all__ = ["SUFFIXES", "Counts", "is_matrix", "read", "read_npz"]

import gzip
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyrovae.errors import InputError, first_line

SUFFIXES = (".mtx", ".mtx.gz", ".h5ad")


class Counts(NamedTuple):
    """A matrix whose rows are examples, and what is known of them.

    Attributes:
        x: The matrix.
        y: Their labels.
        names: What they are called.
    """

    x: Any
    y: np.ndarray | None = None
    names: Sequence[str] | None = None


def read(path: Path) -> Counts:
    """Reads a .mtx or .h5ad file.

    Labels are the only column of categories that an .h5ad file has of its examples, and names
    its index of them.

    Raises:
        InputError: If there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Check the path.")
    is_h5ad = path.suffix.lower() == ".h5ad"
    try:
        return _read_h5ad(path) if is_h5ad else Counts(_read_mtx(path))
    except InputError:
        raise
    except Exception as error:  # scipy, h5py and anndata raise what they please
        what = "anndata" if is_h5ad else "scipy.io.mmwrite"
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}).",
            f"Write it again with {what}.",
        ) from error


def is_matrix(names: Container[str]) -> bool:
    """Whether arrays of these names are those of a sparse matrix, as scipy writes one."""
    return "shape" in names and ("format" in names or "indptr" in names)


def read_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Counts:
    """The sparse matrix in an .npz file, of compressed rows where it does not say of what.

    Args:
        path: The file.
        arrays: What it holds; `labels` or `y` are the labels.

    Raises:
        InputError: If the arrays are not those of a matrix.
    """
    from scipy import sparse

    labels = arrays.get("labels", arrays.get("y"))
    try:
        if "format" in arrays:
            return Counts(sparse.load_npz(path), labels)
        data, indices, starts = (arrays[name] for name in ("data", "indices", "indptr"))
        parts = data, indices.astype(np.int64), starts.astype(np.int64)
        return Counts(sparse.csr_array(parts, shape=tuple(arrays["shape"])), labels)
    except Exception as error:  # as above
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}).",
            "Write it again with scipy.sparse.save_npz.",
        ) from error


def _read_mtx(path: Path) -> Any:
    from scipy import io, sparse

    # Opened here, for scipy would take a file whose name ends in .GZ to be no gzip file.
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        return sparse.coo_array(io.mmread(file))


def _read_h5ad(path: Path) -> Counts:
    try:
        import h5py
        from anndata import io
    except ImportError as error:
        raise InputError(
            f"{path} needs the library anndata.", "pip install 'pyrovae[anndata]'."
        ) from error
    from scipy import sparse

    read_element: Any = io.read_elem
    with h5py.File(path) as file:
        x = read_element(file["X"])
        known = read_element(file["obs"])
    table = known.select_dtypes("category")
    matrix = x if hasattr(x, "tocsr") else sparse.coo_array(x)
    codes = table.iloc[:, 0].cat.codes.to_numpy() if table.shape[1] == 1 else None
    labels = None if codes is None or (codes < 0).any() else codes
    return Counts(matrix, labels, [str(name) for name in known.index])

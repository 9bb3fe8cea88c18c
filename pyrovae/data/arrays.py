"""Files of arrays: numpy's, and MNIST's idx."""

__all__ = ["find", "load", "read_idx"]

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.errors import InputError


def load(path: Path) -> Any:
    """An array, or a mapping of arrays; what is pickled is refused, not run."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Check the path.")
    try:
        if path.suffix.lower() == ".npy":
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(found, np.ndarray):
                raise ValueError("an archive, and no array")
            return found
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy raises ValueError, OSError, BadZipFile, EOFError, ...
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}).",
            "Write it again with numpy.save or numpy.savez, as plain numbers.",
        ) from error


def find(folder: Path, *names: str) -> Path | None:
    """The first of the files that lies in a folder, as it is or gzipped."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def read_idx(path: Path) -> np.ndarray:
    """An array in the idx format of MNIST: a magic number, the sizes, the bytes."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        rank = content[3]
        shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("no idx file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}).",
            "Remove it, so that it is downloaded again.",
        ) from error

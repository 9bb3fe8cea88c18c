"""Data as they were found, and the folders in which they are looked for."""

__all__ = ["SPLITS", "Raw", "Split", "cache_folder", "data_folder"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.tables import Column

# An array, or a matrix of scipy.sparse, and labels.
Split = tuple[Any, np.ndarray | None]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Raw:
    """Data as they were found.

    Attributes:
        splits: Arrays or sparse matrices (x, y or None) under train, valid and test, or under
            train alone where the source has no split of its own.
        maximum: The grey value that stands for one, where the data are grey images.
        binarize: The binarisation that the literature uses for the set, where there is one.
        columns: What the columns of a table hold.
        names: What the examples of each split are called, where the source says.
        notes: What is to be known of how the data were read.
        held_out: How many examples it validates on, and as many it tests on, where it splits a
            set at random that has no split of its own.
        split_rule: The rule that made the splits, where it is none of the source's own.
        fingerprint: What tells the data from others, where that is known without reading them.
        cache: A phrase about the file that holds the arrays, where it was made of others.
    """

    splits: Mapping[str, Split]
    maximum: float | None = None
    binarize: str | None = None
    split_rule: str | None = None
    fingerprint: str | None = None
    cache: str | None = None
    columns: tuple[Column, ...] | None = None
    names: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()
    held_out: int | None = None


def cache_folder() -> Path:
    """Where pyrovae keeps what it can make again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

    return (cache / "pyrovae").expanduser()


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where named sets lie: the argument, `PYROVAE_DATA`, or the user's cache directory."""
    return Path(data_dir or os.environ.get("PYROVAE_DATA") or cache_folder()).expanduser()

"""Data sets: three splits of examples, and what is known of them."""

__all__ = ["Data"]

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pyrovae.data.examples import Examples
from pyrovae.data.preprocessing import Preprocessing
from pyrovae.data.tables import Column


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

    def in_type(self, dtype: torch.dtype) -> "Data":
        """The three splits, their x in the floating point type of a program."""
        return replace(self, **{name: x.in_type(dtype) for name, x in self.splits.items()})

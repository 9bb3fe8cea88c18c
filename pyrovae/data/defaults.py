"""Defaults: what values are, and the preprocessing that follows from it."""

__all__ = ["kind_of", "preprocessing_for"]

import torch

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
from pyrovae.data.raw import Raw
from pyrovae.data.rows import Rows
from pyrovae.data.sparse import SparseRows
from pyrovae.errors import InputError


def kind_of(x: Rows, maximum: float | None) -> str:
    """What values are: binary, grey, unit (images within [0, 1]), counts or real.

    Args:
        x: The training examples.
        maximum: What stands for white, where the source says so.
    """
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


def preprocessing_for(x: Rows, values: str, raw: Raw, binarize: str | None) -> Preprocessing:
    """The preprocessing of the table of `load_data`, or the binarisation that is asked for.

    Args:
        x: The training examples, of which moments are taken.
        values: What they are.
        raw: What their source says of them.
        binarize: none, threshold, static or dynamic, instead of what follows from these.

    Raises:
        InputError: If there is no such binarisation, or none of such values.
    """
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

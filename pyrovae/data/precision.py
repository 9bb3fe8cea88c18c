"""Numbers that float32 cannot tell apart."""

__all__ = ["refuse_lost_digits"]

from collections.abc import Sequence

import numpy as np

from pyrovae.errors import InputError

# Numbers this close to each other, for their size, keep two digits or fewer of their differences.
CLOSE = 1e-5
# Real numbers that differ by so many roundings are one number, computed in several ways.
ROUNDINGS = 16


def refuse_lost_digits(array: np.ndarray, name: str, columns: Sequence[str] | None = None) -> None:
    """Refuses numbers whose differences float32 loses, such as 1700000001, 1700000002, ...

    Those of a constant are none, and numbers that float32 has exactly lose nothing.

    Args:
        array: Vectors (N, X), of which each feature is looked at, or images, as a whole.
        name: What the data are called.
        columns: The names of the features.

    Raises:
        InputError: Naming the first such feature.
    """
    if np.can_cast(array.dtype, np.float32):
        return
    axis = 0 if array.ndim == 2 else None
    low, high = (np.atleast_1d(bound.reduce(array, axis=axis)) for bound in (np.fmin, np.fmax))
    size = np.maximum(abs(low.astype(float)), abs(high.astype(float)))
    spread = _spread(low, high)
    rounding = ROUNDINGS * np.finfo(float).eps * size if array.dtype.kind == "f" else 0
    for place in np.flatnonzero((spread > rounding) & (spread < CLOSE * size)).tolist():
        if _is_exact(array[:, place] if array.ndim == 2 else array):
            continue
        what = f"column {columns[place]!r}" if columns else f"column {place}"
        what = f"{what} of {name}" if array.ndim == 2 else f"array {name}"
        raise InputError(
            f"The {what} has values from {low[place]} to {high[place]}, whose differences "
            "float32 loses.",
            "Subtract an origin from them, such as the least, or leave the column out"
            f"{' (ignore, in a file that --columns names)' if columns else ''}."
            if array.ndim == 2
            else "Subtract an origin from them, such as the least.",
        )


def _spread(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Differences, of integers exactly: they may be beyond float64 too, and wrap around."""
    if low.dtype.kind in "iu":
        return high.astype(np.uint64) - low.astype(np.uint64)
    return high - low


def _is_exact(values: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        same = values.astype(np.float32).astype(values.dtype) == values
    return bool((same | (values != values)).all())

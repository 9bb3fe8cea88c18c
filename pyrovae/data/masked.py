"""Masked arrays of NumPy's, whose masks torch does not know."""

__all__ = ["nan_where_masked"]

from typing import Any

import numpy as np


def nan_where_masked(given: Any) -> Any:
    """A masked array with NaN, which stands for a missing entry, where it is masked.

    Anything else, and one of which nothing is masked, has the values that it had.

    Example:
        >>> nan_where_masked(np.ma.masked_equal([1, 2], 2))
        array([ 1., nan])
    """
    if not isinstance(given, np.ma.MaskedArray):
        return given
    mask, values = np.ma.getmaskarray(given), np.asarray(given.data)
    return np.where(mask, np.nan, values) if mask.any() else values

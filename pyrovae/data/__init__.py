"""Data: named sets and files, their preprocessing, and batches on the device."""

__all__ = [
    "AsIs",
    "Batch",
    "Binarize",
    "Data",
    "Dequantize",
    "Examples",
    "Given",
    "Preprocessing",
    "RawBatch",
    "Standardize",
    "as_examples",
    "load_data",
    "load_examples",
    "pad_sequences",
]

from pyrovae.data.examples import Batch, Examples, RawBatch
from pyrovae.data.given import Given, as_examples
from pyrovae.data.loading import load_data, load_examples
from pyrovae.data.preprocessing import AsIs, Binarize, Dequantize, Preprocessing, Standardize
from pyrovae.data.sequences import pad_sequences
from pyrovae.data.sets import Data

r"""Decoders $p(x \mid z)$, the likelihood: modules whose forward pass returns a distribution.

Its event shape is that of one observation: a vector, or an image (C, H, W).
"""

__all__ = [
    "BernoulliDecoder",
    "ContinuousBernoulliDecoder",
    "GaussianDecoder",
    "NanMaskedDecoder",
    "PixelwiseGaussianDecoder",
    "TabularDecoder",
]

from pyrovae.decoders.binary import BernoulliDecoder
from pyrovae.decoders.gaussian import GaussianDecoder, PixelwiseGaussianDecoder
from pyrovae.decoders.missing import NanMaskedDecoder
from pyrovae.decoders.tabular import TabularDecoder
from pyrovae.decoders.unit_interval import ContinuousBernoulliDecoder

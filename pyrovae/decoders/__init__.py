r"""Decoders $p(x \mid z)$, the likelihood: modules whose forward pass returns a distribution.

Its event shape is that of one observation: a vector, or an image (C, H, W).
"""

__all__ = [
    "BernoulliDecoder",
    "ContinuousBernoulliDecoder",
    "GaussianDecoder",
    "PixelCNNDecoder",
    "PixelwiseGaussianDecoder",
    "RecurrentTextDecoder",
]

from pyrovae.decoders.binary import BernoulliDecoder
from pyrovae.decoders.gaussian import GaussianDecoder, PixelwiseGaussianDecoder
from pyrovae.decoders.pixelcnn import PixelCNNDecoder
from pyrovae.decoders.sequences import RecurrentTextDecoder
from pyrovae.decoders.unit_interval import ContinuousBernoulliDecoder

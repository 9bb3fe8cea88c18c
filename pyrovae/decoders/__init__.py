r"""Decoders $p(x \mid z)$, the likelihood: modules whose forward pass returns a distribution.

Its event shape is that of one observation: a vector, or an image (C, H, W). What its values are
it says in `values`: binary, unit (in [0, 1]), real, levels (0 .. L - 1), counts, symbols, or
the columns of a table. A network says by an attribute `out_shape` what shape one output has, as
ours do: one without it is read as putting out vectors.
"""

__all__ = [
    "BernoulliDecoder",
    "BetaDecoder",
    "CategoricalDecoder",
    "ContinuousBernoulliDecoder",
    "DiscretizedLogisticDecoder",
    "DiscretizedLogisticMixtureDecoder",
    "GaussianDecoder",
    "LaplaceDecoder",
    "MultinomialDecoder",
    "NanMaskedDecoder",
    "NegativeBinomialDecoder",
    "PixelCNNDecoder",
    "PixelwiseGaussianDecoder",
    "PoissonDecoder",
    "RecurrentTextDecoder",
    "StudentTDecoder",
    "TabularDecoder",
    "ZeroInflatedNegativeBinomialDecoder",
]

from pyrovae.decoders.binary import BernoulliDecoder
from pyrovae.decoders.counts import (
    MultinomialDecoder,
    NegativeBinomialDecoder,
    PoissonDecoder,
    ZeroInflatedNegativeBinomialDecoder,
)
from pyrovae.decoders.gaussian import GaussianDecoder, PixelwiseGaussianDecoder
from pyrovae.decoders.levels import (
    CategoricalDecoder,
    DiscretizedLogisticDecoder,
    DiscretizedLogisticMixtureDecoder,
)
from pyrovae.decoders.missing import NanMaskedDecoder
from pyrovae.decoders.pixelcnn import PixelCNNDecoder
from pyrovae.decoders.real import LaplaceDecoder, StudentTDecoder
from pyrovae.decoders.sequences import RecurrentTextDecoder
from pyrovae.decoders.tabular import TabularDecoder
from pyrovae.decoders.unit_interval import BetaDecoder, ContinuousBernoulliDecoder

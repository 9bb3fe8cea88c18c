r"""Networks: tensors to tensors, under any number of leading batch dimensions.

They know no probability. A network is told the shape of one input and of one output, and maps
$(*, \text{in}) \to (*, \text{out})$; particles may therefore add dimensions on the left, to the
weights too, where these have a prior.
"""

__all__ = [
    "MLP",
    "Centred",
    "ConvNet",
    "DeconvNet",
    "GatedMLP",
    "Log1p",
    "NanMaskedInput",
    "RecurrentDecoderNet",
    "RecurrentEncoderNet",
    "ResidualConvNet",
    "ResidualDeconvNet",
    "ResidualMLP",
    "Scaled",
    "TabularInput",
    "TokenEncoderNet",
    "event_rank",
    "halves",
    "near_zero",
    "smooth_clamp",
    "smooth_floor",
]

from pyrovae.networks.bounded import smooth_clamp, smooth_floor
from pyrovae.networks.convolutional import ConvNet, DeconvNet
from pyrovae.networks.dense import MLP, GatedMLP, ResidualMLP, event_rank, halves, near_zero
from pyrovae.networks.inputs import Centred, Log1p, Scaled
from pyrovae.networks.missing import NanMaskedInput, TabularInput
from pyrovae.networks.recurrent import RecurrentDecoderNet, RecurrentEncoderNet, TokenEncoderNet
from pyrovae.networks.residual import ResidualConvNet, ResidualDeconvNet

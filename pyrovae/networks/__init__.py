r"""Networks: tensors to tensors, under any number of leading batch dimensions.

They know no probability. A network is told the shape of one input and of one output, and maps
$(*, \text{in}) \to (*, \text{out})$; particles may therefore add dimensions on the left.
"""

__all__ = [
    "MLP",
    "ConvNet",
    "DeconvNet",
    "NanMaskedInput",
    "TabularInput",
    "event_rank",
    "smooth_clamp",
    "smooth_floor",
]

from pyrovae.networks.bounded import smooth_clamp, smooth_floor
from pyrovae.networks.convolutional import ConvNet, DeconvNet
from pyrovae.networks.dense import MLP, event_rank
from pyrovae.networks.missing import NanMaskedInput, TabularInput

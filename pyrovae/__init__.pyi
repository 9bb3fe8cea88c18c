"""The public names, and where each of them lives; `__init__.py` reads them from here."""

from pyrovae.bounds import ELBO as ELBO
from pyrovae.bounds import IWAE as IWAE
from pyrovae.bounds import MMD as MMD
from pyrovae.bounds import VIMCO as VIMCO
from pyrovae.bounds import BalancedKL as BalancedKL
from pyrovae.bounds import Bound as Bound
from pyrovae.bounds import Capacity as Capacity
from pyrovae.bounds import DReG as DReG
from pyrovae.bounds import FreeBits as FreeBits
from pyrovae.bounds import ReweightedWakeSleep as ReweightedWakeSleep
from pyrovae.bounds import StickingTheLanding as StickingTheLanding
from pyrovae.bounds import TotalCorrelation as TotalCorrelation
from pyrovae.data import Batch as Batch
from pyrovae.data import Examples as Examples
from pyrovae.data import load_data as load_data
from pyrovae.decoders import BernoulliDecoder as BernoulliDecoder
from pyrovae.decoders import BetaDecoder as BetaDecoder
from pyrovae.decoders import CategoricalDecoder as CategoricalDecoder
from pyrovae.decoders import ContinuousBernoulliDecoder as ContinuousBernoulliDecoder
from pyrovae.decoders import DiscretizedLogisticDecoder as DiscretizedLogisticDecoder
from pyrovae.decoders import DiscretizedLogisticMixtureDecoder as DiscretizedLogisticMixtureDecoder
from pyrovae.decoders import GaussianDecoder as GaussianDecoder
from pyrovae.decoders import LaplaceDecoder as LaplaceDecoder
from pyrovae.decoders import MultinomialDecoder as MultinomialDecoder
from pyrovae.decoders import NegativeBinomialDecoder as NegativeBinomialDecoder
from pyrovae.decoders import PixelCNNDecoder as PixelCNNDecoder
from pyrovae.decoders import PixelwiseGaussianDecoder as PixelwiseGaussianDecoder
from pyrovae.decoders import PoissonDecoder as PoissonDecoder
from pyrovae.decoders import RecurrentTextDecoder as RecurrentTextDecoder
from pyrovae.decoders import StudentTDecoder as StudentTDecoder
from pyrovae.decoders import (
    ZeroInflatedNegativeBinomialDecoder as ZeroInflatedNegativeBinomialDecoder,
)
from pyrovae.encoders import FullCovarianceGaussianEncoder as FullCovarianceGaussianEncoder
from pyrovae.encoders import GaussianEncoder as GaussianEncoder
from pyrovae.encoders import LowRankGaussianEncoder as LowRankGaussianEncoder
from pyrovae.encoders import MixtureEncoder as MixtureEncoder
from pyrovae.encoders import RefinedEncoder as RefinedEncoder
from pyrovae.errors import CheckpointError as CheckpointError
from pyrovae.errors import InputError as InputError
from pyrovae.errors import NonFiniteError as NonFiniteError
from pyrovae.errors import PyrovaeError as PyrovaeError
from pyrovae.evaluation import Evaluation as Evaluation
from pyrovae.evaluation import evaluate as evaluate
from pyrovae.generation import decode as decode
from pyrovae.generation import interpolate as interpolate
from pyrovae.generation import manifold as manifold
from pyrovae.generation import reconstruct as reconstruct
from pyrovae.generation import sample as sample
from pyrovae.generation import traverse as traverse
from pyrovae.handlers import kl_weight as kl_weight
from pyrovae.handlers import register as register
from pyrovae.models import VAE as VAE
from pyrovae.networks import MLP as MLP
from pyrovae.networks import Centred as Centred
from pyrovae.networks import ConvNet as ConvNet
from pyrovae.networks import DeconvNet as DeconvNet
from pyrovae.networks import GatedMLP as GatedMLP
from pyrovae.networks import Log1p as Log1p
from pyrovae.networks import RecurrentDecoderNet as RecurrentDecoderNet
from pyrovae.networks import RecurrentEncoderNet as RecurrentEncoderNet
from pyrovae.networks import ResidualConvNet as ResidualConvNet
from pyrovae.networks import ResidualDeconvNet as ResidualDeconvNet
from pyrovae.networks import ResidualMLP as ResidualMLP
from pyrovae.networks import TokenEncoderNet as TokenEncoderNet
from pyrovae.priors import DiagonalGaussian as DiagonalGaussian
from pyrovae.priors import GaussianMixture as GaussianMixture
from pyrovae.priors import StandardNormal as StandardNormal
from pyrovae.runs import Run as Run
from pyrovae.runs import load as load
from pyrovae.svi import CompiledSVI as CompiledSVI
from pyrovae.training import fit as fit

__version__: str

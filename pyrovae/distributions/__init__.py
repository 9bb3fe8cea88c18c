"""Distributions that torch and Pyro lack, or get wrong."""

__all__ = [
    "LOG_CONCENTRATION_BOUNDS",
    "Autoregressive",
    "AutoregressiveNormal",
    "Beta",
    "Categorical",
    "Codes",
    "ContinuousBernoulli",
    "Coupling",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Flow",
    "ImproperUniform",
    "InverseAutoregressive",
    "MixedColumns",
    "Mixture",
    "Multinomial",
    "NanMasked",
    "NegativeBinomial",
    "NormalMixture",
    "OneHotGroups",
    "Poisson",
    "PowerSpherical",
    "RelaxedBernoulli",
    "RelaxedOneHotGroups",
    "SphericalUniform",
    "Stack",
    "StraightThroughBernoulli",
    "StraightThroughOneHotGroups",
    "StretchedBeta",
    "StudentT",
    "Uniform",
    "VonMisesFisher",
    "Weighted",
    "WithEnds",
    "WithFaces",
    "ZeroInflated",
    "affine_bend",
    "check_box",
    "check_classes",
    "check_sphere",
    "exact_kl",
    "factorizes",
    "innermost",
    "is_improper",
    "is_point",
    "outer_mask",
    "spline_bend",
    "unmasked",
    "unweighted",
]

from pyrovae.distributions import gaussian_kl as gaussian_kl  # it registers KLs
from pyrovae.distributions.arguments import (
    check_box,
    check_classes,
    check_sphere,
)
from pyrovae.distributions.autoregressive import Autoregressive
from pyrovae.distributions.autoregressive_normal import AutoregressiveNormal
from pyrovae.distributions.beta import Beta
from pyrovae.distributions.bijections import (
    Coupling,
    Flow,
    InverseAutoregressive,
    affine_bend,
    spline_bend,
)
from pyrovae.distributions.categorical import Categorical
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.counts import Multinomial, NegativeBinomial, Poisson, ZeroInflated
from pyrovae.distributions.degenerate import (
    ImproperUniform,
    innermost,
    is_improper,
    is_point,
)
from pyrovae.distributions.discretized_logistic import (
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)
from pyrovae.distributions.factors import exact_kl, factorizes
from pyrovae.distributions.masks import outer_mask, unmasked
from pyrovae.distributions.mixed_columns import Codes, MixedColumns
from pyrovae.distributions.mixture import Mixture
from pyrovae.distributions.nan_masked import NanMasked
from pyrovae.distributions.normal_mixture import NormalMixture
from pyrovae.distributions.one_hot import OneHotGroups
from pyrovae.distributions.relaxed import (
    RelaxedBernoulli,
    RelaxedOneHotGroups,
    WithEnds,
    WithFaces,
)
from pyrovae.distributions.spherical import (
    LOG_CONCENTRATION_BOUNDS,
    PowerSpherical,
    SphericalUniform,
)
from pyrovae.distributions.stacks import Stack
from pyrovae.distributions.straight_through import (
    StraightThroughBernoulli,
    StraightThroughOneHotGroups,
)
from pyrovae.distributions.stretched_beta import StretchedBeta
from pyrovae.distributions.student_t import StudentT
from pyrovae.distributions.uniform import Uniform
from pyrovae.distributions.von_mises_fisher import VonMisesFisher
from pyrovae.distributions.weighted import Weighted, unweighted

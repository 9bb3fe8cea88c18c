r"""Bounds on $\log p(x)$ and their gradients, as objects that Pyro's `SVI` takes too."""

__all__ = [
    "ELBO",
    "IWAE",
    "MMD",
    "VIMCO",
    "BalancedKL",
    "Bound",
    "Capacity",
    "DReG",
    "FreeBits",
    "ReweightedWakeSleep",
    "StickingTheLanding",
    "TotalCorrelation",
]

from pyrovae.bounds.aggregate import MMD, TotalCorrelation
from pyrovae.bounds.base import Bound
from pyrovae.bounds.controls import BalancedKL, Capacity, FreeBits
from pyrovae.bounds.elbo import ELBO
from pyrovae.bounds.importance import IWAE, VIMCO
from pyrovae.bounds.paths import DReG, StickingTheLanding
from pyrovae.bounds.wake_sleep import ReweightedWakeSleep

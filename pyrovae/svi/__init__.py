"""Stochastic variational inference at compiled speed, for any Pyro program."""

from pyrovae.svi.compiled import CompiledSVI
from pyrovae.svi.objective import Bound, Objective
from pyrovae.svi.stepper import Stepper, default_engine

__all__ = [
    "Bound",
    "CompiledSVI",
    "Objective",
    "Stepper",
    "default_engine",
]

"""Stochastic variational inference at compiled speed, for any Pyro program."""

from pyrovae.svi.backends import default_engine
from pyrovae.svi.compiled import CompiledSVI
from pyrovae.svi.exchange import Exchange
from pyrovae.svi.objective import Differentiable, Objective
from pyrovae.svi.stepper import Stepper

__all__ = [
    "CompiledSVI",
    "Differentiable",
    "Exchange",
    "Objective",
    "Stepper",
    "default_engine",
]

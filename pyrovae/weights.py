"""Weights: what a program has to be before it takes those of a run by their names."""

__all__ = ["make_parameters", "make_ready"]

from collections.abc import Mapping
from typing import Any

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyrovae.data import Batch
from pyrovae.errors import InputError, first_line
from pyrovae.inspection import FEW
from pyrovae.programs import Program, as_module, device_of, dtype_of, evaluating, trace_pair


def make_ready(program: Program, weights: Mapping[str, Tensor], x_shape: tuple[int, ...]) -> None:
    """Gives a program the floating point types of weights, and the parameters it has yet to make.

    Args:
        program: The program, changed in place.
        weights: The weights of a run, by their names.
        x_shape: The shape of an observation of that run.

    Raises:
        InputError: As `make_parameters`.
    """
    _take_types(as_module(program), weights)
    make_parameters(program, x_shape)
    _take_types(as_module(program), weights)


def make_parameters(program: Program, x_shape: tuple[int, ...]) -> None:
    """Has a program make what it makes when it is first run.

    So a guide of Pyro's does, and a lazy layer of torch's.

    Args:
        program: The program, changed in place.
        x_shape: The shape of an observation.

    Raises:
        InputError: If it has something to make, and cannot be run on zeros.
    """
    module = as_module(program)
    if not any(map(_is_unmade, module.modules())):
        return
    x = torch.zeros(FEW, *x_shape, dtype=dtype_of(program), device=device_of(program))
    y = torch.zeros(FEW, dtype=torch.int64, device=x.device)
    try:
        with evaluating(program):
            trace_pair(program, Batch(x, y))
    except Exception as error:  # whatever a program makes of data that are none
        raise InputError(
            "The program makes parameters when it is first run, and cannot be run on zeros "
            f"({first_line(error)}).",
            "Run it on some examples before: program.guide(x).",
        ) from error


def _take_types(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    types = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    if len(types) == 1:
        module.to(dtype=types.pop())
        return
    own: dict[str, Any] = module.state_dict(keep_vars=True)
    for name in own.keys() & weights.keys():
        own[name].data = own[name].data.to(weights[name].dtype)


def _is_unmade(module: nn.Module) -> bool:
    if isinstance(module, AutoGuide | EasyGuide):
        return module.prototype_trace is None
    return any(map(is_lazy, module.parameters(recurse=False)))

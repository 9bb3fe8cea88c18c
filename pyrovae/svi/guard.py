"""The guard against NaN and infinity: it finds out where they come from."""

__all__ = ["REMEDY", "find_cause", "find_gradient", "placed"]

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.errors import NonFiniteError
from pyrovae.handlers import unvalidated
from pyrovae.programs import Site, data_frame, sample_sites

REMEDY = (
    "Weights are as they were before it; try a lower learning rate, gradient clipping "
    "(clip_norm), or a larger floor under a learned scale."
)
FIRST_REMEDY = (
    "It was the first step, so no learning rate is to blame: look at the values of the data and "
    "at the weights it starts from, or give a learned scale a larger floor."
)


def placed(error: NonFiniteError, where: str, *, step: int) -> NonFiniteError:
    """An error with the step it is of, and what to do about it there.

    Args:
        error: The error of a step.
        where: What it is to say first.
        step: The number of that step, from 0.
    """
    blames_training = error.remedy == REMEDY and step == 0
    return NonFiniteError(
        f"{where}: {error.cause}", FIRST_REMEDY if blames_training else error.remedy
    )


def find_cause(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parameters: Mapping[str, Tensor],
) -> NonFiniteError | None:
    """The first parameter or site that is not finite in a step run again with the same noise."""
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            cause = f"The parameter {name!r} was not finite before the step."
            return NonFiniteError(cause, "Start from weights that are.")

    with torch.no_grad(), unvalidated(), poutine.block():
        try:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        except (ValueError, RuntimeError):
            return None
        for trace in (guide_trace, model_trace):
            for name, site in sample_sites(trace).items():
                bad = ~torch.isfinite(site["fn"].log_prob(site["value"]))
                if site["mask"] is not None:
                    bad = bad & site["mask"]
                if bad.any():
                    cause = f"The log-probability of site {name!r} is not finite"
                    return NonFiniteError(f"{cause}{_first_row(site, bad)}.", REMEDY)
    return None


def find_gradient(names: Mapping[str, Tensor]) -> NonFiniteError | None:
    """The first gradient that is not finite."""
    for name, gradient in names.items():
        if not torch.isfinite(gradient).all():
            return NonFiniteError(f"The gradient of {name!r} is not finite.", REMEDY)
    return None


def _first_row(site: Site, bad: Tensor) -> str:
    """Where in the batch, for a site of the plate `data`."""
    frame = data_frame(site)
    if frame is None or -frame.dim > bad.dim():
        return ""
    rows = bad.movedim(frame.dim, 0).flatten(1) if bad.dim() > 1 else bad[:, None]
    return f", first in row {int(rows.any(1).nonzero()[0])} of the batch"

r"""Missing entries of examples, drawn from what the program says of them."""

__all__ = ["impute"]

import torch
from torch import Tensor

from pyrovae.checks import whole
from pyrovae.data import Batch
from pyrovae.encoding import SharedHeld
from pyrovae.errors import InputError
from pyrovae.generation import Generated, repeat, run_model
from pyrovae.inspection import inspect_program
from pyrovae.programs import (
    BatchLike,
    Program,
    brought_to,
    data_frame,
    evaluating,
    examples_first,
    sites,
    trace_pair,
)
from pyrovae.randomness import seeded
from pyrovae.supports import check_support
from pyrovae.terms import read_terms


def impute(
    program: Program, batch: BatchLike, *, count: int = 1, num_samples: int = 100, seed: int = 0
) -> Generated:
    r"""Examples with their missing entries drawn: $x_m \sim p(x_m \mid x_o)$.

    Latents are drawn from the guide and chosen by their importance weights
    $p(x_o, z) / q(z \mid x_o)$, and then $x_m \sim p(x_m \mid z)$: exact in the limit of many
    samples. Of several copies, take the mean of a number, and the most frequent of a code.

    Latents that all examples share are, in each copy, one draw of the guide's, as in multiple
    imputation: how far copies differ then tells what is not known of these, too.

    Args:
        program: Any program of `pyrovae.programs` that takes a NaN for a missing entry.
        batch: N examples. Entries that were observed stay as they are.
        count: How many copies of each example to complete.
        num_samples: The number of draws from the guide that the latents are chosen from.
        seed: The seed of the draws.

    Returns:
        x of shape (count, N, x).

    Raises:
        InputError: If the program does not take missing entries, or draws what all examples
            share from latents of these, or a number is no whole one of at least 1.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei &
        Frellsen, 2019), arXiv:1812.02633.
    """
    count, num_samples = whole("count", count), whole("num_samples", num_samples)
    batch = brought_to(program, batch)
    structure = inspect_program(program, batch)
    check_support(program, [batch])
    with evaluating(program), seeded(seed, "impute", device=batch.x.device):
        if structure.global_latents:
            seeds = torch.randint(2**31, (count,)).tolist()
            copies = [
                _complete(program, batch, 1, num_samples, SharedHeld(batch.x.device, draw_by))
                for draw_by in seeds
            ]
        else:
            copies = [_complete(program, batch, count, num_samples)]
    return copies[0]._replace(x=torch.cat([copy.x for copy in copies]))


def _complete(
    program: Program,
    batch: Batch,
    count: int,
    num_samples: int,
    shared: SharedHeld | None = None,
) -> Generated:
    """Copies of examples, (count, N, x), under one draw of what all of them share."""
    latents = _resample(program, batch, count, num_samples, shared)
    rows = repeat(batch, count * len(batch.x))
    drawn = run_model(program, rows, latents, draw=True)
    whole = torch.where(rows.x.isnan(), drawn.x, rows.x)
    return drawn._replace(x=whole.unflatten(0, (count, len(batch.x))))


def _resample(
    program: Program, batch: Batch, count: int, num_samples: int, shared: SharedHeld | None
) -> dict[str, Tensor]:
    """Latents chosen from draws of the guide by their weights, each example `count` times.

    One draw after the other takes the place of those chosen so far with the share that it has in
    the sum of the weights: after the last one, each has been chosen in proportion to its own.
    """
    chosen: dict[str, Tensor] = {}
    of_all: dict[str, Tensor] = {}
    total = batch.x.new_full((len(batch.x),), -torch.inf)
    for _ in range(num_samples):
        model_trace, guide_trace = trace_pair(program, batch, within=shared)
        log_weight = read_terms(model_trace, guide_trace, None).log_weight[0]
        total = torch.logaddexp(total, log_weight)
        share = (log_weight - total).exp()
        replaces = torch.rand(count, len(share), device=share.device) < share
        for name, site in sites(model_trace, observed=False).items():
            if data_frame(site) is None:
                if not torch.equal(of_all.setdefault(name, site["value"]), site["value"]):
                    raise InputError(
                        f"The latent {name!r} is outside the plate 'data', and is drawn from "
                        "latents of examples.",
                        "Let the guide draw it first.",
                    )
                continue
            value = examples_first(site["value"], site)
            here = replaces.reshape(*replaces.shape, *[1] * (value.dim() - 1))
            chosen[name] = torch.where(here, value, chosen[name] if name in chosen else value)

    return {**{name: value.flatten(0, 1) for name, value in chosen.items()}, **of_all}

"""Structure: what the traces of one run of a program show of it."""

__all__ = ["Structure", "has_global_kl", "structure_of", "vectorizes"]

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites

from pyrovae.data import Batch
from pyrovae.distributions import innermost, is_improper, is_point
from pyrovae.handlers import plate_but
from pyrovae.programs import (
    Program,
    Site,
    at_weight_one,
    data_frame,
    is_auxiliary,
    labels,
    sample_sites,
    sites,
    trace_pair,
)


@dataclass(frozen=True)
class Structure:
    """What one run of a program shows of it.

    Attributes:
        latents: The latent sites that the guide samples inside the plate, in its order.
        global_latents: The latent sites outside the plate, which all examples share.
        observed: The observed sites.
        full_size: The plate's traced size: what a loss summed by Pyro is divided by to get nats
            per example. It is None where the plate has the size of the batch.
        depth: The number of batch dimensions that the program's plates take up.
        vectorizes: Whether the program runs under particles as one more dimension on the left.
        vectorizes_examples: Whether it does where its global latents are drawn once for all of
            these.
        improper: The latent sites whose prior is improper, so that the model draws no examples,
            but for global ones that the guide samples.
        points: The latent sites that the guide puts at a single point, without a density, but
            for global ones.
        charged: The global latents that the loss has a term of: it should count once for all
            examples.
        has_global_kl: Whether the KL of the global latents that the guide samples is defined.
        observes_part: Whether the site x is but a part of an example, and other sites the rest.
    """

    latents: tuple[str, ...]
    global_latents: tuple[str, ...]
    observed: tuple[str, ...]
    full_size: int | None
    depth: int
    vectorizes: bool
    improper: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    charged: tuple[str, ...] = ()
    has_global_kl: bool = False
    vectorizes_examples: bool = False
    observes_part: bool = False

    @property
    def draws_examples(self) -> bool:
        """Whether what the model draws of x are examples."""
        return not (self.improper or self.observes_part)

    @property
    def has_bound(self) -> bool:
        """Whether log p(x) exists, and the guide's draws have densities that bound it.

        Given the global latents, which are the guide's wherever it samples them.
        """
        return not (self.improper or self.points)


def structure_of(model_trace: Trace, guide_trace: Trace, batch_size: int) -> Structure:
    """What the traces of a batch show, but for what other runs have to.

    Args:
        model_trace: That of the model, which observes inside the plate.
        guide_trace: That of the guide, whose latents are the model's.
        batch_size: How many examples they are of.
    """
    observed = sites(model_trace, observed=True)
    latents = sites(guide_trace, observed=False)
    drawn = sites(model_trace, observed=False)
    everything = {**drawn, **latents}
    improper = {name for name, site in drawn.items() if is_improper(site["fn"])}
    local = {name: site for name, site in latents.items() if data_frame(site)}
    shared = {
        name: site
        for name, site in everything.items()
        if not data_frame(site) and not is_auxiliary(site)
    }
    flat_points = improper & set(_points(_outside(guide_trace)))
    frame = data_frame(next(iter(observed.values())))
    full_size = getattr(frame, "full_size", None) or frame.size
    stacks = [s["cond_indep_stack"] for s in (*everything.values(), *observed.values())]

    return Structure(
        latents=tuple(local),
        global_latents=tuple(shared),
        observed=tuple(observed),
        full_size=None if full_size == batch_size else full_size,
        depth=max(-f.dim for stack in stacks for f in stack if f.vectorized),
        vectorizes=False,
        improper=tuple(n for n in drawn if n in improper and not (n in shared and n in latents)),
        points=_points(local),
        charged=tuple(name for name in shared if name in latents and name not in flat_points),
    )


def has_global_kl(program: Program, batch: Batch, model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether the guide's draws of global latents have densities under the guide and the model."""
    shared, priors = _outside(guide_trace), sample_sites(model_trace)
    if not shared or any(is_improper(priors[n]["fn"]) for n in shared if n in priors):
        return False
    passed_on = {n: site for n, site in shared.items() if not is_auxiliary(site)}
    if len(passed_on) == len(shared):
        return not _points(passed_on)
    # Of auxiliary sites the density is known where all that is made of them are points that move.
    again = _outside(
        poutine.trace(program.guide).get_trace(batch.x, **labels(program.guide, batch))
    )
    return all(
        isinstance(innermost(site["fn"]), dist.Delta)
        and not torch.equal(site["value"], again[name]["value"])
        for name, site in passed_on.items()
    )


def _outside(guide_trace: Trace) -> dict[str, Site]:
    """The latent sites of a guide outside the plate `data`."""
    drawn = sites(prune_subsample_sites(guide_trace), observed=False)
    return {name: site for name, site in drawn.items() if not data_frame(site)}


def _points(latents: dict[str, Site]) -> tuple[str, ...]:
    """The latents that a guide puts at a single point."""
    if any(map(is_auxiliary, latents.values())):
        return ()  # a point then passes on what an auxiliary site drew
    return tuple(name for name, site in latents.items() if is_point(site["fn"]))


def vectorizes(
    program: Program, batch: Batch, structure: Structure, *, but: Collection[str] = ()
) -> bool:
    """Whether the program runs with two particles on the left to the numbers of each alone.

    All of its sites but some have two.

    Shapes are not enough: a softmax over dimension 1 is over features for one particle and over
    examples for several, and fits both.
    """
    dim = -1 - structure.depth
    particles = plate_but("particles", 2, dim=dim, but=but)
    try:
        with warnings.catch_warnings(action="ignore"):
            with pyro.validation_enabled(True):
                model_trace, guide_trace = trace_pair(program, batch, within=particles)
            return all(
                _agrees(function, batch, trace, sites(guide_trace, observed=False), index, dim)
                for index in range(2)
                for function, trace in ((program.model, model_trace), (program.guide, guide_trace))
            )
    except Exception:  # whatever a network raises that does not take the dimension
        return False


def _has_particles(site: Site) -> bool:
    return any(frame.name == "particles" for frame in site["cond_indep_stack"])


def _agrees(
    function: Callable[..., Any],
    batch: Batch,
    together: Trace,
    latents: dict[str, Site],
    index: int,
    dim: int,
) -> bool:
    """Whether a model or guide gives one particle's log-probabilities without the other, too."""
    drawn = {**latents, **sites(together, observed=False)}
    values = {
        n: s["value"].select(dim - s["fn"].event_dim, index) if _has_particles(s) else s["value"]
        for n, s in drawn.items()
    }
    given = poutine.condition(function, data=values)
    trace = poutine.trace(given).get_trace(batch.x, **labels(function, batch))
    alone = sample_sites(at_weight_one(trace))
    for name, site in sample_sites(together).items():
        found = site["fn"].log_prob(site["value"])
        found = found.select(dim, index) if found.dim() >= -dim else found
        expected = alone[name]["fn"].log_prob(alone[name]["value"])
        if not torch.allclose(found.expand_as(expected), expected, rtol=1e-3, atol=1e-3):
            return False
    return True

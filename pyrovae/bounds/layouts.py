r"""How the log-probabilities of K draws are laid out: (K, plates).

The dimensions of the plates that all sites of an example stand in are kept, and all others
summed; that of the draws is on the left of them all, and no other may be there.
"""

__all__ = ["Layout", "subsampling"]

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.bounds.pairs import PARTICLES
from pyrovae.errors import InputError
from pyrovae.programs import PLATE, Site, sample_sites


@dataclass(frozen=True)
class Layout:
    """Which dimensions of a log-probability tell examples apart.

    Attributes:
        depth: The number of batch dimensions, that of particles included.
        particles: The size of that dimension: the number K of draws, or 1 where there is one run
            for each.
        kept: Those dimensions, counted from the right, that every site of an example has.
        scale: What the kept plates multiply log-probabilities by: their size over that of the
            batch drawn from them.
        shared: The latents that all examples share.
    """

    depth: int
    particles: int
    kept: frozenset[int]
    scale: float
    shared: frozenset[str]

    @staticmethod
    def of(model_trace: Trace, guide_trace: Trace) -> "Layout":
        """The layout of a program's traces.

        Examples are told apart by the plates that all observed sites stand in, and a latent in
        none of these is shared by all. Where the plate `data` is one of them, it decides.

        Raises:
            InputError: If no plate tells examples apart.
        """
        stacks = {
            name: {f.name: f for f in site["cond_indep_stack"] if f.vectorized}
            for trace in (guide_trace, model_trace)
            for name, site in sample_sites(trace).items()
        }
        everything = {name: frame for stack in stacks.values() for name, frame in stack.items()}
        plates = [
            name
            for name in everything
            if name != PARTICLES and all(name in stacks[x] for x in _observed(model_trace))
        ]
        telling = {PLATE} & set(plates) or set(plates)
        own = [stack for stack in stacks.values() if telling & stack.keys()]
        plates = [name for name in plates if all(name in stack for stack in own)]
        if not plates and everything.keys() - {PARTICLES}:
            candidates = _observed(model_trace) or list(stacks)
            outside = min(candidates, key=lambda name: len(stacks[name]))
            raise InputError(
                f"The site {outside!r} is outside the plate of the examples, so no example has a "
                "bound of its own.",
                f"Let all that is observed stand in one plate, named {PLATE!r}, or take "
                "pyro.infer.Trace_ELBO.",
            )

        shared = [n for n, stack in stacks.items() if plates and not telling & stack.keys()]
        frames = [everything[name] for name in plates]
        depth = max((-frame.dim for frame in everything.values()), default=0)
        if PARTICLES not in everything:
            depth += 1
        particles = everything[PARTICLES].size if PARTICLES in everything else 1
        kept = frozenset({-depth, *(frame.dim for frame in frames)})
        return Layout(depth, particles, kept, subsampling(frames), frozenset(shared))

    def check(self, trace: Trace) -> None:
        """Refuses a dimension on the left of all plates: it would be taken for that of the draws.

        Raises:
            InputError: Naming the site and the dimension.
        """
        for name, site in sample_sites(trace).items():
            shape = _batch_shape(site)
            for dim in range(-len(shape), 1 - self.depth):
                if shape[dim] not in (1, self.particles if dim == -self.depth else 1):
                    raise InputError(
                        f"The site {name!r} has the batch shape {tuple(shape)}, of which the "
                        f"dimension {dim} is that of no plate.",
                        "Give it a plate, or make it part of the event by .to_event().",
                    )

    def arrange(self, value: Tensor, rank: int = 0, *, shared: bool = False) -> Tensor:
        """A log-probability, summed over all dimensions but the kept ones: (K or 1, plates).

        The last `rank` dimensions are those of an event, and stay. One of a latent that all
        examples share is summed over all but the particles: (K or 1, 1, ...).
        """
        padded = value.reshape((1,) * (self.depth + rank - value.dim()) + value.shape)
        kept = {-self.depth} if shared else self.kept
        others = [dim - rank for dim in range(-self.depth, 0) if dim not in kept]
        return padded.sum(others, keepdim=True) if others else padded


def _observed(model_trace: Trace) -> list[str]:
    """The observed sites of a model, also of one that has dreamt them."""
    found = sample_sites(model_trace).items()
    return [n for n, s in found if s["is_observed"] or s["infer"].get("was_observed")]


def _batch_shape(site: Site) -> torch.Size:
    """The shape of a site's log-probability under its weights."""
    value, fn = site["value"], site["fn"]
    drawn = value.shape[: max(0, value.dim() - fn.event_dim)]
    factors = [t.shape for t in (site["scale"], site["mask"]) if isinstance(t, Tensor)]
    return torch.broadcast_shapes(fn.batch_shape, drawn, *factors)


def subsampling(frames: Iterable[Any]) -> float:
    """What plates multiply log-probabilities by, where only a part of them is drawn."""
    return math.prod((getattr(f, "full_size", None) or f.size) / f.size for f in frames)

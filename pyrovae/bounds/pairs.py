r"""A model and its guide, and how they are run."""

__all__ = ["PARTICLES", "GuideRun", "Pair", "drawn_sites", "latent_sites", "points_of"]

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import pyro.distributions as dist
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.bounds.own_noise import OwnNoise
from pyrovae.distributions import innermost, unweighted
from pyrovae.handlers import plate_but, unconditioned
from pyrovae.programs import Site, masked_at_sites, sample_sites, sites

PARTICLES = "num_particles_vectorized"


class Pair(NamedTuple):
    """A model and its guide, with the arguments of both."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run_guide(self) -> Trace:
        """A trace of the guide."""
        return _run(self.guide, self)

    def run_model(self, guide_trace: Trace) -> Trace:
        """A trace of the model on the guide's draws."""
        return _run(poutine.replay(self.model, trace=guide_trace), self)

    def of_particles(self, count: int, dim: int, *, but: Collection[str]) -> "Pair":
        """The two within a plate of particles, in which some sites do not stand."""
        wrap = partial(plate_but, PARTICLES, count, dim=dim, but=but)
        return self._replace(model=wrap()(self.model), guide=wrap()(self.guide))

    def holding(self, values: Mapping[str, Tensor]) -> "Pair":
        """The two with latents that are not drawn again."""
        return self._replace(model=_Held(values)(self.model), guide=_Held(values)(self.guide))

    def dream(self) -> Trace:
        """A trace of the model by itself, x drawn with the rest, and nothing with a gradient."""
        trace = _run(unconditioned(self.model), self)
        trace.detach_()
        return trace


class GuideRun:
    """A run of a guide, which can be made again at other values of its latents.

    What a latent's distribution is may depend on the other latents, so with several of them the
    guide is run again. What it draws besides them, as a dropout does, is part of what made the
    draws: it is the same in every run. Points and factors are made of the values of the others,
    and made again, unless they have values, too.

    Args:
        pair: The guide, and what it is run on.

    Attributes:
        trace: The trace of the run.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._noise = OwnNoise()
        with self._noise.noted():
            self.trace = pair.run_guide()

    def at(self, values: Mapping[str, Tensor]) -> Trace:
        """The guide's trace with other values of its latents."""
        moved = self.trace.copy()
        for name, value in values.items():
            moved.nodes[name] = {**moved.nodes[name], "value": value}
        ours = sample_sites(prune_subsample_sites(self.trace)).keys()
        made = ours - drawn_sites(self.trace).keys() - values.keys()
        if not values or len(values) + len(made) < 2:
            return moved
        for name in made:
            del moved.nodes[name]
        with self._noise.given_again():
            return _run(poutine.replay(self._pair.guide, trace=moved), self._pair)


def latent_sites(trace: Trace) -> dict[str, Site]:
    """The latent sites of a trace by name, without those of its plates."""
    return sites(prune_subsample_sites(trace), observed=False)


def drawn_sites(trace: Trace) -> dict[str, Site]:
    """The latent sites of a trace that are drawn, and no points."""
    points = points_of(trace)
    return {name: site for name, site in latent_sites(trace).items() if name not in points}


def points_of(trace: Trace) -> dict[str, Site]:
    """The latent sites of a trace that are points, also such as are made of draws."""
    return {
        name: site
        for name, site in latent_sites(trace).items()
        if isinstance(innermost(unweighted(site["fn"])), dist.Delta)
    }


def _run(function: Callable[..., Any], pair: Pair) -> Trace:
    # Its plates' own sites are kept: the model is to have the subsample of the guide.
    return masked_at_sites(poutine.trace(function).get_trace(*pair.args, **pair.kwargs))


class _Held(Messenger):
    """Gives latents the values that they had."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]

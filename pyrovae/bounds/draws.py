r"""Draws of a program's latents by its guide, and their log-weights, example by example.

The log-weight of a draw is $\log w = \log p(x, z) - \log q(z \mid x)$. Every bound here is a
function of the log-weights of one example's K draws. They are laid out as (K, plates): the
dimensions of the plates that all sites stand in are kept, and all others summed.
"""

__all__ = ["Draw", "Layout", "Pair", "Weights"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.distributions import Weighted, exact_kl
from pyrovae.errors import InputError
from pyrovae.programs import Site, sample_sites, sites

PARTICLES = "num_particles_vectorized"
Weights = Mapping[str, Tensor]
"""For latent sites the weight of their KL term: a number, or one for each dimension."""


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

    def at(self, guide_trace: Trace, values: Mapping[str, Tensor]) -> Trace:
        """The guide's trace with other values of its latents.

        What a latent's distribution is may depend on the other latents, so with several of them
        the guide is run again.
        """
        moved = guide_trace.copy()
        for name, value in values.items():
            moved.nodes[name] = {**moved.nodes[name], "value": value}
        if len(values) < 2:
            return moved
        return _run(poutine.replay(self.guide, trace=moved), self)


def _run(function: Callable[..., Any], pair: Pair) -> Trace:
    trace = poutine.trace(function).get_trace(*pair.args, **pair.kwargs)
    return prune_subsample_sites(trace)


@dataclass(frozen=True)
class Layout:
    """Which dimensions of a log-probability tell examples apart.

    Attributes:
        depth: The number of batch dimensions, that of particles included.
        kept: Those dimensions, counted from the right, that every site has.
        scale: What the kept plates multiply log-probabilities by: their size over that of the
            batch drawn from them.
    """

    depth: int
    kept: frozenset[int]
    scale: float

    @staticmethod
    def of(model_trace: Trace, guide_trace: Trace) -> "Layout":
        """The layout of a program's traces.

        Raises:
            InputError: If a site stands outside the plate that tells examples apart: then a
                bound of each example's own does not exist.
        """
        stacks = {
            name: {f.name: f for f in site["cond_indep_stack"] if f.vectorized}
            for trace in (guide_trace, model_trace)
            for name, site in sample_sites(trace).items()
        }
        everything = {name: frame for stack in stacks.values() for name, frame in stack.items()}
        shared = [n for n in everything if all(n in stack for stack in stacks.values())]
        plates = [name for name in shared if name != PARTICLES]
        if not plates and everything.keys() - {PARTICLES}:
            outside = min(stacks, key=lambda name: len(stacks[name]))
            raise InputError(
                f"The site {outside!r} is outside the plate of the examples, so no example has a "
                "bound of its own.",
                "Move it inside the plate, or take pyro.infer.Trace_ELBO.",
            )

        frames = [everything[name] for name in plates]
        scale = 1.0
        for frame in frames:
            scale *= (getattr(frame, "full_size", None) or frame.size) / frame.size
        depth = max((-frame.dim for frame in everything.values()), default=0)
        if PARTICLES not in everything:
            depth += 1
        return Layout(depth, frozenset({-depth, *(frame.dim for frame in frames)}), scale)

    def arrange(self, log_prob: Tensor) -> Tensor:
        """A log-probability, summed over all dimensions but the kept ones: (K or 1, plates)."""
        padded = log_prob.reshape((1,) * (self.depth - log_prob.dim()) + log_prob.shape)
        others = [dim for dim in range(-self.depth, 0) if dim not in self.kept]
        return padded.sum(others, keepdim=True) if others else padded


@dataclass
class Draw:
    r"""K draws of the latents, as the traces of a guide and of a model on them.

    Attributes:
        model_trace: The trace of the model.
        guide_trace: The trace of the guide.
        layout: How log-probabilities are laid out.
        weights: The weights of latent sites, beside those of the program itself.
    """

    model_trace: Trace
    guide_trace: Trace
    layout: Layout
    weights: Weights = field(default_factory=dict)

    @cached_property
    def latents(self) -> dict[str, Site]:
        """The guide's latent sites by name."""
        return sites(self.guide_trace, observed=False)

    @cached_property
    def log_likelihood(self) -> Tensor:
        r"""$\log p(x \mid z)$, with shape (K, plates)."""
        observed = sites(self.model_trace, observed=True)
        return self._total([self.log_prob(site) for site in observed.values()])

    @cached_property
    def log_prior(self) -> Tensor:
        r"""$\log p(z)$, with shape (K, plates).

        A latent that the guide leaves to the model is drawn from its prior, and cancels.
        """
        return self._total([self.log_prob(self.prior_site(name)) for name in self.matched])

    @cached_property
    def log_posterior(self) -> Tensor:
        r"""$\log q(z \mid x)$, with shape (K, plates)."""
        return self._total([self.log_prob(site) for site in self.latents.values()])

    @property
    def log_weight(self) -> Tensor:
        r"""$\log p(x, z) - \log q(z \mid x)$, with shape (K, plates)."""
        return self.log_likelihood + self.log_prior - self.log_posterior

    @cached_property
    def matched(self) -> list[str]:
        """The latents that model and guide both sample, in the guide's order."""
        return [name for name in self.latents if name in self.model_trace.nodes]

    @cached_property
    def in_order(self) -> set[str]:
        """The latents whose exact KL is the expectation of their sampled one.

        The exact KL of a latent is taken at draws of its prior's parents. They must have been
        drawn without knowing it: what may be a parent in the model, because it stands before
        it there, must stand before it in the guide.
        """
        model_order = [name for name in self.model_trace.nodes if name in self.matched]
        before = {name: set(model_order[:i]) for i, name in enumerate(model_order)}
        return {n for i, n in enumerate(self.matched) if before[n] <= set(self.matched[:i])}

    def prior_site(self, name: str) -> Site:
        """The model's site of a latent."""
        return self.model_trace.nodes[name]

    def kl(self, name: str, *, exact: bool) -> Tensor:
        r"""$\mathrm{KL}(q \,\|\, p)$ of a latent, (K, plates): exact where known, else sampled.

        Under different weights on the two sides it is what these make of the two terms.
        """
        q, p = self.latents[name], self.prior_site(name)
        known = None
        if exact and name in self.in_order:
            known = exact_kl(self._weighted(q), self._weighted(p))
        if known is None:
            return self.log_prob(q) - self.log_prob(p)
        kl = self.masked(known, q) * self.factor(q)
        if isinstance(q["scale"], float) and q["scale"] == p["scale"]:
            return kl
        more = self.factor(q) - self.factor(p)
        return kl + more * self._plain(self._weighted(p), p)

    @cached_property
    def score(self) -> Tensor | None:
        """The log-probability of all draws that carry no gradient, or None if all carry one."""
        everything = sites(self.model_trace, observed=False) | self.latents
        scored = [site for site in everything.values() if not site["fn"].has_rsample]
        if not scored:
            return None
        return self._total([self._plain(site["fn"], site) for site in scored])

    def log_prob(self, site: Site) -> Tensor:
        """The log-probability of a site under all its weights, laid out."""
        return self._plain(self._weighted(site), site) * self.factor(site)

    def _weighted(self, site: Site) -> Any:
        """The distribution of a site, its dimensions weighted where the weights say so."""
        weight = self._weight(site)
        return site["fn"] if weight is None or weight.dim() == 0 else Weighted(site["fn"], weight)

    def factor(self, site: Site) -> Any:
        """What multiplies a site as a whole, the subsampling of the kept plates left out."""
        weight = self._weight(site)
        factor = site["scale"] / self.layout.scale
        return factor if weight is None or weight.dim() else factor * weight

    def _weight(self, site: Site) -> Tensor | None:
        return None if site["is_observed"] else self.weights.get(site["name"])

    def masked(self, value: Tensor, site: Site) -> Tensor:
        """A number for each element of a site's batch, where it is not masked, laid out."""
        return self.layout.arrange(scale_and_mask(value, mask=site["mask"]))  # pyright: ignore

    def _plain(self, distribution: Any, site: Site) -> Tensor:
        return self.masked(distribution.log_prob(site["value"]), site)

    def _total(self, terms: list[Tensor]) -> Tensor:
        return sum(terms) if terms else torch.zeros(())  # pyright: ignore

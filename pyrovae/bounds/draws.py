r"""Draws of a program's latents by its guide, and their log-weights, example by example.

The log-weight of a draw is $\log w = \log p(x, z) - \log q(z \mid x)$. Every bound here is a
function of the log-weights of one example's K draws. They are laid out as (K, plates).

Latents g outside these plates, such as the weights of a Bayesian decoder, are shared by all
examples: $\log w = \log p(x, z \mid g) - \log q(z \mid x, g)$, and theirs is a term of its own.
"""

__all__ = ["Draw", "Weights"]

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyrovae.bounds.layouts import Layout, subsampling
from pyrovae.distributions import Weighted, exact_kl, factorizes, unmasked, unweighted
from pyrovae.errors import InputError
from pyrovae.programs import Site, sample_sites, sites

# A share of no examples, to be divided by.
TINY = 1e-12
Weights = Mapping[str, Tensor]
"""For latent sites the weight of their KL term: a number, or one for each dimension."""


@dataclass
class Draw:
    r"""K draws of the latents, as the traces of a guide and of a model on them.

    Attributes:
        model_trace: The trace of the model.
        guide_trace: The trace of the guide.
        layout: How log-probabilities are laid out.
        subsamples: Of plates that draw the rows of their batch, which ones were drawn.
        weights: The weights of latent sites, beside those of the program itself.
    """

    model_trace: Trace
    guide_trace: Trace
    layout: Layout
    subsamples: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)

    @classmethod
    def of(cls, model_trace: Trace, guide_trace: Trace, **more: Any) -> Self:
        """The draws in two traces as they were run.

        Raises:
            InputError: As `Layout.of` and `Layout.check`.
        """
        nodes: dict[str, Site] = {**model_trace.nodes, **guide_trace.nodes}
        drawn = {name: node["value"] for name, node in nodes.items() if site_is_subsample(node)}
        model_trace, guide_trace = map(prune_subsample_sites, (model_trace, guide_trace))
        layout = Layout.of(model_trace, guide_trace)
        for trace in (guide_trace, model_trace):
            layout.check(trace)
        return cls(model_trace, guide_trace, layout, subsamples=drawn, **more)

    @cached_property
    def _guided(self) -> dict[str, Site]:
        """What the guide says: its latents, and factors of their density."""
        return sample_sites(self.guide_trace)

    @cached_property
    def latents(self) -> dict[str, Site]:
        """The guide's latent sites of examples by name."""
        return {n: site for n, site in self._guided.items() if n not in self.layout.shared}

    @cached_property
    def shared(self) -> dict[str, Site]:
        """The guide's latent sites that all examples share by name."""
        return {n: site for n, site in self._guided.items() if n in self.layout.shared}

    @property
    def shared_values(self) -> dict[str, Tensor]:
        """The draws of all latents that examples share, of the guide's and of the model's own."""
        drawn = self.left_to_model | self._guided
        return {name: drawn[name]["value"] for name in self.layout.shared}

    def check_held(self) -> None:
        """Refuses latents that all examples share, drawn once, but from other latents' K draws.

        Raises:
            InputError: Naming one.
        """
        sided = sample_sites(self.model_trace), self._guided
        shared = [(n, side[n]) for n in self.layout.shared for side in sided if n in side]
        for name, site in shared:
            given = site["fn"].batch_shape
            if len(given) >= self.layout.depth and given[-self.layout.depth] > 1:
                raise _refusal_of_held(name, "is drawn from")

    def check_order(self) -> None:
        """The same where each draw is a run, which does not show what a latent is drawn from: it
        may be drawn from any that stands before it.

        Raises:
            InputError: Naming one.
        """
        for latents in (self._guided, sites(self.model_trace, observed=False)):
            stands_behind = False
            for name in latents:
                if stands_behind and name in self.layout.shared:
                    raise _refusal_of_held(name, "stands behind")
                stands_behind = stands_behind or name not in self.layout.shared

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
        """The latents of examples that model and guide both sample, in the guide's order."""
        return [name for name in self.latents if name in self.model_trace.nodes]

    @property
    def matched_with_shared(self) -> set[str]:
        """Those, and the latents that all examples share."""
        return {name for name in self._guided if name in self.model_trace.nodes}

    @cached_property
    def in_order(self) -> set[str]:
        """The latents whose exact KL is the expectation of their sampled one.

        The exact KL of a latent is taken at draws of its prior's parents. They must have been
        drawn without knowing it: what may be a parent in the model, because it stands before
        it there, must stand before it in the guide.
        """
        guide_order = [name for name in self._guided if name in self.model_trace.nodes]
        model_order = [name for name in self.model_trace.nodes if name in self._guided]
        before = {name: set(model_order[:i]) for i, name in enumerate(model_order)}
        return {n for i, n in enumerate(guide_order) if before[n] <= set(guide_order[:i])}

    def prior_site(self, name: str) -> Site:
        """The model's site of a latent."""
        return self.model_trace.nodes[name]

    def kl_of(self, latents: Mapping[str, Site], *, exact: bool) -> Tensor:
        r"""$\mathrm{KL}(q \,\|\, p)$ of some of the guide's latents together, laid out.

        Those that the model does not have, which only help to make others, count with their
        $\log q$.
        """
        return self._total(
            [
                self.kl(name, exact=exact) if name in self.model_trace else self.log_prob(site)
                for name, site in latents.items()
            ]
        )

    def kl(self, name: str, *, exact: bool) -> Tensor:
        r"""$\mathrm{KL}(q \,\|\, p)$ of a latent, laid out: exact where known, else sampled.

        Under different weights on the two sides it is what these make of the two terms.
        """
        q, p = self._guided[name], self.prior_site(name)
        known = None
        if exact and name in self.in_order:
            dims = self.dim_weights(q)
            known = exact_kl(_weighted(q, dims), _weighted(p, dims))
        if known is None:
            return self.log_prob(q) - self.log_prob(p)
        kl = self.weighed(known, q)
        if _are_weighted_alike(q, p):
            return kl
        return kl + self.log_prob(p, like=q) - self.log_prob(p)

    def mean_kl(self, name: str) -> Tensor:
        r"""$\mathrm{KL}(q \,\|\, p)$ of an example's latent at weight 1, its mean over all draws.

        Examples in which it is masked count as none. It is summed over all that one example
        has of the latent: its elements in plates within, and its dimensions, unless prior and
        posterior both factorise. Then each of these has its own, in the shape of the event.
        """
        q, p = self.latents[name], self.prior_site(name)
        q_fn, p_fn, rank = unweighted(q["fn"]), unweighted(p["fn"]), 0
        if factorizes(q_fn) and factorizes(p_fn):
            q_fn, p_fn, rank = q_fn.base_dist, p_fn.base_dist, q_fn.event_dim
        kl = exact_kl(q_fn, p_fn) if name in self.in_order else None
        if kl is None:
            kl = q_fn.log_prob(q["value"]) - p_fn.log_prob(q["value"])
        kept = list(range(self.layout.depth))
        mean = self.masked(kl.detach(), q, rank).mean(kept) * self._within(q)
        share = self._share_with(q)
        return mean if share is None else (mean / share.clamp(min=TINY)).to(mean.dtype)

    def charge(self, constants: Weights) -> Any:
        """What constants of latents, in the shape of their mean KL, cost under the program's own
        weights: as much as a KL of as many nats.
        """
        charged = 0.0
        for name, constant in constants.items():
            site = self.latents[name]
            own = site["fn"].weight if isinstance(site["fn"], Weighted) else 1.0
            cost, share = self._beta(site) * (own * constant).sum(), self._share_with(site)
            charged = charged + (cost if share is None else cost * share)
        return charged

    def is_weighted(self, name: str) -> bool:
        """Whether the program gives the KL of a latent a weight that is not 1 to be seen."""
        site = self.latents[name]
        beta = self._beta(site)
        weights = isinstance(site["fn"], Weighted) or isinstance(beta, Tensor)
        return weights or not math.isclose(beta, 1)

    def at_weight_one(self, group: Iterable[Site]) -> Tensor:
        """The log-probability of sites, laid out, whatever their weights."""
        return self._total([self.log_density([site]) * self._within(site) for site in group])

    @cached_property
    def left_to_model(self) -> dict[str, Site]:
        """The model's latents that the guide does not draw."""
        latents = sites(self.model_trace, observed=False)
        return {name: site for name, site in latents.items() if name not in self._guided}

    @cached_property
    def without_gradient(self) -> dict[str, Site]:
        """The latents whose draws carry no gradient."""
        everything = self._guided | self.left_to_model
        return {name: site for name, site in everything.items() if not site["fn"].has_rsample}

    @cached_property
    def score(self) -> Tensor | None:
        """The log-probability of the draws of examples that carry no gradient, or None if all
        carry one.
        """
        return self._score(shared=False)

    @cached_property
    def shared_score(self) -> Tensor | None:
        """The same, of what all examples share."""
        return self._score(shared=True)

    @cached_property
    def leads_shared(self) -> bool:
        """Whether such draws of examples stand before something that all examples share, which
        may be drawn from them.
        """
        order = [*self._guided, *self.left_to_model]
        without = self.without_gradient.keys() - self.layout.shared
        first = min(map(order.index, without), default=len(order))
        return any(name in self.layout.shared for name in order[first:])

    def _score(self, *, shared: bool) -> Tensor | None:
        group = [
            site
            for name, site in self.without_gradient.items()
            if (name in self.layout.shared) == shared
        ]
        return self.score_of(group) if group else None

    def score_of(self, group: Iterable[Site]) -> Tensor:
        """The log-probability of the draws of latents, as they were made: also of such as are
        masked, on which what is observed may yet depend.
        """
        return self._total([self._arranged(_drawn(site), site) for site in group])

    def log_density(self, group: Iterable[Site]) -> Tensor:
        """The log-probability of latents without weights, where they are not masked."""
        return self._total([self.masked(_plain(site), site) for site in group])

    def log_prob(self, site: Site, *, like: Site | None = None) -> Tensor:
        """The log-probability of a site under all its weights, or another's, laid out."""
        like = site if like is None else like
        log_prob = _weighted(site, self.dim_weights(like)).log_prob(site["value"])
        return self.weighed(log_prob, site, like=like)

    def weighed(self, value: Tensor, site: Site, *, like: Site | None = None) -> Tensor:
        """A number for each element of a site, under its weights or another's, laid out."""
        factor = self._factor(site if like is None else like)
        if isinstance(factor, Tensor) and factor.dim():  # each element may have its own
            return self.masked(value * factor, site)
        return self.masked(value, site) * factor

    def _factor(self, site: Site) -> Any:
        """What multiplies a site as a whole, the subsampling of the kept plates left out."""
        weight = self._weight(site)
        factor = site["scale"] / (1.0 if self._is_shared(site) else self.layout.scale)
        return factor if weight is None or weight.dim() else factor * weight

    def dim_weights(self, site: Site) -> Tensor | None:
        """What multiplies each dimension of a site besides, or None."""
        weight = self._weight(site)
        own = site["fn"].weight if isinstance(site["fn"], Weighted) else None
        if weight is None or weight.dim() == 0:
            return own
        return weight if own is None else own * weight

    def _is_shared(self, site: Site) -> bool:
        return site["name"] in self.layout.shared

    def _weight(self, site: Site) -> Tensor | None:
        return None if site["is_observed"] else self.weights.get(site["name"])

    def _within(self, site: Site) -> float:
        """What subsampled plates within the kept ones multiply a site by."""
        return subsampling(site["cond_indep_stack"]) / self.layout.scale

    def _beta(self, site: Site) -> Any:
        """What multiplies a site as a whole, its plates left out: on average over all that one
        example has of it.
        """
        beta = site["scale"] / subsampling(site["cond_indep_stack"])
        if not isinstance(beta, Tensor) or beta.dim() == 0:
            return beta
        elements = beta.new_ones(site["fn"].batch_shape)
        return (self._arranged(beta * elements, site) / self._arranged(elements, site)).mean(0)

    def _share_with(self, site: Site) -> Tensor | None:
        """The share of the examples in which a site is not all masked; None without a mask."""
        if site["mask"] is None or site["mask"] is True:
            return None
        seen = torch.as_tensor(site["mask"], device=site["value"].device)
        return (self.layout.arrange(seen) > 0).double().mean()

    def masked(self, value: Tensor, site: Site, rank: int = 0) -> Tensor:
        """A number for each element of a site's batch, where it is not masked, laid out."""
        mask = site["mask"]
        if isinstance(mask, Tensor):
            mask = mask[(...,) + (None,) * rank]
        seen: Any = scale_and_mask(value, mask=mask)  # pyright: ignore
        return self._arranged(seen, site, rank)

    def _arranged(self, value: Tensor, site: Site, rank: int = 0) -> Tensor:
        return self.layout.arrange(value, rank, shared=self._is_shared(site))

    def _total(self, terms: list[Tensor]) -> Tensor:
        return sum(terms) if terms else torch.zeros(())  # pyright: ignore


def _refusal_of_held(name: str, how: str) -> InputError:
    return InputError(
        f"The latent {name!r}, which all examples share, {how} latents of examples, and these "
        "bounds draw it before them.",
        "Draw it first, or take ELBO (--bound elbo).",
    )


def _plain(site: Site) -> Tensor:
    """The log-probability of a site without weights, element by element of its batch."""
    return unweighted(site["fn"]).log_prob(site["value"])


def _drawn(site: Site) -> Tensor:
    """The same as it was drawn, without masks of its own."""
    return unmasked(unweighted(site["fn"])).log_prob(site["value"])


def _weighted(site: Site, weights: Tensor | None) -> Any:
    """The distribution of a site, under weights of its dimensions in place of its own."""
    plain = unweighted(site["fn"])
    return plain if weights is None else Weighted(plain, weights)


def _are_weighted_alike(q: Site, p: Site) -> bool:
    """Whether guide and model are seen to give a latent the same weights."""
    q_dims, p_dims = (fn.weight if isinstance(fn, Weighted) else None for fn in (q["fn"], p["fn"]))
    return q_dims is p_dims and isinstance(q["scale"], float) and q["scale"] == p["scale"]

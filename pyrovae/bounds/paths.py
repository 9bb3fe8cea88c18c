r"""Bounds whose gradient runs along the paths of the draws alone.

The gradient of $\log q_\phi(z_\phi)$ has two parts: one along the path of the draw, and the
score $\nabla_\phi \log q_\phi$ at a draw that is held fixed, whose expectation is zero. Here the
score is taken away: it is the whole of the gradient where the draws are detached, so the guide
is scored there once more. The log-probability of a point that is made of other draws, and a
factor, are no score of a draw: their gradient stays.
"""

__all__ = ["DReG", "StickingTheLanding"]

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.bounds.base import Bound, joined, shared_out, with_gradient
from pyrovae.bounds.draws import Draw
from pyrovae.bounds.pairs import GuideRun, Pair, drawn_sites
from pyrovae.distributions import unmasked, unweighted
from pyrovae.programs import Site


@dataclass
class _Shares:
    """What the gradients along the paths of draws are multiplied by, known after the draws."""

    value: Tensor | None = None
    shared: frozenset[str] = frozenset()

    def watch(self, site: Site) -> Tensor:
        """The value of a site, whose gradient will be multiplied by its draw's share.

        What all examples share has no share of one draw in it.
        """
        value: Tensor = site["value"].view_as(site["value"])
        if value.requires_grad:
            hook = partial(self._multiply, name=site["name"], rank=site["fn"].event_dim)
            value.register_hook(hook)
        return value

    def _multiply(self, gradient: Tensor, *, name: str, rank: int) -> Tensor:
        assert self.value is not None
        if name in self.shared:
            return gradient
        batch_rank = gradient.dim() - rank
        # A draw that is alone has no dimension of particles; that of its share is one.
        share = self.value.reshape(self.value.shape[self.value.dim() - batch_rank :])
        return gradient * share[(...,) + (None,) * rank]


@dataclass
class _PathDraw(Draw):
    """Draws of which the log-posterior of examples has a gradient along their paths alone."""

    fixed_trace: Trace | None = None
    shares: _Shares | None = None

    @cached_property
    def log_posterior(self) -> Tensor:
        r"""$\log q(z \mid x)$ without the gradient of its score."""
        log_q = self._total([self.log_prob(site) for site in self.latents.values()])
        return log_q - self.gradient_of_score(self.latents)

    def gradient_of_score(self, names: Iterable[str]) -> Tensor:
        r"""Zero, with the gradient of $\log q$ at draws that are held fixed.

        It is under the weights of the KL, with which it is in the log-weights. Where draws have
        shares it is that of the draws as they were made: $E[\tilde w \nabla \log q]$ is what
        the square of a share stands for, and what weights leave over of a score stays.
        """
        fixed = self._fixed(names)
        weighted = self.shares is None
        score = (
            self._total(list(map(self.log_prob, fixed))) if weighted else self.log_density(fixed)
        )
        return score - score.detach()

    @property
    def gradient_of_masked_score(self) -> Tensor | None:
        r"""The same of what is masked of the latents, which no log-weight has; None if nothing."""
        fixed = self._fixed(self.latents)
        if not any(map(_is_masked, fixed)):
            return None
        score = self.score_of(fixed) - self.log_density(fixed)
        return score - score.detach()

    def _fixed(self, names: Iterable[str]) -> list[Site]:
        assert self.fixed_trace is not None
        drawn = drawn_sites(self.fixed_trace)
        return [drawn[name] for name in names if name in drawn]


def _is_masked(site: Site) -> bool:
    own = unweighted(site["fn"])
    return not (site["mask"] is None or site["mask"] is True) or unmasked(own) is not own


def _draw_along_paths(pair: Pair, shares: _Shares | None = None) -> _PathDraw:
    run = GuideRun(pair)
    drawn = drawn_sites(run.trace)
    guide_trace = run.trace
    if shares is not None:
        guide_trace = run.at({n: shares.watch(s) for n, s in drawn.items()})
    model_trace = pair.run_model(guide_trace)
    draw = _PathDraw.of(model_trace, guide_trace, shares=shares)
    held = draw.latents | draw.shared
    if shares is not None:
        shares.shared = draw.layout.shared
        # Where the paths of examples' draws have less of their gradient, so must their score: to
        # them what they share is as the guide's parameters are.
        held = draw.latents
    fixed = {n: site["value"].detach() for n, site in drawn.items() if n in held}
    draw.fixed_trace = run.at(fixed)
    return draw


class StickingTheLanding(Bound):
    r"""The ELBO, differentiated along the paths of its draws alone.

    $\nabla_\phi \mathcal{L} = E_\epsilon[\nabla_z (\log p(x, z) - \log q(z \mid x)) \,
    \nabla_\phi z_\phi(\epsilon)]$, unbiased, with a variance that vanishes as q approaches the
    posterior. A guide with several latents is run once more at every step; a guide's flow that
    is slow to invert makes it slow.

    References:
        Sticking the Landing (Roeder et al., 2017), arXiv:1703.09194.
    """

    needs_gradients = True

    def _draw(self, pair: Pair) -> Draw:
        return _draw_along_paths(pair)

    def _estimate(self, draws: list[Draw]) -> Tensor:
        return joined([draw.log_weight for draw in draws]).mean(0)

    def _estimate_shared(self, draws: list[Draw]) -> Tensor:
        scores = [d.gradient_of_score(d.shared) for d in draws if isinstance(d, _PathDraw)]
        return super()._estimate_shared(draws) + torch.stack(scores).mean()


class DReG(Bound):
    r"""The importance-weighted bound of `IWAE` with the doubly reparametrised gradient.

    $\nabla_\phi \mathcal{L}_K = E[\sum_k \tilde w_k^2 \, \nabla_z \log w_k \,
    \nabla_\phi z_k]$ for $\tilde w_k = w_k / \sum_j w_j$: unbiased for the encoder, and of a
    signal-to-noise ratio that grows with K where that of the plain gradient falls. The model's
    gradient is the plain one, and that of latents which all examples share. A guide with several
    latents is run twice more at every step.

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al.,
        2019), arXiv:1810.04152.
    """

    needs_gradients = True
    holds_shared = True

    def __init__(self, num_particles: int = 50, **options: Any) -> None:
        super().__init__(num_particles, **options)

    def _draw(self, pair: Pair) -> Draw:
        return _draw_along_paths(pair, _Shares())

    def _estimate(self, draws: list[Draw]) -> Tensor:
        log_weight = joined([draw.log_weight for draw in draws])
        share = log_weight.detach().softmax(0)
        bound = log_weight.logsumexp(0) - math.log(len(log_weight))
        followed = shared_out(share, log_weight)
        for draw, part in zip(draws, share.split(len(share) // len(draws)), strict=True):
            assert isinstance(draw, _PathDraw)
            assert draw.shares is not None
            draw.shares.value = part
            if (masked := draw.gradient_of_masked_score) is not None:
                # Against a baseline, by which what is masked altogether has none.
                followed = followed + ((part - 1 / len(share)) * masked).sum(0)
        return with_gradient(bound, followed)

r"""Reweighted wake-sleep: the baseline that maximises two things and bounds one."""

__all__ = ["ReweightedWakeSleep"]

import math
from collections.abc import Callable
from typing import Any

from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyrovae.bounds.base import Bound, joined, shared_out, with_gradient
from pyrovae.bounds.draws import Draw
from pyrovae.bounds.pairs import GuideRun, Pair, latent_sites, points_of
from pyrovae.distributions import innermost, unweighted
from pyrovae.errors import InputError
from pyrovae.programs import observation_site, sample_sites


class ReweightedWakeSleep(Bound):
    r"""Trains the model on the draws by their weights, and the guide towards the posterior.

    With $\tilde w_k = w_k / \sum_j w_j$ and no gradient through any draw, the model follows
    $\sum_k \tilde w_k \nabla_\theta \log p(x, z_k)$, and the guide
    $\sum_k \tilde w_k \nabla_\phi \log q(z_k \mid x)$ ("wake") or, on examples that the model
    dreams up, $\nabla_\phi \log q(z \mid x)$ ("sleep"). The value that is reported is that of
    `IWAE`. A weight of the KL is one in the $w_k$ and in the model's gradient; what the guide
    follows is not scaled by it.

    Args:
        num_particles: The number K of draws for each example.
        sleep: The share of the guide's gradient that comes from dreams, from 0 to 1.
        options: As in every `Bound`.

    Raises:
        InputError: If the share is not in [0, 1]; at the first step, if there are latents that all
            examples share, whose draws have no weights, or points that are learned; and with
            dreams, if the program draws rows of its plate by itself, or observes besides x what
            is none of its arguments.

    References:
        Reweighted Wake-Sleep (Bornschein & Bengio, 2015), arXiv:1406.2751.
        Revisiting Reweighted Wake-Sleep (Le et al., 2019), arXiv:1805.10469.
    """

    least_particles = 2

    def __init__(self, num_particles: int = 10, *, sleep: float = 0.0, **options: Any) -> None:
        if not 0 <= sleep <= 1:
            raise InputError(f"The share of sleep is {sleep}.", "Give a number from 0 to 1.")
        super().__init__(num_particles, **options)
        self.sleep = sleep

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The negative bound, summed over examples, with the gradients of wake and sleep."""
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        if not self.sleep:
            return loss
        dreamt = self._log_posterior_of_dreams(Pair(model, guide, args, kwargs))
        return with_gradient(loss, loss - self.sleep * dreamt)

    def _check(self, draw: Draw) -> None:
        if draw.layout.shared:
            raise InputError(
                f"ReweightedWakeSleep trains by the weights of an example's draws, and the latent "
                f"{min(draw.layout.shared)!r} is shared by all examples.",
                "Take ELBO, IWAE or VIMCO (--bound elbo, iwae or vimco).",
            )
        for name in draw.latents.keys() & points_of(draw.guide_trace).keys():
            if innermost(unweighted(draw.latents[name]["fn"])).v.requires_grad:
                raise InputError(
                    f"ReweightedWakeSleep trains a guide by the log-probability of its draws, and "
                    f"the latent {name!r} is a point that is learned.",
                    "Take ELBO (--bound elbo), or an encoder that draws.",
                )
        super()._check(draw)

    def _draw(self, pair: Pair) -> Draw:
        run = GuideRun(pair)
        latents = latent_sites(run.trace)
        fixed = run.at({n: s["value"].detach() for n, s in latents.items()})
        model_trace = pair.run_model(fixed)
        return Draw.of(model_trace, fixed)

    def _estimate(self, draws: list[Draw]) -> Tensor:
        log_weight = joined([draw.log_weight for draw in draws])
        log_model = joined([_log_model(draw) for draw in draws])
        log_guide = joined([draw.at_weight_one(draw.latents.values()) for draw in draws])
        share = log_weight.detach().softmax(0)
        bound = log_weight.logsumexp(0) - math.log(self.num_particles)
        followed = log_model + (1 - self.sleep) * log_guide
        return with_gradient(bound, shared_out(share, followed))

    def _log_posterior_of_dreams(self, pair: Pair) -> Tensor:
        """The guide's log-probability of the latents that the model drew, given what it drew of
        them.
        """
        dream = pair.dream()
        latents = latent_sites(dream)
        run = GuideRun(_awake(pair, dream))
        drawn = [n for n in latent_sites(run.trace) if n in latents]
        guide_trace = run.at({n: latents[n]["value"] for n in drawn})
        draw = Draw.of(dream, guide_trace)
        return draw.layout.scale * draw.at_weight_one(draw.latents[n] for n in drawn).sum()


def _awake(pair: Pair, dream: Trace) -> Pair:
    """The two, with what the model has dreamt in the place of what it observed.

    Raises:
        InputError: If that is nowhere among the arguments.
    """
    x = observation_site(dream)
    leaves, spec = tree_flatten((pair.args, pair.kwargs))
    # What is observed may have been made of the first argument, as by a change of its type.
    places = {id(leaf): place for place, leaf in reversed(list(enumerate(leaves)))}
    observed = {
        name: (site, places.get(id(site["infer"]["obs"]), 0 if site is x else None))
        for name, site in sample_sites(dream).items()
        if site["infer"].get("was_observed") and site["value"].numel()  # a factor has no value
    }
    for name, (site, place) in observed.items():
        if place is None:
            raise InputError(
                f"The model observes {name!r} besides, which is none of its arguments, so the "
                "guide cannot be told what it has dreamt of it.",
                "Give it as an argument, or take sleep=0 (--bound.sleep 0).",
            )
        if len(site["value"]) != len(leaves[place]):
            raise InputError(
                f"The program draws {len(site['value'])} of {len(leaves[place])} rows by itself, "
                "and has dreamt of no others.",
                "Give it the rows of a batch, or take sleep=0 (--bound.sleep 0).",
            )
        leaves[place] = site["value"]
    args, kwargs = tree_unflatten(leaves, spec)
    return pair._replace(args=args, kwargs=kwargs)


def _log_model(draw: Draw) -> Tensor:
    r"""$\log p(x, z)$ of held draws, under the weights of the KL."""
    # A latent that the guide leaves to the model cancels in the weights, but has its gradient.
    left = [site for name, site in draw.left_to_model.items() if name in draw.without_gradient]
    score = draw.score_of(left)
    return draw.log_likelihood + draw.log_prior + score - score.detach()

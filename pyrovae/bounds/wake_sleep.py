r"""Reweighted wake-sleep: the baseline that maximises two things and bounds one."""

__all__ = ["ReweightedWakeSleep"]

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyrovae.bounds.base import Bound, joined, with_gradient
from pyrovae.bounds.draws import Draw, Pair, latent_sites
from pyrovae.errors import InputError
from pyrovae.programs import observation_site


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
            examples share, whose draws have no weights.

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
        super()._check(draw)

    def _draw(self, pair: Pair) -> Draw:
        guide_trace = pair.run_guide()
        latents = latent_sites(guide_trace)
        fixed = pair.at(guide_trace, {n: s["value"].detach() for n, s in latents.items()})
        model_trace = pair.run_model(fixed)
        return Draw.of(model_trace, fixed)

    def _estimate(self, draws: list[Draw]) -> Tensor:
        log_weight = joined([draw.log_weight for draw in draws])
        log_model = joined([_log_model(draw) for draw in draws])
        log_guide = joined([draw.at_weight_one(draw.latents.values()) for draw in draws])
        share = log_weight.detach().softmax(0)
        bound = log_weight.logsumexp(0) - math.log(self.num_particles)
        return with_gradient(bound, (share * (log_model + (1 - self.sleep) * log_guide)).sum(0))

    def _log_posterior_of_dreams(self, pair: Pair) -> Tensor:
        """The guide's log-probability of the latents that the model drew, given its x."""
        dream = pair.dream()
        x = observation_site(dream)["value"]
        awake = Pair(pair.model, pair.guide, (x, *pair.args[1:]), pair.kwargs)
        latents = latent_sites(dream)
        guide_trace = awake.run_guide()
        drawn = [n for n in latent_sites(guide_trace) if n in latents]
        guide_trace = awake.at(guide_trace, {n: latents[n]["value"] for n in drawn})
        draw = Draw.of(dream, guide_trace)
        return draw.layout.scale * draw.at_weight_one(draw.latents[n] for n in drawn).sum()


def _log_model(draw: Draw) -> Tensor:
    r"""$\log p(x, z)$ of held draws, under the weights of the KL."""
    # A latent that the guide leaves to the model cancels in the weights, but has its gradient.
    left = [site for name, site in draw.left_to_model.items() if name in draw.without_gradient]
    score = draw.log_density(left)
    return draw.log_likelihood + draw.log_prior + score - score.detach()

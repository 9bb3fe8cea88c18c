r"""The evidence lower bound."""

__all__ = ["ELBO"]

import math
import warnings

import torch
from torch import Tensor

from pyrovae.bounds.base import Bound, joined, with_gradient
from pyrovae.bounds.controls import Control
from pyrovae.bounds.draws import Draw


class ELBO(Bound):
    r"""The evidence lower bound $E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))$.

    Draws that carry gradients are differentiated along their paths, others by their score with
    the mean of the other draws as a baseline:
    $\tfrac1K \sum_k (f_k - \bar f_{-k}) \nabla \log q(z_k \mid x)$.
    f is the bound of the draw's own example, or of all, where what they share is drawn behind it.

    With `exact_kl` the KL of every latent that has a closed form is taken in that form. It is so
    at draws of the prior's parents, and right only if these were drawn without knowing the
    latent; where the guide runs against the model's order, that latent's KL is sampled, with a
    warning. `pyro.infer.TraceMeanField_ELBO` takes the closed form there too, which is no bound.

    Args:
        num_particles: The number K of draws for each example.
        exact_kl: Whether to use closed forms of the KL.
        kl: As in every `Bound`.
        vectorize_particles: As in every `Bound`.
        max_plate_nesting: As in every `Bound`.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114.
        Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019).
    """

    needs_shared_gradients = False

    def __init__(
        self,
        num_particles: int = 1,
        *,
        exact_kl: bool = False,
        kl: Control | None = None,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
    ) -> None:
        super().__init__(
            num_particles,
            kl=kl,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.exact_kl = exact_kl

    def _estimate(self, draws: list[Draw]) -> Tensor:
        value = joined([self._value(draw) for draw in draws])
        scores = [None if draw.leads_shared else draw.score for draw in draws]
        return self._with_scores(value.mean(0), value, scores)

    def _estimate_shared(self, draws: list[Draw]) -> Tensor:
        kls = [draw.kl_of(draw.shared, exact=self.exact_kl) for draw in draws]
        bound = -torch.stack(kls).mean()
        scores = [_score_of_all(draw) for draw in draws]
        if scores[0] is None:
            return bound
        # What all examples share is weighed by what all of them have of it.
        whole = joined([self._of_all(draw) - kl for draw, kl in zip(draws, kls, strict=True)])
        return self._with_scores(bound, whole, scores).sum()

    def _with_scores(self, bound: Tensor, value: Tensor, scores: list[Tensor | None]) -> Tensor:
        """The bound with the gradient of draws by their score, of which each has its value."""
        known = [score for score in scores if score is not None]
        if not known:
            return bound
        baseline = (value.sum(0) - value) / max(1, self.num_particles - 1)
        signal = (value - baseline).detach()
        return with_gradient(bound, bound + (signal * joined(known)).mean(0))

    def _of_all(self, draw: Draw) -> Tensor:
        """The bound of all examples by each draw: (K, 1, ...)."""
        value = self._value(draw)
        return draw.layout.scale * value.sum(list(range(1, value.dim())), keepdim=True)

    def _value(self, draw: Draw) -> Tensor:
        """The bound by each draw, (K, plates)."""
        if not self.exact_kl:
            return draw.log_weight
        if against := sorted(draw.matched_with_shared - draw.in_order):
            warnings.warn(
                f"The guide draws {against[0]!r} before what the model may draw it from, so its "
                "KL is sampled.",
                stacklevel=2,
            )
        return draw.log_likelihood - draw.kl_of(draw.latents, exact=True)


def _score_of_all(draw: Draw) -> Tensor | None:
    """The score of what all examples share, and of the draws of examples that it is drawn from."""
    shared, own = draw.shared_score, draw.score
    if own is None or not draw.leads_shared:
        return shared
    led = own.sum(list(range(1, own.dim())), keepdim=True)
    return led if shared is None else shared + led

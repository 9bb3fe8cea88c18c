r"""The evidence lower bound."""

__all__ = ["ELBO"]

import math
import warnings

from torch import Tensor

from pyrovae.bounds.base import Bound, joined, with_gradient
from pyrovae.bounds.controls import Control
from pyrovae.bounds.draws import Draw


class ELBO(Bound):
    r"""The evidence lower bound $E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))$.

    Draws that carry gradients are differentiated along their paths, others by their score with
    the mean of the other draws as a baseline:
    $\tfrac1K \sum_k (f_k - \bar f_{-k}) \nabla \log q(z_k \mid x)$.

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
        bound = value.mean(0)
        if draws[0].score is None:
            return bound
        score = joined([draw.score for draw in draws if draw.score is not None])
        baseline = (value.sum(0) - value) / max(1, self.num_particles - 1)
        signal = (value - baseline).detach()
        return with_gradient(bound, bound + (signal * score).mean(0))

    def _value(self, draw: Draw) -> Tensor:
        """The bound by each draw, (K, plates)."""
        if not self.exact_kl:
            return draw.log_weight
        if against := sorted(set(draw.matched) - draw.in_order):
            warnings.warn(
                f"The guide draws {against[0]!r} before what the model may draw it from, so its "
                "KL is sampled.",
                stacklevel=2,
            )
        unmatched = [draw.log_prob(s) for n, s in draw.latents.items() if n not in draw.matched]
        return draw.log_likelihood - sum(
            [*unmatched, *(draw.kl(name, exact=True) for name in draw.matched)]
        )

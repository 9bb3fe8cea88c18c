r"""Bounds that look at a batch's aggregate posterior $q(z) = \tfrac1N \sum_n q(z \mid x_n)$."""

__all__ = ["MMD", "TotalCorrelation"]

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.bounds.base import Bound
from pyrovae.bounds.draws import Draw
from pyrovae.checks import check_finite
from pyrovae.distributions import factorizes, unweighted
from pyrovae.errors import InputError


class TotalCorrelation(Bound):
    r"""The ELBO with its KL split in three, each with a weight of its own.

    $$\mathcal{L} = E_q[\log p(x \mid z)] - \alpha \, I(x; z) - \beta \,
    \mathrm{KL}(q(z) \,\|\, \textstyle\prod_d q(z_d))
    - \gamma \sum_d \mathrm{KL}(q(z_d) \,\|\, p(z_d))$$

    The aggregate posterior is that of the batch, at its own draws; for
    $\alpha = \beta = \gamma = 1$ the three sum to the KL exactly. The published estimator divides
    by the size N of the data set as well, which adds $\log N$, $(D - 1) \log N$ and
    $-D \log N$ to the three, constants.

    Args:
        mutual_information: The weight $\alpha$.
        total_correlation: The weight $\beta$.
        dimension_wise: The weight $\gamma$.
        options: As in every `Bound`.

    What weighs the KL, as beta or `Capacity`, weighs the three together. A weight for each
    dimension has no meaning here, as two of the three are no sums over dimensions.

    Raises:
        InputError: At the first step, if the program has several latents, or other than one
            vector for each example, one whose guide does not factorise over its dimensions, or
            whose dimensions are weighted one by one.

    References:
        Isolating Sources of Disentanglement in VAEs (Chen et al., 2018), arXiv:1802.04942.
    """

    needs_gradients = True

    def __init__(
        self,
        *,
        mutual_information: float = 1.0,
        total_correlation: float = 6.0,
        dimension_wise: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(1, **options)
        check_finite(
            mutual_information=mutual_information,
            total_correlation=total_correlation,
            dimension_wise=dimension_wise,
        )
        self.mutual_information = mutual_information
        self.total_correlation = total_correlation
        self.dimension_wise = dimension_wise

    def _estimate(self, draws: list[Draw]) -> Tensor:
        (draw,) = draws
        name = _only_latent(draw, self)
        q, p = draw.latents[name], draw.prior_site(name)
        if draw.dim_weights(q) is not None or draw.dim_weights(p) is not None:
            raise InputError(
                f"The dimensions of {name!r} are weighted one by one, and in TotalCorrelation "
                "only one of the KL's three parts is a sum over dimensions.",
                "Give one beta for all of them, FreeBits per_dim=False, or another bound.",
            )
        if not factorizes(q["fn"]):
            raise InputError(
                f"TotalCorrelation needs a guide whose dimensions are independent, and that of "
                f"{name!r} is a {type(q['fn']).__name__}.",
                "Take GaussianEncoder, or another bound.",
            )
        # Draw i under the posterior of example j, dimension by dimension: (i, j, D).
        log_q_dims = q["fn"].base_dist.log_prob(q["value"].unsqueeze(-2))
        count = math.log(log_q_dims.shape[1])
        log_aggregate = log_q_dims.sum(-1).logsumexp(1) - count
        log_marginals = (log_q_dims.logsumexp(1) - count).sum(-1)
        penalty = (
            self.mutual_information * (q["fn"].log_prob(q["value"]) - log_aggregate)
            + self.total_correlation * (log_aggregate - log_marginals)
            + self.dimension_wise * (log_marginals - p["fn"].log_prob(p["value"]))
        )
        return (draw.log_likelihood - draw.weighed(penalty, q)).mean(0)


class MMD(Bound):
    r"""The ELBO with a KL that gives way to a distance of $q(z)$ from $p(z)$.

    $$\mathcal{L} = E_q[\log p(x \mid z)] - (1 - \alpha) \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))
    - (\alpha + \lambda - 1) \, \mathrm{MMD}^2(q(z), p(z))$$

    The maximum mean discrepancy is that between the batch's draws and as many of the prior,
    unbiased, under the kernels $C / (C + \|z - z'\|^2)$ with $C = 2 D s$ for seven scales s from
    0.1 to 10. A batch of a single example has none, and counts without. For $\alpha = 1$ it is a
    Wasserstein autoencoder with a random encoder.

    A learned prior follows its own draws where they carry gradients. Where they do not, as those
    of a mixture, it follows their score, $\nabla E_p[f] = E_p[f \, \nabla \log p]$. What weighs
    the KL, as beta, a warm-up or `FreeBits`, weighs the KL that is left, and not the distance.

    Args:
        alpha: The share $\alpha$ of the KL that gives way.
        strength: The weight $\lambda$.
        options: As in every `Bound`.

    Raises:
        InputError: If $\alpha$ is 1, where no KL is left, and there is a control of it. At the
            first step, if the program weighs its KL and none is left, if it has several latents,
            or other than one vector for each example.

    References:
        InfoVAE (Zhao et al., 2019), arXiv:1706.02262.
        Wasserstein Auto-Encoders (Tolstikhin et al., 2018), arXiv:1711.01558.
    """

    needs_gradients = True

    def __init__(self, *, alpha: float = 1.0, strength: float = 100.0, **options: Any) -> None:
        super().__init__(1, **options)
        check_finite(alpha=alpha)
        check_finite(least=0, strength=strength)
        self.alpha = alpha
        self.strength = strength
        if self.kl is not None and not self.kl_share:
            raise InputError(
                f"MMD with alpha=1 leaves no KL for {self.kl!r} to weigh.",
                "Give an alpha below 1, or no kl.",
            )

    @property
    def kl_share(self) -> float:
        r"""The share $1 - \alpha$ of the KL that is left."""
        return 1 - self.alpha

    def _estimate(self, draws: list[Draw]) -> Tensor:
        (draw,) = draws
        name = _only_latent(draw, self)
        z, prior = draw.latents[name]["value"], unweighted(draw.prior_site(name)["fn"])
        distance = _squared_mmd_to(prior, z)
        bound = draw.log_likelihood - (self.alpha + self.strength - 1) * distance
        if self.kl_share:
            bound = bound - self.kl_share * draw.kl(name, exact=False)
        elif draw.is_weighted(name):
            raise InputError(
                f"The program weighs the KL of {name!r}, and MMD with alpha=1 leaves none.",
                "Give an alpha below 1, or the KL no weight: beta=1.",
            )
        return bound.mean(0)


def _squared_mmd_to(prior: Any, z: Tensor) -> Tensor:
    r"""$\mathrm{MMD}^2$ of draws from as many of a prior, with the gradient of both."""
    if prior.has_rsample:
        return squared_mmd(z, prior.rsample())
    drawn = prior.sample()
    log_p = prior.log_prob(drawn)
    return squared_mmd(z, drawn, (log_p - log_p.detach()).exp())


def squared_mmd(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""The unbiased estimate of $\mathrm{MMD}^2$ from draws (N, D) of each distribution.

    It needs two draws, and is 0 for one. Weights (N,) are those of the draws y.
    """
    count = len(x)
    if count < 2:
        return x.new_zeros(())  # there are no two to be near to one another
    w = x.new_ones(count) if weights is None else weights
    others = 1 - torch.eye(count, dtype=x.dtype, device=x.device)
    within = (_kernel(x, x) + w.outer(w) * _kernel(y, y)) * others
    return within.sum() / (count * (count - 1)) - 2 * (w * _kernel(x, y)).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    distances = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)
    scales = [2 * x.shape[-1] * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
    return torch.stack([scale / (scale + distances) for scale in scales]).sum(0)


def _only_latent(draw: Draw, bound: Bound) -> str:
    if len(draw.latents) != 1 or len(draw.matched) != 1:
        raise InputError(
            f"{type(bound).__name__} is for programs with one latent of examples, and this has "
            f"{len(draw.latents)}: {', '.join(draw.latents) or 'all are shared'}.",
            "Take ELBO, with FreeBits or another control of its KL.",
        )
    (name,) = draw.matched
    q = draw.latents[name]
    if any(isinstance(site["mask"], Tensor) for site in (q, draw.prior_site(name))):
        raise InputError(
            f"{type(bound).__name__} compares the latents of all examples with one another, and a "
            f"mask leaves out {name!r} of some.",
            "Leave these examples out of the batch, or take ELBO.",
        )
    if q["fn"].event_dim != 1 or q["value"].dim() != 2:
        raise InputError(
            f"{type(bound).__name__} compares one latent vector of each example, of shape (N, D), "
            f"and {name!r} has the shape {tuple(q['value'].shape)}.",
            "Make it one vector (to_event(1)) in no other plate than that of the examples, or "
            "take ELBO.",
        )
    return name

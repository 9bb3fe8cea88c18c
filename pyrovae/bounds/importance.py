r"""Importance-weighted bounds: nearer to $\log p(x)$ with every further draw."""

__all__ = ["IWAE", "VIMCO"]

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.bounds.base import Bound, joined, with_gradient
from pyrovae.bounds.draws import Draw


class IWAE(Bound):
    r"""The importance-weighted bound $\mathcal{L}_K = E[\log \tfrac1K \sum_k w_k]$.

    It rises to $\log p(x)$ with K, and is the ELBO for K = 1. `pyro.infer.RenyiELBO` with
    `alpha=0` is the same bound, where no plate is subsampled and no latent is shared by all
    examples: given such latents g it rises to $E_{q(g)}[\log p(x \mid g)] -
    \mathrm{KL}(q(g) \,\|\, p(g))$, and Pyro's weighs all examples together.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519.
    """

    needs_gradients = True
    holds_shared = True

    def __init__(self, num_particles: int = 50, **options: Any) -> None:
        super().__init__(num_particles, **options)

    def _estimate(self, draws: list[Draw]) -> Tensor:
        return _bound([draw.log_weight for draw in draws])


class VIMCO(Bound):
    r"""The same bound for draws without gradients, as discrete ones.

    $\nabla \mathcal{L}_K = E[\sum_k (\hat L - \hat L_{-k}) \nabla \log q(z_k \mid x)
    + \sum_k \tilde w_k \nabla \log w_k]$, where $\hat L_{-k}$ is the bound with $\log w_k$
    replaced by the mean of the others'. Latents whose draws carry gradients keep theirs.

    References:
        Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016),
        arXiv:1602.06725.
    """

    least_particles = 2
    holds_shared = True

    def __init__(self, num_particles: int = 10, **options: Any) -> None:
        super().__init__(num_particles, **options)

    def _estimate(self, draws: list[Draw]) -> Tensor:
        log_weight = joined([draw.log_weight for draw in draws])
        bound = _bound([log_weight])
        if draws[0].score is None:
            return bound
        signal = (bound - self._without_each(log_weight)).detach()
        score = joined([draw.score for draw in draws if draw.score is not None])
        return with_gradient(bound, bound + (signal * score).sum(0))

    def _without_each(self, log_weight: Tensor) -> Tensor:
        """For each draw the bound with the others' mean log-weight in its place."""
        count = self.num_particles
        own = torch.eye(count, dtype=torch.bool, device=log_weight.device)
        own = own.reshape(count, count, *(1,) * (log_weight.dim() - 1))
        # Not the sum of all less each: a draw that excludes x has minus infinity.
        means = torch.where(own, 0.0, log_weight.unsqueeze(0)).sum(1) / (count - 1)
        replaced = torch.where(own, means.unsqueeze(1), log_weight.unsqueeze(0))
        return replaced.logsumexp(1) - math.log(count)


def _bound(log_weights: list[Tensor]) -> Tensor:
    log_weight = joined(log_weights)
    return log_weight.logsumexp(0) - math.log(len(log_weight))

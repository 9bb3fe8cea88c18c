"""Encoders whose answer is improved for each example by itself."""

__all__ = ["RefinedEncoder"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pyrovae.checks import check_finite, check_whole
from pyrovae.encoders.outputs import LOG_SCALE_BOUNDS
from pyrovae.errors import InputError


class RefinedEncoder(nn.Module):
    r"""A Gaussian encoder, followed by steps up each example's own ELBO.

    From the encoder's $(\mu, \log \sigma)$ it takes natural gradient steps on

    $$\tfrac12 \sum_{\pm} \log p(x, \mu \pm \sigma \odot s) + \sum_i \log \sigma_i,$$

    $$\mu \leftarrow \mu + \eta \, \sigma^2 \odot \nabla_\mu, \qquad
    \log \sigma \leftarrow \log \sigma + \tfrac12 \eta \, \nabla_{\log \sigma}.$$

    This is the ELBO with the exact entropy, and the expectation over $z$ taken at two points,
    where $s$ is a vector of signs, another at each step: in every dimension the Gauss-Hermite
    rule of two nodes. Where the posterior is a factorised Gaussian the steps lead to it. The
    signs are the same at every call, so that $q$ remains a function of $x$ alone. No step moves
    $\mu$ by more than $\sigma$, or $\log \sigma$ by more than 1.

    Gradients do not flow through the steps: what they add to $(\mu, \log \sigma)$ is a constant
    to whoever differentiates the result. The encoder is taught by the gradient at the point
    that its answer was refined to, which vanishes as the steps converge: keep them few in
    training. The prior and the decoder receive no gradient from here.

    Args:
        encoder: An encoder whose distribution is a factorised Gaussian.
        prior: The prior of the same VAE: the very module, not a copy.
        decoder: The decoder of the same VAE, likewise.
        steps: The number of steps. Each takes two passes through the decoder, and back.
        lr: The length $\eta$ of a step; 1 is Newton's near a factorised Gaussian. A step sees
            the other dimensions at one of their signs alone, and a long one follows that noise.

    Raises:
        InputError: If there is no step, or its length is not positive.

    References:
        Semi-Amortized Variational Autoencoders (Kim et al., 2018), arXiv:1802.02550.
        Iterative Amortized Inference (Marino et al., 2018), arXiv:1807.09356.
    """

    signs: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        prior: nn.Module,
        decoder: nn.Module,
        *,
        steps: int = 5,
        lr: float = 0.1,
    ) -> None:
        super().__init__()

        check_whole(steps=steps)
        check_finite(above=0, lr=lr)

        self.encoder = encoder
        self.prior = prior
        self.decoder = decoder
        self.steps = steps
        self.lr = lr
        self.register_buffer("signs", _signs(steps, prior.latent_dim), persistent=False)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.

        Raises:
            InputError: If the encoder's distribution is no factorised Gaussian.
        """
        start = _normal(self.encoder(x))
        loc, log_scale = start.loc.detach(), start.scale.detach().log()
        for signs in self.signs:
            loc, log_scale = self._step(x, loc, log_scale, signs)

        return dist.Normal(
            start.loc + (loc - start.loc).detach(),
            start.scale * (log_scale.exp() / start.scale).detach(),
        ).to_event(1)

    def _step(
        self, x: Tensor, loc: Tensor, log_scale: Tensor, signs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step up the ELBO, from the mean and log-scale of each example to others."""
        to_loc, to_log_scale = self._gradient(x, loc, log_scale, signs)
        scale = log_scale.exp()
        loc = loc + scale * (self.lr * scale * to_loc).clamp(-1, 1)
        log_scale = log_scale + (self.lr / 2 * to_log_scale).clamp(-1, 1)

        return loc, log_scale.clamp(*LOG_SCALE_BOUNDS)

    def _gradient(
        self, x: Tensor, loc: Tensor, log_scale: Tensor, signs: Tensor
    ) -> tuple[Tensor, ...]:
        """The gradient of the ELBO of each example, also where gradients are switched off."""
        with torch.enable_grad():
            loc = loc.detach().requires_grad_()
            log_scale = log_scale.detach().requires_grad_()
            offset = log_scale.exp() * signs
            z = torch.stack([loc + offset, loc - offset])
            log_joint = self.prior().log_prob(z) + self.decoder(z).log_prob(x)
            elbo = log_joint.mean(0) + log_scale.sum(-1)

            return torch.autograd.grad(elbo.sum(), (loc, log_scale))


def _signs(steps: int, latent_dim: Any) -> Tensor:
    """Random signs that are the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randint(2, (steps, latent_dim), generator=generator) - 1


def _normal(distribution: dist.Distribution) -> Normal:
    """The Normal of each latent dimension."""
    if isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal):
        return distribution.base_dist

    raise InputError(
        f"A RefinedEncoder starts from a factorised Gaussian, not from a "
        f"{type(distribution).__name__}.",
        "Give it a GaussianEncoder.",
    )

"""The linear-Gaussian VAE out of the real parts, where every quantity has a closed form.

With p(z) = N(0, I), p(x | z) = N(W z + b, s² I) and WᵀW diagonal, the posterior is
N(V Wᵀ(x - b) / s², V) for the diagonal V = (I + WᵀW / s²)⁻¹, which a `GaussianEncoder` over a
linear layer can express, and the evidence is N(b, W Wᵀ + s² I).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyrovae.data import AsIs, Examples
from pyrovae.decoders import GaussianDecoder
from pyrovae.encoders import LOG_SCALE_BOUNDS, GaussianEncoder
from pyrovae.models import VAE
from pyrovae.priors import StandardNormal

X_DIM, LATENT_DIM, SCALE = 7, 3, 0.3
STRENGTHS = (1.5, 0.7, 0.2)


@contextmanager
def float64() -> Iterator[None]:
    """Builds modules in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class AsGiven(AsIs):
    """The data in their own precision."""

    def apply(self, raw: Tensor, noise: Tensor | None) -> Tensor:
        return raw


def unclamp(value: Tensor) -> Tensor:
    """What the encoder's smooth clamp maps to a log-scale."""
    low, high = LOG_SCALE_BOUNDS
    floored = high - torch.expm1(high - value).log()

    return low + torch.expm1(floored - low).log()


@dataclass
class LinearGaussian:
    """A VAE with examples of its own, the moments of its guide and those of the posterior."""

    vae: VAE
    x: Tensor
    log_evidence: Tensor
    loc: Tensor
    scale: Tensor
    posterior_loc: Tensor
    posterior_scale: Tensor

    @property
    def examples(self) -> Examples:
        return Examples(self.x, preprocessing=AsGiven())

    @property
    def kl_per_dim(self) -> Tensor:
        """KL(q ‖ p) of every example and dimension."""
        return (self.loc**2 + self.scale**2 - 1) / 2 - self.scale.log()

    @property
    def elbo(self) -> Tensor:
        """log p(x) - KL(q ‖ posterior)."""
        ratio = self.scale / self.posterior_scale
        shift = (self.loc - self.posterior_loc) / self.posterior_scale
        return self.log_evidence - ((shift**2 + ratio**2 - 1) / 2 - ratio.log()).sum(-1)


def linear_gaussian(
    num_examples: int = 5,
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    shift: float = 0.0,
    stretch: float = 1.0,
    beta: float = 1.0,
    seed: int = 0,
) -> LinearGaussian:
    """Its guide is the posterior moved by `shift` scales and made `stretch` times wider."""
    rng = torch.Generator().manual_seed(seed)
    with float64():
        basis = torch.linalg.qr(torch.randn(X_DIM, LATENT_DIM, generator=rng)).Q
        W, b = basis * torch.tensor(strengths), torch.randn(X_DIM, generator=rng)
        z = torch.randn(num_examples, LATENT_DIM, generator=rng)
        x = z @ W.T + b + SCALE * torch.randn(num_examples, X_DIM, generator=rng)

        variance = 1 / (1 + W.square().sum(0) / SCALE**2)
        to_mean = variance[:, None] * W.T / SCALE**2
        posterior_scale = variance.sqrt()
        scale = stretch * posterior_scale

        decoding, encoding = nn.Linear(LATENT_DIM, X_DIM), nn.Linear(X_DIM, 2 * LATENT_DIM)
        with torch.no_grad():
            decoding.weight.copy_(W)
            decoding.bias.copy_(b)
            encoding.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
            mean_bias = shift * posterior_scale - to_mean @ b
            encoding.bias.copy_(torch.cat([mean_bias, unclamp(scale.log())]))

        vae = VAE(
            StandardNormal(LATENT_DIM),
            GaussianDecoder(decoding, scale=SCALE),
            GaussianEncoder(encoding),
            beta=beta,
        )
        evidence = MultivariateNormal(b, W @ W.T + SCALE**2 * torch.eye(X_DIM))
        posterior_loc = (x - b) @ to_mean.T

    return LinearGaussian(
        vae=vae,
        x=x,
        log_evidence=evidence.log_prob(x),
        loc=posterior_loc + shift * posterior_scale,
        scale=scale,
        posterior_loc=posterior_loc,
        posterior_scale=posterior_scale,
    )

"""A program of a latent that all examples share: a shift g of the linear-Gaussian VAE.

With g ~ N(0, I) added to x, and q(g) = N(m, t²), x is predicted by N(b + m, W Wᵀ + (s² + t²) I).
"""

import math

import pyro
import pyro.distributions as dist
import torch
from linear_gaussian import SCALE, X_DIM, linear_gaussian
from torch import nn
from torch.distributions import MultivariateNormal

from pyrovae.distributions import ImproperUniform

LOC, WIDTH = 0.1, 0.1
N = 40


class Shifted(nn.Module):
    """The linear-Gaussian VAE with a shift that all examples share.

    Args:
        guided: What the guide says of the shift: "normal", "point" or nothing.
        spread: The scale of its prior.
        size: The size of the plate; else that of the batch.
        flat: Whether the shift's prior is improper.
        one_at_a_time: Whether to run for one particle alone.
    """

    def __init__(self, guided="normal", *, spread=1.0, size=None, flat=False, one_at_a_time=False):
        super().__init__()
        self.case = linear_gaussian(N)
        self.vae = self.case.vae
        self.guided, self.spread, self.size = guided, spread, size
        self.flat, self.one_at_a_time = flat, one_at_a_time
        self.loc = nn.Parameter(torch.full((X_DIM,), LOC, dtype=torch.float64))
        self.log_width = nn.Parameter(torch.full_like(self.loc, math.log(WIDTH)))

    def plate(self, x):
        if self.size is None:
            return pyro.plate("data", len(x), dim=-1)
        return pyro.plate("data", self.size, subsample=x, dim=-1)

    def model(self, x):
        prior = dist.Normal(torch.zeros_like(self.loc), self.spread).to_event(1)
        if self.flat:
            prior = ImproperUniform(prior.support, (), (X_DIM,))
        g = pyro.sample("g", prior)
        if self.one_at_a_time:
            assert g.shape == (X_DIM,)
        with self.plate(x):
            z = pyro.sample("z", self.vae.prior())
            p = self.vae.decoder(z)
            pyro.sample("x", dist.Normal(p.mean + g, SCALE).to_event(1), obs=x)

    def guide(self, x):
        if self.guided == "normal":
            pyro.sample("g", dist.Normal(self.loc, self.log_width.exp()).to_event(1))
        elif self.guided == "point":
            pyro.sample("g", dist.Delta(self.loc, event_dim=1))
        with self.plate(x):
            pyro.sample("z", self.vae.encoder(x))

    @property
    def shift_of_data(self):
        """The mean of the best q(g) to go with a guide of z that is told nothing of g."""
        W, b = (p.detach() for p in self.vae.decoder.net.parameters())
        # The guide of z is right for g = 0: of what it leaves, x - W z - b, g is the mean.
        off = (self.x - self.case.loc @ W.T - b).sum(0) / SCALE**2
        return off / (1 + N / SCALE**2)

    @property
    def x(self):
        return self.case.x

    @property
    def examples(self):
        return self.case.examples

    def predictive(self, loc, variance=0.0):
        """log p(x) of each example for g ~ N(loc, variance)."""
        p = self.vae.decoder.net
        W, b = p.weight.detach(), p.bias.detach()
        covariance = W @ W.T + (SCALE**2 + variance) * torch.eye(X_DIM, dtype=W.dtype)
        return MultivariateNormal(b + loc, covariance).log_prob(self.x)

    def elbo(self, loc, variance):
        """The bound of each example, given a draw of g."""
        p = self.vae.decoder.net
        W, b = p.weight.detach(), p.bias.detach()
        off = self.x - self.case.loc @ W.T - b - loc
        square = off**2 + variance + self.case.scale.square() @ W.T.square()
        each = -0.5 * square / SCALE**2 - math.log(SCALE) - 0.5 * math.log(2 * math.pi)
        return each.sum(-1) - self.case.kl_per_dim.sum(-1)

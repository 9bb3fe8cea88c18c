"""A variational autoencoder, for you to edit.

pyrovae train own.py --data digits
"""

import math

import pyro
import pyro.distributions as dist
from torch import nn

import pyrovae


class VAE(nn.Module):
    def __init__(self, shape, latent_dim, hidden):
        super().__init__()
        size = math.prod(shape)
        self.shape, self.latent_dim = shape, latent_dim
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent_dim)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.SiLU(), nn.Linear(hidden, size)
        )

    def model(self, x):
        """The generative story: a code z from the prior, then x from its likelihood."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            logits = self.decoder(z).unflatten(-1, self.shape)
            likelihood = dist.Bernoulli(logits=logits).to_event(len(self.shape))
            pyro.sample("x", likelihood, obs=x)

    def guide(self, x):
        """The approximate posterior of z, given x."""
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def build(shape, *, latent_dim=50, hidden=400):
    """The program for data of a shape; the other arguments are options, --build.latent-dim."""
    return VAE(shape, latent_dim, hidden)


if __name__ == "__main__":
    data = pyrovae.load_data("digits")
    run = pyrovae.fit(build(data.x_shape), data, epochs=20)
    print(f"log p(x) {run.evaluate().log_evidence.mean():.2f} nats")

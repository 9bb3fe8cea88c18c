"""Small programs that several tests train."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyrovae


def small_vae(x_shape=(6,), latent_dim=2, *, seed=0, beta=1.0, decoder=pyrovae.BernoulliDecoder):
    torch.manual_seed(seed)
    return pyrovae.VAE(
        prior=pyrovae.StandardNormal(latent_dim),
        decoder=decoder(pyrovae.MLP((latent_dim,), x_shape, hidden=(16,))),
        encoder=pyrovae.GaussianEncoder(pyrovae.MLP(x_shape, (2 * latent_dim,), hidden=(16,))),
        beta=beta,
    )


def binary(count=300, width=6, *, seed=0):
    """Rows that follow one of two prototypes, with a little noise: something to learn."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.tensor([[1.0] * (width // 2) + [0.0] * (width - width // 2)])
    prototypes = torch.cat([prototypes, 1 - prototypes])
    rows = prototypes[torch.randint(0, 2, (count,), generator=generator)]
    return (torch.rand(count, width, generator=generator) < 0.05 + 0.9 * rows).float()


def weights(program):
    return {name: value.clone() for name, value in nn.Module.state_dict(program).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class InTwo(nn.Module):
    """A program that observes the first number of an example by one site, the rest by another."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.decoder(z)
            for name, part in (("x", slice(1)), ("rest", slice(1, None))):
                of_part = dist.Normal(loc[..., part], 1.0).to_event(1)
                pyro.sample(name, of_part, obs=x[..., part])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))

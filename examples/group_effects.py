"""A VAE with effects of groups: latents that all examples share, with a posterior of their own.

Of five digits there are many images and of the other five few. Every digit y has logits b_y that
are added to what the decoder makes of z: none, free parameters, or latents b ~ N(0, spread^2) with
a spread that is learned, which is what statisticians call partial pooling. Held-out numbers are
averages over the posterior of b.

    python examples/group_effects.py [--few 5] [--epochs 1000] [--stop-early] [--smoke-test]
"""

import argparse
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pyrovae

GROUPS, D = 10, 8


class OfGroups(nn.Module):
    """z ~ N(0, I), x ~ Bernoulli(logits=decoder(z) + b_y): b is a latent, a parameter or 0."""

    def __init__(self, x_shape, size, effects):
        super().__init__()
        self.prior = pyrovae.StandardNormal(D)
        self.decoder = pyrovae.MLP((D,), x_shape, hidden=(100,))
        self.encoder = pyrovae.GaussianEncoder(pyrovae.MLP(x_shape, (2 * D,), hidden=(100,)))
        self.size, self.effects = size, effects  # the KL of b counts once in so many examples
        self.b = nn.Parameter(torch.zeros(GROUPS, *x_shape), requires_grad=effects != "none")
        self.log_scale = nn.Parameter(torch.full_like(self.b, -1.0))
        self.log_spread = nn.Parameter(torch.zeros(()))

    def model(self, x, y):
        b = self.b
        if self.effects == "latent":
            b = pyro.sample(
                "b", dist.Normal(b.new_zeros(b.shape), self.log_spread.exp()).to_event(4)
            )
        with pyro.plate("data", self.size, subsample=x):
            z = pyro.sample("z", self.prior())
            logits = self.decoder(z) + b.index_select(-4, y)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x, y):
        if self.effects == "latent":
            pyro.sample("b", dist.Normal(self.b, self.log_scale.exp()).to_event(4))
        with pyro.plate("data", self.size, subsample=x):
            pyro.sample("z", self.encoder(x))


def unequal(examples, few):
    """A hundred images of each digit below five, and so few of each of the others."""
    batch = examples.head(len(examples))
    rows = [(batch.y == y).nonzero()[: 100 if y < 5 else few, 0] for y in range(GROUPS)]
    return TensorDataset(batch.x[torch.cat(rows)], batch.y[torch.cat(rows)])


def main(few, epochs, stops):
    digits = pyrovae.load_data("digits")
    train = unequal(digits.train, few)
    options = {"epochs": epochs, "optimizer": partial(torch.optim.Adam, lr=3e-3)}
    if stops:
        options |= {"valid": digits.valid, "patience": 100}
    print(f"log p(x | y) of digits with 100 and with {few} images, in nats per image:")

    for effects in ("none", "parameter", "latent"):
        torch.manual_seed(0)
        program = OfGroups(digits.x_shape, len(train), effects)
        run = pyrovae.fit(program, train, progress=False, **options)
        found = run.evaluate(digits.test, num_samples=500)
        score, rare = found.log_evidence, found.labels >= 5
        print(f"{effects:10} {score[~rare].mean():.2f} and {score[rare].mean():.2f}")

    print(f"KL of the effects {found.global_kl:.0f} nats in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--stop-early", action="store_true", help="by 180 further images")
    parser.add_argument("--smoke-test", action="store_true", help="a few seconds")
    given = parser.parse_args()
    main(given.few, 2 if given.smoke_test else given.epochs, given.stop_early)

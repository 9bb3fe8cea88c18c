"""One decoder, one budget, three priors: each a line of the model.

python examples/swap_prior.py [--data digits] [--epochs 150] [--table] [--smoke-test]
"""

import argparse
import inspect

import pyro
import torch
from pyro.distributions import Categorical, MixtureSameFamily, Normal
from torch import nn

import pyrovae

D, K = 10, 10


class StandardNormal(nn.Module):
    def __init__(self, x_shape):
        super().__init__()
        self.decoder = pyrovae.BernoulliDecoder(pyrovae.MLP((D,), x_shape))
        self.encoder = pyrovae.GaussianEncoder(pyrovae.MLP(x_shape, (2 * D,)))
        self.register_buffer("zeros", torch.zeros(D))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(self.zeros, 1.0).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


class LearnedGaussian(StandardNormal):
    def __init__(self, x_shape):
        super().__init__(x_shape)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(self.loc, self.log_scale.exp()).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)


class Mixture(StandardNormal):
    def __init__(self, x_shape):
        super().__init__(x_shape)
        self.logits = nn.Parameter(torch.zeros(K))
        self.loc, self.log_scale = nn.Parameter(torch.randn(K, D)), nn.Parameter(torch.zeros(K, D))

    def model(self, x):
        component = Normal(self.loc, self.log_scale.exp()).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", MixtureSameFamily(Categorical(logits=self.logits), component))
            pyro.sample("x", self.decoder(z), obs=x)


def main(data_name, epochs, as_table):
    data, log_evidence = pyrovae.load_data(data_name), {}
    for cls in (StandardNormal, LearnedGaussian, Mixture):
        torch.manual_seed(0)
        run = pyrovae.fit(cls(data.x_shape), data, epochs=epochs, progress=False)
        log_evidence[cls] = run.evaluate(num_samples=1000, limit=1000).log_evidence

    base = log_evidence[StandardNormal]
    if as_table:
        print(
            "| log p(x), nats | against the standard normal | the line of `model` |\n|---|---|---|"
        )
    for cls, found in log_evidence.items():
        source = inspect.getsource(cls.model).splitlines()
        line = next(text.strip() for text in source if '"z"' in text)
        gain, error = (found - base).mean(), (found - base).std() / len(base) ** 0.5
        against = f"{gain:+.2f} +- {error:.2f}" if cls is not StandardNormal else ""
        row = (f"{found.mean():.2f}", against, f"`{line}`")
        print("| " + " | ".join(row) + " |" if as_table else "  ".join(row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="the name of a data set")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    parser.add_argument("--smoke-test", action="store_true", help="two epochs")
    given = parser.parse_args()
    main(given.data, 2 if given.smoke_test else given.epochs, given.table)

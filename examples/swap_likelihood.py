"""One prior, one encoder, one budget, four likelihoods of 8-bit faces: each a line.

Densities under different likelihoods compare here because all four are of the same dequantised
pixels; a Bernoulli of binarised pixels would be a number of another thing.

    python examples/swap_likelihood.py [--data frey-faces] [--epochs 60] [--smoke-test]
"""

import argparse
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyrovae
from pyrovae.distributions import ContinuousBernoulli

D = 10
FLOOR = 1 / 256 / math.sqrt(12)

# eta is the network's output, s a learned scale; both likelihoods and data live on [0, 1].
LIKELIHOODS = {
    "Gaussian": lambda eta, s: dist.Normal(eta.sigmoid(), s),
    "Laplace": lambda eta, s: dist.Laplace(eta.sigmoid(), s),
    "Student-t": lambda eta, s: dist.StudentT(4.0, eta.sigmoid(), s),
    "continuous Bernoulli": lambda eta, s: ContinuousBernoulli(eta),
}


class FaceVAE(nn.Module):
    def __init__(self, x_shape, likelihood):
        super().__init__()
        self.likelihood = likelihood
        self.prior = pyrovae.StandardNormal(D)
        self.net = pyrovae.MLP((D,), x_shape, hidden=(200,))
        self.encoder = pyrovae.GaussianEncoder(pyrovae.MLP(x_shape, (2 * D,), hidden=(200,)))
        self.log_scale = nn.Parameter(torch.tensor(-2.0))

    def model(self, x):
        scale = FLOOR + self.log_scale.exp()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.net(z), scale).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


def moving_blobs(count=200, side=12):
    """Grey images of a blob that moves and changes its size: something to run on anywhere."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 2))[None]
    centre, width = rng.uniform(-0.5, 0.5, (count, 2, 1, 1)), rng.uniform(0.1, 0.4, (count, 1, 1))
    blob = np.exp(-((grid - centre) ** 2).sum(1) / width)
    return (200 * blob + rng.integers(0, 30, blob.shape)).astype(np.uint8)


def main(source, epochs):
    data = pyrovae.load_data(source)
    print(f"{len(data.train)} images, {data.preprocessing.summary}")
    for name, likelihood in LIKELIHOODS.items():
        torch.manual_seed(0)
        vae = FaceVAE(data.x_shape, likelihood)
        run = pyrovae.fit(vae, data, epochs=epochs, batch_size=64, clip_norm=1e4, progress=False)
        found = run.evaluate(num_samples=500)
        nats = found.log_evidence.mean()
        print(
            f"{name:22} log p(x) {nats:9.1f} nats per image, {found.bits_per_dim:.3f} bits per dim"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="frey-faces", help="the name of a data set")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--smoke-test", action="store_true", help="two epochs on made-up images")
    given = parser.parse_args()
    if given.smoke_test:
        main(moving_blobs(), epochs=2)
    else:
        main(given.data, given.epochs)

"""Genes counted in single cells: three likelihoods of counts, and a Gaussian of their logarithms.

python examples/single_cells.py [--data-dir PATH] [--epochs 60] [--smoke-test]
"""

import argparse
from functools import partial

import numpy as np
import torch
from pyro.distributions import Normal, constraints
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch.special import log_ndtr

import pyrovae
from pyrovae.data.raw import data_folder
from pyrovae.networks import Log1p

G, D, net = 1000, 10, partial(pyrovae.MLP, hidden=(128,))


class RoundedGaussian(Normal):  # log_ndtr has its digits on the left: the right is mirrored
    support, sample, rsample = constraints.nonnegative_integer, None, None

    def log_prob(self, x):
        low, high = (((x + edge).log() - self.loc) / self.scale for edge in (0.5, 1.5))
        few, many = log_ndtr(torch.stack([low, high]) * torch.where(low > 0, -1, 1)).sort(0)[0]
        inside = many + torch.log(-torch.expm1((few - many).clamp(max=-1e-7)))
        return torch.where(x > 0, inside, log_ndtr(high))


class RoundedGaussianDecoder(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.log_scale = net, torch.nn.Parameter(torch.full((G,), -1.0))

    def forward(self, z, size):
        loc = torch.log1p(size[..., None] * self.net(z).softmax(-1))
        return RoundedGaussian(loc, 0.01 + self.log_scale.exp()).to_event(1)


class Sized(torch.nn.Module):  # the last latent is how much of a cell there is, the others of what
    def __init__(self, decoder, log_sizes):
        super().__init__()
        self.decoder, self.loc, self.scale = decoder, *map(float, torch.std_mean(log_sizes)[::-1])

    def forward(self, z):
        return self.decoder(z[..., :-1], (self.loc + self.scale * z[..., -1]).exp())


# All are probabilities of the same counts, exactly: the Gaussian has the mass round each count.
LIKELIHOODS = {
    "ZINB": lambda: pyrovae.ZeroInflatedNegativeBinomialDecoder(net((D,), (2 * G,)), (G,)),
    "negative binomial": lambda: pyrovae.NegativeBinomialDecoder(net((D,), (G,)), (G,)),
    "Poisson": lambda: pyrovae.PoissonDecoder(net((D,), (G,))),
    "rounded Gaussian": lambda: RoundedGaussianDecoder(net((D,), (G,))),
}


def main(path, epochs, limit=None):
    file, order = np.load(path), np.random.default_rng(0).permutation(4186)[:limit]
    parts = file["data"].astype(np.float32), file["indices"].astype(int), file["indptr"]
    x, y = torch.tensor(csr_matrix(parts, file["shape"])[order].toarray()), file["labels"][order]
    tenth = len(x) // 10
    x = x[:, x[2 * tenth :].log1p().var(0).topk(G).indices]  # what varies most in training
    test, valid, train = x.tensor_split([tenth, 2 * tenth])
    told = {"epochs": epochs, "patience": 10, "optimizer": partial(torch.optim.Adam, lr=2e-3)}
    for name, likelihood in LIKELIHOODS.items():
        torch.manual_seed(0)
        decoder = Sized(likelihood(), train.sum(1).log())
        encoder = pyrovae.GaussianEncoder(Log1p(net((G,), (2 * D + 2,))))
        vae = pyrovae.VAE(pyrovae.StandardNormal(D + 1), decoder, encoder)
        pyrovae.fit(vae, train, valid=valid, progress=False, **told)
        log_p = pyrovae.evaluate(vae, test, num_samples=200).log_evidence.mean()
        codes = encoder(x).mean[:, :-1].detach()
        ari = adjusted_rand_score(y, KMeans(10, n_init=10, random_state=0).fit_predict(codes))
        print(f"{name:18}{log_p:9.2f} nats per cell, adjusted Rand index {ari:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder that the file is in, or $PYROVAE_DATA")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--smoke-test", action="store_true", help="one epoch on a few cells")
    given = parser.parse_args()
    path = data_folder(given.data_dir) / "scrna_worm_neuron_4186x13488.npz"
    run = (1, 200) if given.smoke_test else (given.epochs,)
    main(path, *run) if path.is_file() else print(f"There is no {path}: see --data-dir.")

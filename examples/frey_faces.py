"""Frey Faces in bits per dim: the grey values themselves, or spread over the reals.

python examples/frey_faces.py [--data-dir PATH] [--epochs 200] [--out faces.png] [--smoke-test]

A probability of the 256 levels is measured as it is; a density of (x + u) / 256, with u uniform,
bounds one from below. The split and the unit are those of the VampPrior (arXiv:1705.07120), and
so are the networks. The frames are of one video: each in the test set has others near.
"""

import argparse
import math
from functools import partial

import torch

import pyrovae
from pyrovae.data import AsIs, Dequantize
from pyrovae.decoders import DiscretizedLogisticDecoder, PixelwiseGaussianDecoder
from pyrovae.decoders import DiscretizedLogisticMixtureDecoder as MixtureDecoder
from pyrovae.networks import Centred, GatedMLP
from pyrovae.priors import VampPrior

X, D, HIDDEN = (1, 28, 20), 40, (300, 300)
CELL = 1 / 256 / math.sqrt(12)  # no Gaussian is narrower than one level


def net(*out_shape):
    return GatedMLP((D,), out_shape, hidden=HIDDEN)


def logistic():
    return DiscretizedLogisticDecoder(net(2, 28, 20))


def logistic_mixture():
    shape = MixtureDecoder.net_shape(X, components=5)
    return MixtureDecoder(net(*shape), X, components=5)


def gaussian():
    return PixelwiseGaussianDecoder(net(2, 28, 20), min_scale=CELL)


def standard_normal(encoder, examples):
    return pyrovae.StandardNormal(D)


def vamp(encoder, examples):
    return VampPrior(encoder, X, components=200, bounded=False).start_at(examples)


ROWS = {
    "dequantised Gaussian": (gaussian, standard_normal),
    "discretised logistic": (logistic, standard_normal),
    "mixture of 5": (logistic_mixture, standard_normal),
    "mixture of 5, VampPrior": (logistic_mixture, vamp),
}


def main(folder, epochs, path=None, limit=None):
    for name, (likelihood, prior) in ROWS.items():
        units, top = (Dequantize(), 2) if likelihood is gaussian else (AsIs(), 256)
        data = pyrovae.load_data("frey-faces", data_dir=folder, preprocessing=units)
        torch.manual_seed(0)
        reading = Centred(GatedMLP(X, (2 * D,), hidden=HIDDEN), levels=top)
        encoder = pyrovae.GaussianEncoder(reading)
        examples = data.train.head(len(data.train)).x
        vae = pyrovae.VAE(prior(encoder, examples), likelihood(), encoder)
        told = {"optimizer": partial(torch.optim.Adam, lr=1e-3), "batch_size": 100}
        run = pyrovae.fit(vae, data, epochs=epochs, patience=30, progress=False, **told)
        found = run.evaluate(num_samples=500, limit=limit)
        print(f"{name:24}{found.bits_per_dim:.3f} bits per dim")
    if path:
        run.sample(60).save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder of frey_faces.npz, or $PYROVAE_DATA")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", help="where to save a picture of samples")
    parser.add_argument("--smoke-test", action="store_true", help="one epoch, eight test frames")
    given = parser.parse_args()
    try:
        pyrovae.load_data("frey-faces", data_dir=given.data_dir)
    except pyrovae.InputError as error:
        print(error)
    else:
        main(given.data_dir, *(1, None, 8) if given.smoke_test else (given.epochs, given.out))

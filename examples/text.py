"""Tiny Shakespeare by characters: how a text VAE loses its latents, and what keeping them costs.

python examples/text.py [--data-dir PATH] [--epochs 2] [--smoke-test]

The model is that of Bowman et al. (2016), arXiv:1511.06349. A decoder that sees the characters
so far can do without z; then the posterior is the prior and the VAE is the language model alone.
"""

import argparse
from functools import partial

import pyro
import torch

import pyrovae
from pyrovae.data.raw import data_folder
from pyrovae.decoders import RecurrentTextDecoder
from pyrovae.networks import TokenEncoderNet

T, D, H = 48, 32, 128


class LanguageModel(pyrovae.VAE):
    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.decoder(torch.zeros(len(x), D)), obs=x)

    def guide(self, x):
        pass


def make(arm, symbols, word_dropout=0.0):
    torch.manual_seed(0)
    options = {"symbols": symbols, "embedding": 32, "hidden": H}
    net = pyrovae.MLP((D,), (H,), hidden=())
    decoder = RecurrentTextDecoder(net, (T,), word_dropout=word_dropout, **options)
    encoder = pyrovae.GaussianEncoder(TokenEncoderNet((T,), (2 * D,), **options))
    return arm(pyrovae.StandardNormal(D), decoder, encoder)


def windows(text, alphabet):
    """Contiguous nine tenths to train on, a twentieth to watch and one to test, in windows."""
    x = torch.tensor([alphabet.index(c) for c in text])
    parts = x.tensor_split([int(0.9 * len(x)), int(0.95 * len(x))])
    return [pyrovae.Examples(x[: len(x) // T * T].reshape(-1, T)) for x in parts]


def main(text, epochs, limit=300):
    alphabet = sorted(set(text))
    train, valid, test = windows(text, alphabet)
    free = pyrovae.ELBO(exact_kl=True, kl=pyrovae.FreeBits(0.25))
    arms = {
        "language model": (make(LanguageModel, len(alphabet)), {}),
        "VAE": (make(pyrovae.VAE, len(alphabet)), {}),
        "VAE, KL warm-up": (make(pyrovae.VAE, len(alphabet)), {"kl_warmup": epochs / 2}),
        "VAE, free bits": (make(pyrovae.VAE, len(alphabet)), {"bound": free}),
    }
    print(f"{len(train)} windows of {T} characters, {len(alphabet)} symbols; bits per character")
    print(f"{'':18}{'-ELBO':>8}{'-log p(x)':>11}{'KL, nats':>10}   active units")
    for name, (program, options) in arms.items():
        adam = partial(torch.optim.Adam, lr=2e-3)
        options |= {"valid": valid, "epochs": epochs, "batch_size": 64, "optimizer": adam}
        pyrovae.fit(program, train, engine="eager", clip_norm=50.0, progress=False, **options)
        found = pyrovae.evaluate(program, test, num_samples=100, limit=limit)
        elbo = -found.elbo.mean() / T / torch.tensor(2.0).log()
        row = f"{name:18}{elbo:8.3f}{found.bits_per_dim:11.3f}{found.kl.mean():10.2f}"
        print(f"{row}   {found.active_units} of {found.latent_dims}", flush=True)
    for name in list(arms)[1:]:
        drawn = pyrovae.sample(arms[name][0], test.head(1), 3).x.long().tolist()
        print(name, *(repr("".join(alphabet[i] for i in row)) for row in drawn), sep="\n  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder that text is in, or $PYROVAE_DATA")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--smoke-test", action="store_true", help="an epoch on a few lines")
    given = parser.parse_args()
    path = data_folder(given.data_dir) / "text" / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        print(f"Tiny Shakespeare is not at {path}: name the folder that text is in by --data-dir.")
    elif given.smoke_test:
        main(path.read_text()[:8000], 1, limit=3)
    else:
        main(path.read_text(), given.epochs)

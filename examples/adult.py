"""UCI Adult, rows of numbers and codes with missing entries: a VAE against independent columns.

python examples/adult.py [--data-dir PATH] [--epochs 100] [--smoke-test]
"""

import argparse

import numpy as np
import torch
from torch.distributions import Categorical, Normal

import pyrovae
from pyrovae.data import Standardize
from pyrovae.data.raw import data_folder
from pyrovae.decoders import TabularDecoder
from pyrovae.distributions import NanMasked
from pyrovae.imputation import impute
from pyrovae.networks import TabularInput

# Left out are the survey's weights, and the years of education, a code of the degree.
NAMES = "age job - degree - marriage occupation family race sex gain loss hours country income"
D, H, rng = 8, 128, np.random.default_rng(0)


def encode(name, values):
    if name in ("age", "hours"):  # whole numbers have a density once spread over [n, n + 1)
        return 0, values.astype(float) + rng.random(len(values))
    if name in ("gain", "loss"):  # whether there was any
        return 2, values.astype(float) > 0
    codes = np.unique(values[values != "?"])
    return len(codes), np.where(values == "?", np.nan, codes.searchsorted(values))


def alone(codes, x):
    seen = x[~x.isnan()]
    if codes == 0:
        return NanMasked(Normal(seen.mean(), seen.std()))
    return NanMasked(Categorical(1.0 + seen.long().bincount(minlength=codes)))


def main(folder, epochs, limit=None):
    files = [folder / "adult.data", folder / "adult.test"]
    known, new = (np.genfromtxt(f, str, "|", ", ")[:limit] for f in files)
    raw = zip(NAMES.split(), np.char.strip(np.concatenate([known, new]), ".").T, strict=True)
    table = {name: encode(name, values) for name, values in raw if name != "-"}
    columns, entries = zip(*table.values(), strict=True)
    x = torch.tensor(np.stack(entries, 1))
    x = Standardize.of(x[: len(known)], columns=columns).apply(x, None)
    valid, train, test = x.tensor_split([len(known) // 10, len(known)])
    sets = [pyrovae.Examples(x, missing=True) for x in (train, valid, test)]
    torch.manual_seed(0)
    shape, given = (len(columns),), {"columns": columns}
    encoding = pyrovae.MLP(TabularInput.net_shape(shape, **given), (2 * D,), hidden=(H,))
    decoding = pyrovae.MLP((D,), TabularDecoder.net_shape(shape, **given), hidden=(H,))
    encoder = pyrovae.GaussianEncoder(TabularInput(encoding, **given))
    vae = pyrovae.VAE(pyrovae.StandardNormal(D), TabularDecoder(decoding, **given), encoder)
    pyrovae.fit(vae, sets[0], valid=sets[1], epochs=epochs, patience=10, progress=False)
    log_p = pyrovae.evaluate(vae, sets[2], num_samples=200).log_evidence.mean()
    marginals = [alone(*column) for column in zip(columns, train.T, strict=True)]
    baseline = sum(p.log_prob(x) for p, x in zip(marginals, test.T, strict=True)).mean()
    print(f"log p(x) in nats per row: independent columns {baseline:.2f}, VAE {log_p:.2f}")

    hidden = (torch.rand(test.shape) < 0.1) & ~test.isnan()
    rest = pyrovae.Batch(test.where(~hidden, torch.nan))
    drawn = impute(vae, rest, count=20, num_samples=50).x
    print("hidden entries   by column   by row: how well they are guessed")
    for i, (name, codes) in enumerate(zip(table, columns, strict=True)):
        draws = drawn[:, hidden[:, i], i]
        guesses = marginals[i].base_dist.mode, draws.mode(0).values if codes else draws.mean(0)
        errors = [guess - test[hidden[:, i], i] for guess in guesses]
        scores = [(e == 0).float().mean() if codes else e.square().mean().sqrt() for e in errors]
        print(f"{name:14}{scores[0]:12.3f}{scores[1]:9.3f}  {'right' if codes else 'rms error'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder that uci_adult is in, or $PYROVAE_DATA")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--smoke-test", action="store_true", help="one epoch on a few rows")
    given = parser.parse_args()
    folder = data_folder(given.data_dir) / "uci_adult"
    if not (folder / "adult.data").is_file():
        print(f"UCI Adult is not at {folder}: name the folder that uci_adult is in by --data-dir.")
    else:
        main(folder, *(1, 400) if given.smoke_test else (given.epochs,))

"""The networks of a VAE with neither prior nor noise, with the prior alone, and with both.

python examples/ae_versus_vae.py [--data mnist] [--epochs 20] [--smoke-test]

A table, and pictures as ae_versus_vae.png. Images decoded from codes of no example are held
against real ones: how far the ten nearest agree on a digit, and how far away the nearest is.
"""

import argparse
import os

import pyro
import pyro.distributions as dist
import torch
from sklearn.neighbors import KNeighborsClassifier

import pyrovae
from pyrovae.data import AsIs, Batch
from pyrovae.models import Autoencoder
from pyrovae.plots import Picture, grid

D = 20


class NoiselessVAE(pyrovae.VAE):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.encoder(x).mean, event_dim=1))


def make(arm, x_shape):
    torch.manual_seed(0)
    decoder = pyrovae.BernoulliDecoder(pyrovae.MLP((D,), x_shape))
    encoder = pyrovae.GaussianEncoder(pyrovae.MLP(x_shape, (2 * D,)))
    return arm(D if arm is Autoencoder else pyrovae.StandardNormal(D), decoder, encoder)


def decoded(program, train, start, end):
    """Images from codes of no example: the name, what to measure, and what to show."""
    codes, n = program.encoder(train).mean.detach(), len(start)
    fitted = torch.distributions.MultivariateNormal(codes.mean(0), codes.T.cov())
    for name, z in (("N(0, I)", torch.randn(n, D)), ("fitted Gaussian", fitted.sample((n,)))):
        x = pyrovae.decode(program, {"z": z}, Batch(start)).x
        yield f"z ~ {name}", x, x[:11]
    lines = pyrovae.interpolate(program, Batch(start), Batch(end), steps=11).x
    yield "between two codes", lines[:, 5], lines[1]


def mean(values):
    return f"{values.mean():.2f} ± {values.std() / len(values) ** 0.5:.2f}"


def main(name="digits", epochs=2, path=None):
    data, grey = pyrovae.load_data(name), pyrovae.load_data(name, preprocessing=AsIs())
    train, (start, end) = data.train.head(10_000).x, data.test.head(2000).x.chunk(2)
    real, white = grey.train.head(50_000), grey.train.head(1000).x.max()
    classifier = KNeighborsClassifier(10).fit(real.x.flatten(1) / white, real.y)

    def judge(x):
        distances, _ = classifier.kneighbors(x.flatten(1))
        return mean(classifier.predict_proba(x.flatten(1)).max(1)), mean(distances[:, 0])

    line, pictures, notes = "{:28}{:>16}{:>14}{:>14}{:>14}", {}, []
    print(line.format("", "log p(x)", "log p(x | z)", "confidence", "nearest"))
    print(line.format("held-out images", "", "", *judge(grey.test.head(len(start)).x / white)))
    for arm in (Autoencoder, NoiselessVAE, pyrovae.VAE):
        run = pyrovae.fit(make(arm, data.x_shape), data, epochs=epochs, progress=False)
        try:
            evidence = mean(run.evaluate(num_samples=500, limit=1000).log_evidence)
        except pyrovae.InputError as error:
            notes, evidence = [*notes, f"{arm.__name__}: {error.cause}"], "none"
        likelihood = f"{run.metrics[-1]['log_likelihood']:.2f}"  # of the validation images
        print(line.format(arm.__name__, evidence, likelihood, "", ""))
        for kind, measured, shown in decoded(run.program, train, start, end):
            print(line.format(f"  {kind}", "", "", *judge(measured)))
            pictures[f"{kind}: {arm.__name__}"] = shown
    print(*notes, sep="\n")
    if path:
        rows, x = zip(*sorted(pictures.items()), strict=True)
        Picture(torch.stack(x), grid(torch.stack(x), rows=rows), "").save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist" if "PYROVAE_DATA" in os.environ else "digits")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--smoke-test", action="store_true", help="two epochs, and no picture")
    given = parser.parse_args()
    main() if given.smoke_test else main(given.data, given.epochs, "ae_versus_vae.png")

"""Genes counted in single cells: scvi-tools beside the same model as a Pyro program of ours.

4,186 neurons of C. elegans (sci-RNA-seq), the 1,000 genes that vary most, in three tables. An
epoch: the same networks, those of scVI itself, trained by scvi-tools and by `pyrovae.fit`. The
whole: what each is like once trained, by one measure for all of them, `pyrovae.evaluate`, and how
long that took. And scVI's own `get_marginal_ll` of the same weights, so that the measure may be
believed.

    python benchmarks/single_cells.py [--only epoch]
"""

import time
from functools import partial

import numpy as np
import pyro
import torch
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from timing import SEED, lines_of, measure, number, parse, parser, provenance, publish, table
from torch import nn

import pyrovae
from pyrovae.data.raw import data_folder
from pyrovae.networks import Log1p

FILE, GENES = "scrna_worm_neuron_4186x13488.npz", 1000
SECTIONS = ("epoch", "whole")
SAMPLES = 200
# After so many epochs without a better ELBO of validation both stop: the default of scvi-tools.
PATIENCE = 45
# That of scvi-tools, too.
adam = partial(torch.optim.Adam, lr=1e-3, eps=0.01, weight_decay=1e-6)


class Cells:
    """The counts, in the order training, validation, test."""

    def __init__(self, limit=None):
        file = np.load(data_folder(None) / FILE)
        order = np.random.default_rng(SEED).permutation(len(file["labels"]))[:limit]
        parts = file["data"].astype(np.float32), file["indices"].astype(int), file["indptr"]
        x = torch.tensor(csr_matrix(parts, file["shape"])[order].toarray())
        self.tenth = len(x) // 10
        spread = x[: -2 * self.tenth].log1p().var(0)
        self.x, self.labels = x[:, spread.topk(GENES).indices], file["labels"][order]
        self.train, self.valid, self.test = self.x.split(
            [len(x) - 2 * self.tenth, self.tenth, self.tenth]
        )
        self.shares = (len(self.train) / len(x), len(self.valid) / len(x))


class OfParts(nn.Module):
    """scVI's model, of our parts."""

    def __init__(self, latents, hidden=128):
        super().__init__()
        net = partial(pyrovae.MLP, hidden=(hidden,))
        self.prior = pyrovae.StandardNormal(latents)
        self.encoder = pyrovae.GaussianEncoder(Log1p(net((GENES,), (2 * latents,))))
        self.decoder = pyrovae.ZeroInflatedNegativeBinomialDecoder(
            net((latents,), (2 * GENES,)), (GENES,)
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z, size=x.sum(-1)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


# ── An epoch ─────────────────────────────────────────────────────────────────────────────────


def by_scvi(cells, epochs, **plan):
    """A turn of so many epochs and one that is not timed, without what comes before the first."""
    import scvi_vae

    model = scvi_vae.scvi_of(cells.x)

    def turn():
        clock = scvi_vae.Clock()
        scvi_vae.train(model, epochs + 1, cells.shares, clock=clock, plan_kwargs=plan)
        return (clock.times[-1] - clock.times[0]) / epochs

    return turn


def by_fit(cells, epochs, engine):
    import scvi_vae

    program = scvi_vae.Program(scvi_vae.scvi_of(cells.x).module)

    def turn():
        times = []
        pyrovae.fit(
            program,
            cells.train,
            optimizer=adam,
            epochs=epochs + 1,
            engine=engine,
            on_epoch=lambda _: times.append(time.perf_counter()),
            progress=False,
        )
        return (times[-1] - times[0]) / epochs

    return turn


def measure_epoch(given, cells):
    epochs = 1 if given.smoke_test else 10
    contenders = {
        "scvi-tools": partial(by_scvi, cells, epochs),
        "scvi-tools, compile=True": partial(by_scvi, cells, epochs, compile=True),
        **{
            f"pyrovae.fit, {engine}": partial(by_fit, cells, epochs, engine)
            for engine in ("eager", "graph", "inductor")
        },
    }
    found = measure(contenders, given.repeats)
    heading = f"{len(cells.train):,} cells in batches of 128, {given.repeats} turns:"
    return [heading, "", *table(found, "s", baseline="scvi-tools")]


# ── The whole ────────────────────────────────────────────────────────────────────────────────


def trained_by_scvi(cells, epochs, **plan):
    """ScVI once trained, as a program, and how many epochs that took."""
    import scvi_vae

    model = scvi_vae.scvi_of(cells.x)
    clock = scvi_vae.Clock()
    scvi_vae.train(model, epochs, cells.shares, clock=clock, **plan)
    held_out = np.arange(len(cells.x) - len(cells.test), len(cells.x))
    own = partial(scvi_vae.log_evidence, model, held_out, SAMPLES)
    return scvi_vae.Program(model.module), len(clock.times), own


def trained_by_fit(cells, epochs, make):
    program, ends = make(cells), []
    pyrovae.fit(
        program,
        cells.train,
        valid=cells.valid,
        optimizer=adam,
        epochs=epochs,
        patience=PATIENCE,
        on_epoch=ends.append,
        progress=False,
    )
    return program, len(ends), None


def networks_of_scvi(cells):
    import scvi_vae

    return scvi_vae.Program(scvi_vae.scvi_of(cells.x).module)


def measure_whole(given, cells):
    epochs = 2 if given.smoke_test else 400
    stopped = {"early_stopping": True, "early_stopping_patience": PATIENCE}
    contenders = {
        "scVI, 400 epochs": partial(trained_by_scvi, cells, epochs),
        "scVI, stopped early": partial(trained_by_scvi, cells, epochs, **stopped),
        "scVI, stopped early, no warm-up of the KL": partial(
            trained_by_scvi, cells, epochs, plan_kwargs={"n_epochs_kl_warmup": None}, **stopped
        ),
        "its networks, pyrovae.fit, stopped early": partial(
            trained_by_fit, cells, epochs, networks_of_scvi
        ),
        "parts of pyrovae, stopped early": partial(
            trained_by_fit, cells, epochs, lambda _: OfParts(10)
        ),
    }
    headings = ["", "log p(x)", "against the first", "get_marginal_ll", "ELBO"]
    rows = [[*headings, "Rand index", "epochs", "s"], ["---"] * 8]
    first = None
    for name, train in contenders.items():
        pyro.set_rng_seed(SEED)
        start = time.perf_counter()
        program, taken, own = train()
        seconds = time.perf_counter() - start
        program.eval()
        found = pyrovae.evaluate(program, cells.test, num_samples=SAMPLES)
        codes = pyrovae.evaluate(program, cells.x, num_samples=2).latent_means["z"]
        groups = KMeans(10, n_init=10, random_state=SEED).fit_predict(codes.cpu())
        first = found.log_evidence if first is None else first
        paired = found.log_evidence - first
        error = paired.std() / len(paired) ** 0.5
        rows.append(
            [
                name,
                f"{found.log_evidence.mean():.2f}",
                "" if first is found.log_evidence else f"{paired.mean():+.2f} +- {error:.2f}",
                "" if own is None else f"{float(own().mean()):.2f}",
                f"{found.elbo.mean():.2f}",
                f"{adjusted_rand_score(cells.labels, groups):.2f}",
                str(taken),
                number(seconds),
            ]
        )
    heading = (
        f"{len(cells.test)} cells held out, {SAMPLES} samples each, nats per cell given its total:"
    )
    return [heading, "", *lines_of(rows)]


def main():
    options = parser(__doc__, repeats=5)
    options.add_argument("--only", choices=SECTIONS, help="one section")
    given = parse(options)
    cells = Cells(300 if given.smoke_test else None)
    for section, measured in zip(SECTIONS, (measure_epoch, measure_whole), strict=True):
        if given.only in (None, section):
            lines = [*measured(given, cells), "", provenance(given, "single_cells.py")]
            publish(f"single cells, {section}", lines, given.out)


if __name__ == "__main__":
    main()

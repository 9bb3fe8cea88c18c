"""One decoder, one budget, five priors: log p(x) of dynamic MNIST, and what a step costs.

Every arm has the networks 784-400-40-400-784, Adam, the same batches, steps and warm-up, and is
evaluated on the same test images with the same noise. The difference to the standard normal is
paired over these images. Steps are timed by the protocol of `timing.py`, on one batch of 128:
the same program under Pyro's `SVI` and under `CompiledSVI`; the same parts without Pyro's
handlers, their loss compiled by `torch.compile`; and NumPyro's jitted scan, for all priors but
the splines, which it does not have.

    python benchmarks/priors.py [--only quality|speed] [--epochs 40] [--repeats 9] [--out FILE]
        [--short README.md]

It needs MNIST in $PYROVAE_DATA.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from timing import (
    SEED,
    NotMeasured,
    each,
    lines_of,
    measure,
    median,
    parse,
    parser,
    provenance,
    publish,
    steps_of,
    table,
    turn_of,
)

import pyrovae
from pyrovae.schedules import cosine

LATENTS, HIDDEN, BATCH, RATE = 40, (400,), 128, 1e-3
SAMPLES, IMAGES = 1000, 1000

# What stands behind `prior=` in the call of VAE, for each row.
PRIORS = {
    "standard normal": "pyrovae.StandardNormal(40)",
    "mixture of 100 Gaussians": "pyrovae.GaussianMixture(40, components=100)",
    "VampPrior of 500 pseudo-inputs": "pyrovae.VampPrior(encoder, x.shape[1:]).start_at(x)",
    "RealNVP": "pyrovae.RealNVPPrior(40)",
    "neural spline flow": "pyrovae.SplineFlowPrior(40)",
}


def build(line, x):
    """The VAE with one of the priors, for x or for data that x is a part of."""
    torch.manual_seed(SEED)
    x_shape = tuple(x.shape[1:])
    decoder = pyrovae.BernoulliDecoder(pyrovae.MLP((LATENTS,), x_shape, hidden=HIDDEN))
    encoder = pyrovae.GaussianEncoder(pyrovae.MLP(x_shape, (2 * LATENTS,), hidden=HIDDEN))
    names = {"pyrovae": pyrovae, "encoder": encoder, "x": x}
    return pyrovae.VAE(prior=eval(line, names), decoder=decoder, encoder=encoder)


# ── How good ─────────────────────────────────────────────────────────────────────────────────


def quality(given):
    data = pyrovae.load_data("digits" if given.smoke_test else "mnist")
    epochs = 1 if given.smoke_test else given.epochs
    samples = 10 if given.smoke_test else SAMPLES
    steps = epochs * -(-len(data.train) // BATCH)
    head = ["prior", "log p(x), nats", "against the first", "what changed", "ELBO", "active units"]
    rows, base = [head, ["---"] * len(head)], None
    x = data.train.head(10_000).x
    for name, line in PRIORS.items():
        run = pyrovae.fit(
            build(line, x),
            data,
            optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True),
            epochs=epochs,
            batch_size=BATCH,
            kl_warmup=epochs / 10,
            lr_schedule=cosine(1.0, 0.0, steps),
            seed=SEED,
            progress=False,
        )
        found = run.evaluate(num_samples=samples, limit=IMAGES)
        base = found.log_evidence if base is None else base
        gain = found.log_evidence - base
        error = gain.std().item() / len(gain) ** 0.5
        row = [
            name,
            f"{found.log_evidence.mean():.2f}",
            f"{gain.mean():+.2f} +- {error:.2f}" if gain.any() else "",
            f"`prior={line.replace('pyrovae.', '')}`",
            f"{found.elbo.mean():.2f}",
            f"{found.active_units}",
        ]
        rows.append(row)
        print(*lines_of([row]), file=sys.stderr, flush=True)
    about = (
        f"{epochs} epochs, {len(found.elbo):,} test images, {samples:,} importance samples each:"
    )
    return [about, "", *lines_of(rows)], lines_of([row[:4] for row in rows])


# ── How fast ─────────────────────────────────────────────────────────────────────────────────


def by_svi(vae, x):
    return steps_of(SVI(vae.model, vae.guide, Adam({"lr": RATE}), Trace_ELBO()), x)


def by_compiled_svi(vae, x):
    svi = pyrovae.CompiledSVI(
        vae.model, vae.guide, Adam({"lr": RATE}), Trace_ELBO(), engine="inductor"
    )
    return steps_of(svi, x, engine="inductor")


def by_hand(vae, x):
    optimizer = torch.optim.Adam(vae.parameters(), lr=RATE, fused=True)

    def negative_elbo(x):
        q = vae.encoder(x)
        z = q.rsample()
        return -(vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)).sum()

    loss = torch.compile(negative_elbo, dynamic=False)

    def step():
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return each(step)


def by_numpyro(name, x):
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))
    import numpyro_priors

    if name not in numpyro_priors.PRIORS:
        raise NotMeasured("NumPyro has no such transform")
    return numpyro_priors.steps(name, x.flatten(1).numpy(), RATE, SEED)


def contenders_of(name, line, examples):
    """What builds the steps of each contender, for one prior."""
    x = examples[:BATCH]
    return {
        "Pyro SVI": lambda: by_svi(build(line, examples), x),
        "the parts without Pyro, torch.compile": lambda: by_hand(build(line, examples), x),
        "NumPyro SVI, jitted scan": lambda: by_numpyro(name, x),
        "CompiledSVI": lambda: by_compiled_svi(build(line, examples), x),
    }


def speed(given):
    examples = (torch.rand(500, 1, 28, 28) < 0.5).float()
    count = 2 if given.smoke_test else 60
    lines, rows = [], []
    for name, line in PRIORS.items():
        made = contenders_of(name, line, examples)
        turns = {n: (lambda make=make: turn_of(make(), count)) for n, make in made.items()}
        found = measure(turns, given.repeats)
        lines += ["", f"{name}:", "", *table(found, "ms", baseline="Pyro SVI")]
        rows.append([name, *(median(seconds, "ms") for seconds in found.values())])
    head = ["prior", *made]
    return lines[1:], lines_of([head, ["---"] * len(head), *rows])


# What makes the lines of each section, and those of a shorter one.
SECTIONS = {"quality": quality, "speed": speed}


def main():
    options = parser(__doc__, repeats=9)
    options.add_argument("--only", choices=SECTIONS, help="one section")
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--short", type=Path, help="a Markdown file for a short table of each")
    given = parse(options)
    for section in [given.only] if given.only else SECTIONS:
        lines, short = SECTIONS[section](given)
        ran = provenance(given, f"priors.py --only {section}")
        publish(f"priors {section}", [*lines, "", ran], given.out)
        if given.short is not None:
            publish(f"priors {section}", [*short, "", ran], given.short)


if __name__ == "__main__":
    main()

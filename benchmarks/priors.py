"""One decoder, one budget, five priors: log p(x) of dynamic MNIST, and what a step costs.

Every arm has the networks 784-400-40-400-784, Adam, the same batches, steps and warm-up, and is
evaluated on the same test images with the same noise. The difference to the standard normal is
paired over these images. Steps are timed by the protocol of `timing.py`, on one batch of 128:
the same program under Pyro's `SVI` and under `CompiledSVI`; the same parts without Pyro's
handlers, their loss compiled by `torch.compile`; and, for the priors that are written there,
NumPyro's jitted scan.

    python benchmarks/priors.py [--only quality|speed] [--epochs 40] [--repeats 9] [--out FILE]

It needs MNIST in $PYROVAE_DATA.
"""

import os
import sys
import time
from functools import partial

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from timing import (
    SEED,
    NotMeasured,
    each,
    measure,
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
    "VampPrior, 500 pseudo-inputs": "pyrovae.VampPrior(encoder, x_shape, components=500)",
    "RealNVP": "pyrovae.RealNVPPrior(40)",
    "neural spline flow": "pyrovae.SplineFlowPrior(40)",
}


def build(line, x_shape):
    torch.manual_seed(SEED)
    decoder = pyrovae.BernoulliDecoder(pyrovae.MLP((LATENTS,), x_shape, hidden=HIDDEN))
    encoder = pyrovae.GaussianEncoder(pyrovae.MLP(x_shape, (2 * LATENTS,), hidden=HIDDEN))
    names = {"pyrovae": pyrovae, "encoder": encoder, "x_shape": x_shape}
    return pyrovae.VAE(prior=eval(line, names), decoder=decoder, encoder=encoder)


# ── How good ─────────────────────────────────────────────────────────────────────────────────


def quality(given):
    data = pyrovae.load_data("digits" if given.smoke_test else "mnist")
    epochs = 1 if given.smoke_test else given.epochs
    samples = 10 if given.smoke_test else SAMPLES
    steps = epochs * -(-len(data.train) // BATCH)
    rows, base = [], None
    for name, line in PRIORS.items():
        start = time.perf_counter()
        run = pyrovae.fit(
            build(line, data.x_shape),
            data,
            optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True),
            epochs=epochs,
            batch_size=BATCH,
            kl_warmup=epochs / 10,
            lr_schedule=cosine(1.0, 0.0, steps),
            seed=SEED,
            progress=False,
        )
        seconds = time.perf_counter() - start
        found = run.evaluate(num_samples=samples, limit=IMAGES)
        base = found.log_evidence if base is None else base
        gain = found.log_evidence - base
        error = gain.std().item() / len(gain) ** 0.5
        against = f"{gain.mean():+.2f} +- {error:.2f}" if gain.any() else ""
        shown = line.replace("pyrovae.", "")
        row = f"| {name} | {found.log_evidence.mean():.2f} | {against} | `prior={shown}` | "
        rows.append(row + f"{found.elbo.mean():.2f} | {found.active_units} | {seconds:.0f} s |")
        print(rows[-1], file=sys.stderr, flush=True)
    head = (
        "| prior | log p(x), nats | against the first | what changed | ELBO | active units | "
        "training |"
    )
    return [
        f"{epochs} epochs, {len(found.elbo):,} test images, {samples:,} importance samples each:",
        "",
        head,
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


# ── How fast ─────────────────────────────────────────────────────────────────────────────────


def by_svi(line, x):
    vae = build(line, tuple(x.shape[1:]))
    return steps_of(SVI(vae.model, vae.guide, Adam({"lr": RATE}), Trace_ELBO()), x)


def by_compiled_svi(line, x):
    vae = build(line, tuple(x.shape[1:]))
    svi = pyrovae.CompiledSVI(
        vae.model, vae.guide, Adam({"lr": RATE}), Trace_ELBO(), engine="inductor"
    )
    return steps_of(svi, x, engine="inductor")


def by_hand(line, x):
    vae = build(line, tuple(x.shape[1:]))
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
    if name not in ("standard normal", "mixture of 100 Gaussians"):
        raise NotMeasured("not written for NumPyro")
    import numpyro_priors

    return numpyro_priors.steps(name, x.flatten(1).numpy(), RATE, SEED)


def speed(given):
    x = (torch.rand(8 if given.smoke_test else BATCH, 1, 28, 28) < 0.5).float()
    count = 2 if given.smoke_test else 60
    lines = []
    for name, line in PRIORS.items():
        contenders = {
            "Pyro SVI": partial(by_svi, line, x),
            "the parts without Pyro, torch.compile": partial(by_hand, line, x),
            "NumPyro SVI, jitted scan": partial(by_numpyro, name, x),
            "CompiledSVI": partial(by_compiled_svi, line, x),
        }
        turns = {n: (lambda make=make: turn_of(make(), count)) for n, make in contenders.items()}
        found = measure(turns, given.repeats)
        lines += [f"{name}:", "", *table(found, "ms", baseline="Pyro SVI"), ""]
    return lines


SECTIONS = {"quality": quality, "speed": speed}


def main():
    options = parser(__doc__, repeats=9)
    options.add_argument("--only", choices=SECTIONS, help="one section")
    options.add_argument("--epochs", type=int, default=40)
    given = parse(options)
    for section in [given.only] if given.only else SECTIONS:
        lines = SECTIONS[section](given)
        script = f"priors.py --only {section}"
        publish(f"priors {section}", [*lines, provenance(given, script, "cpu")], given.out)


if __name__ == "__main__":
    main()

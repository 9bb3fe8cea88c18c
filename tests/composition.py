"""Every prior with every posterior and every likelihood: what fits trains; else it is said why.

python tests/composition.py [--write docs/composition.md] [--jobs 2]

A triple is built from the words that the command line has for its parts, and takes 20 steps on
64 examples: under Pyro's `SVI` and under `CompiledSVI`, whose losses must agree. Then it is
evaluated, sampled from, saved, and loaded. The bound must have risen.
"""

import argparse
import itertools
import math
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from safetensors.torch import load, save

from pyrovae import CompiledSVI, generation
from pyrovae.building import Choice, build_vae, values_of
from pyrovae.catalogue import entries
from pyrovae.data import AsIs, Batch, load_data
from pyrovae.data.tables import Column
from pyrovae.devices import describe_environment
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.parts import from_config, to_config
from pyrovae.preparation import check_program

EXAMPLES, STEPS, LATENT_DIM = 80, 20, 4
PARTICLES = (1, 4)
SANK = "the bound did not rise"
# Options that make a part small, or fit it to four latents.
OPTIONS = {
    ("prior", "categorical"): {"classes": 2},
    ("prior", "relaxed-categorical"): {"classes": 2},
    ("prior", "vamp"): {"components": 5},
    ("encoder", "categorical"): {"classes": 2},
    ("encoder", "relaxed-categorical"): {"classes": 2},
    ("encoder", "straight-through-categorical"): {"classes": 2},
    ("encoder", "low-rank-gaussian"): {"rank": 2},
    ("decoder", "discretized-logistic-mixture"): {"components": 3},
    ("decoder", "pixel-cnn"): {"features": 8, "layers": 1, "kernel": 3},
    ("decoder", "recurrent-text"): {"embedding": 4, "hidden": 8},
}


def factors(rng):
    """Two causes of six values each."""
    return rng.normal(size=(EXAMPLES, 2)) @ rng.normal(size=(2, 6))


# What each kind of values looks like, as `pyrovae.decoders` names them.
MAKE = {
    "binary": lambda rng: factors(rng) > 0,
    "unit": lambda rng: 0.01 + 0.98 / (1 + np.exp(-factors(rng))),
    "real": factors,
    "levels": lambda rng: np.clip(np.round(2 + factors(rng)), 0, 4),
    "counts": lambda rng: rng.poisson(np.exp(1 + factors(rng) / 3)),
    # Three columns of numbers, and three of codes.
    "columns": lambda rng: np.where(np.arange(6) < 3, x := factors(rng), np.clip(x.round(), 0, 2)),
    "symbols": lambda rng: (factors(rng) > 0) + (factors(rng) > 1),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a triple.

    Attributes:
        triple: The words of prior, encoder and decoder.
        refused: The sentence it was refused with before the first step, or None.
        before: The bound before the first step, in nats per example.
        after: The bound after the last one.
        apart: The largest relative difference of a loss under Pyro and compiled; in float64
            where that in float32 is more than 1e-3.
        fault: What went wrong, or None.
    """

    triple: tuple[str, str, str]
    refused: str | None = None
    before: float = math.nan
    after: float = math.nan
    apart: float = math.nan
    fault: str | None = None


def triples():
    """All of them."""
    return list(itertools.product(*(entries(kind) for kind in ("prior", "encoder", "decoder"))))


def data_for(decoder):
    x = MAKE[values_of(decoder)](np.random.default_rng(0)).astype(np.float32)
    images = decoder.name == "pixel-cnn"
    data = load_data(x.reshape(EXAMPLES, 2, 3) if images else x, preprocessing=AsIs())
    if values_of(decoder) != "columns":
        return data
    return replace(
        data, values="columns", columns=[Column(str(i), "abc"[: 3 * (i > 2)]) for i in range(6)]
    )


def choices(triple):
    kinds = ("prior", "encoder", "decoder")
    return [
        Choice(word, OPTIONS.get((kind, word), {}))
        for kind, word in zip(kinds, triple, strict=True)
    ]


def build(triple, data):
    torch.manual_seed(0)
    prior, encoder, decoder = choices(triple)
    return build_vae(
        data, prior=prior, encoder=encoder, decoder=decoder, hidden=8, latent_dim=LATENT_DIM
    )


def train(vae, x, make, particles):
    """The loss of each step."""
    svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO(particles))
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        losses.append(float(svi.step(x)))
    return losses


def train_both(stock, compiled, x, particles):
    """Pyro's losses, and the largest relative difference of a compiled one."""
    with warnings.catch_warnings(action="error"):
        losses = train(stock, x, SVI, particles)
        others = train(compiled, x, partial(CompiledSVI, engine="graph"), particles)
    pyro.clear_param_store()
    return losses, max(abs(a - b) / (abs(a) + 1) for a, b in zip(losses, others, strict=True))


def bound(vae, x):
    return evaluate(vae, x, num_samples=20).elbo.mean().item()


def attempt(triple):
    """Takes a triple through all of it: by one particle, and by more where its bound sinks."""
    # A graph is as long as its particles are many, and by one most bounds rise as well.
    outcomes = (attempt_by(particles, triple) for particles in PARTICLES)
    return next((o for o in outcomes if o.fault != SANK), Outcome(triple, fault=SANK))


def attempt_by(particles, triple):
    """Takes a triple through all of it."""
    data = data_for(choices(triple)[2])
    x = data.train.head(EXAMPLES).x
    try:
        vae = build(triple, data)
        check_program(vae, data.splits)
    except InputError as error:
        return Outcome(triple, refused=error.cause)

    before = bound(vae, x)
    losses, apart = train_both(build(triple, data), vae, x, particles)
    if apart > 1e-3:
        # Rounding, which training may amplify, or an error: float64 tells which.
        twins = [build(triple, data).double() for _ in range(2)]
        _, apart = train_both(*twins, x.double(), particles)
    after = bound(vae, x)

    again = from_config(to_config(vae))
    again.load_state_dict(load(save({k: v.clone() for k, v in vae.state_dict().items()})))
    drawn = generation.sample(vae, Batch(x), 3).x
    fault = None
    if not all(map(math.isfinite, (before, after, *losses))):
        fault = "a bound is not finite"
    elif apart > 1e-3:
        fault = "compiled steps are others than Pyro's"
    elif after <= before:
        fault = SANK
    elif bound(again, x) != after:
        fault = "what is loaded is other than what was saved"
    elif drawn.shape[1:] != x.shape[1:]:
        fault = "samples are of another shape"
    return Outcome(triple, None, before, after, apart, fault)


# ── The table ────────────────────────────────────────────────────────────────────────────────


def outcome_of(triple):
    """What became of a triple, whatever it was."""
    try:
        return attempt(triple)
    except Exception as error:  # one that fails is no reason to hear nothing of the others
        return Outcome(triple, fault=f"{type(error).__name__}: {str(error).splitlines()[0]}")


def attempt_all(jobs):
    """The outcomes of all triples, in as many processes."""
    found, start = [], perf_counter()
    with ProcessPoolExecutor(jobs, initializer=partial(torch.set_num_threads, 1)) as pool:
        for outcome in pool.map(outcome_of, triples(), chunksize=8):
            found.append(outcome)
            if len(found) % 50 == 0:
                print(f"{len(found)} in {perf_counter() - start:.0f} s", file=sys.stderr)
    return found


def made():
    """When and where the page is made."""
    hardware = describe_environment(torch.device("cpu"))["hardware"]
    return f"Made on {datetime.now():%Y-%m-%d}: {hardware}, torch {torch.__version__}, seed 0."


def page(found):
    """The Markdown page: for each pair of prior and encoder how many likelihoods train."""
    trained = [outcome for outcome in found if outcome.refused is None]
    faults = [outcome for outcome in trained if outcome.fault]
    decoders = list(entries("decoder"))
    lines = [
        "# What goes with what",
        "",
        f"{len(found):,} triples of prior, encoder and decoder; {len(trained):,} fit, and "
        f"{len(trained) - len(faults):,} of these train {STEPS} steps to a better bound, equal "
        "under Pyro's `SVI` and `CompiledSVI`, are evaluated, sampled, saved and loaded. The "
        "others are refused before the first step. Decoders: " + ", ".join(decoders) + ".",
        "",
        "`python tests/composition.py --write docs/composition.md` remakes this page. A triple "
        f"takes its steps by one particle, and where its bound does not rise by four. {made()}",
        "",
        "## Priors and encoders",
        "",
        "The number of decoders that each pair trains with:",
        "",
        "| | " + " | ".join(entries("encoder")) + " |",
        "|---" * (len(entries("encoder")) + 1) + "|",
    ]
    for prior in entries("prior"):
        counts = [
            sum(o.triple[:2] == (prior, encoder) and o.fault is None for o in trained)
            for encoder in entries("encoder")
        ]
        lines.append(f"| {prior} | " + " | ".join(str(c) if c else "" for c in counts) + " |")
    lines += ["", "## What does not fit, and what is said", "", "| prior, encoder | reason |"]
    lines.append("|---|---|")
    reasons = {o.triple[:2]: o.refused for o in found if o.refused}
    pairs_that_fit = {o.triple[:2] for o in trained}
    for pair, reason in reasons.items():
        if pair not in pairs_that_fit:
            lines.append(f"| {', '.join(pair)} | {reason} |")
    odd = [o for o in found if (o.refused and o.triple[:2] in pairs_that_fit) or o.fault]
    if odd:
        lines += ["", "## Single triples", "", "| triple | what happened |", "|---|---|"]
        lines += [f"| {', '.join(o.triple)} | {o.refused or o.fault} |" for o in odd]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="the Markdown file to write")
    parser.add_argument("--jobs", type=int, default=2, help="the number of processes")
    given = parser.parse_args()
    found = attempt_all(given.jobs)
    text = page(found)
    if given.write:
        given.write.write_text(text)
    print(text)
    sys.exit(any(outcome.fault for outcome in found))


if __name__ == "__main__":
    main()

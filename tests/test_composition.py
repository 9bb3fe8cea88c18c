"""A sample of the grid of `composition.py`: for every part another one that has it."""

import random
import re
from pathlib import Path

import pytest
from composition import attempt

from pyrovae.catalogue import entries

PAGE = Path(__file__).parent.parent / "docs" / "composition.md"


def pairs_that_fit():
    """The pairs of prior and encoder of which the page says that decoders train with them."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in PAGE.read_text().split("## What does not fit")[0].splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    (_, *encoders), *priors = rows
    return {
        (prior, encoder)
        for prior, *counts in priors
        for encoder, count in zip(encoders, counts, strict=True)
        if count
    }


def sample():
    """A triple for every part of every kind, whose parts go together."""
    rng, fit = random.Random(0), sorted(pairs_that_fit())
    chosen = {("standard-normal", "gaussian", word) for word in entries("decoder")}
    for index, kind in enumerate(("prior", "encoder")):
        for word in entries(kind):
            pair = rng.choice([pair for pair in fit if pair[index] == word])
            chosen.add((*pair, "gaussian"))
    return sorted(chosen)


def test_the_page_knows_every_part():
    priors, encoders = (set(words) for words in zip(*pairs_that_fit(), strict=True))
    assert priors == set(entries("prior"))
    assert encoders == set(entries("encoder"))
    said = PAGE.read_text().split("Decoders: ")[1].split(".\n")[0]
    assert said.split(", ") == list(entries("decoder"))


@pytest.mark.filterwarnings("ignore:A VampPrior scores every draw")
@pytest.mark.parametrize("triple", sample(), ids=", ".join)
def test_a_triple_trains(triple):
    outcome = attempt(triple)
    assert outcome.refused is None
    assert outcome.fault is None, outcome


@pytest.mark.parametrize(
    ("triple", "reason"),
    [
        (("standard-normal", "bernoulli", "gaussian"), "Bernoulli .* Normal gives no probability"),
        (("uniform", "gaussian", "bernoulli"), "Normal .* Uniform gives no probability"),
        (("uniform", "relaxed-bernoulli", "gaussian"), "RelaxedBernoulli .* Uniform gives no"),
        (("spherical-uniform", "beta", "beta"), "StretchedBeta .* SphericalUniform gives no"),
        (("exemplar", "iaf", "poisson"), "An ExemplarPrior is of the means"),
        (("vamp", "gaussian", "tabular"), "A VampPrior learns inputs, and categories cannot"),
    ],
)
def test_a_triple_that_does_not_fit_is_refused(triple, reason):
    refused = attempt(triple).refused
    assert refused is not None
    assert refused.endswith(".")
    assert re.search(reason, refused)

"""A sample of the grid of `composition.py`: another one for every part."""

import random

import pytest
from composition import attempt, triples

from pyrovae.catalogue import entries


def sample():
    """A triple for every part of every kind, drawn among those of parts that go together."""
    rng = random.Random(0)
    everything = triples()
    plain = ("standard-normal", "gaussian", "gaussian")
    chosen = set()
    for index, kind in enumerate(("prior", "encoder", "decoder")):
        for word in entries(kind):
            near = [
                t
                for t in everything
                if t[index] == word and sum(a == b for a, b in zip(t, plain, strict=True)) >= 1
            ]
            chosen.add(rng.choice(near))
    return sorted(chosen)


@pytest.mark.parametrize("triple", sample(), ids=", ".join)
def test_a_triple_trains_or_says_why_not(triple):
    outcome = attempt(triple)
    if outcome.refused is None:
        assert outcome.fault is None, outcome
    else:
        assert outcome.refused.endswith(".")

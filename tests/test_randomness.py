"""Every draw is a function of what it is for."""

import math
import random
from itertools import permutations

import numpy as np
import pytest
import torch

from pyrovae.data import Binarize, Dequantize, Examples
from pyrovae.randomness import draw_key, generator, seeded, uniform

KNOWN = 7481661762490812111


def test_keys_are_the_same_in_every_process_and_release():
    assert draw_key(0, "step", 7) == KNOWN


def test_keys_are_63_bits_and_differ_by_every_counter_its_place_and_its_kind():
    counters = [
        *permutations((0, 1, "step")),
        *((0, "step", step) for step in range(1000)),
        *((seed, "step") for seed in range(1000)),
        ("0", "step", 1),
        (0, "step", "1"),
        ("step", 11),
        ("step", 1, 1),
        (),
    ]
    keys = {draw_key(*counter) for counter in counters}
    assert len(keys) == len(set(counters))
    assert all(0 <= key < 2**63 for key in keys)
    assert max(keys) > 2**62


def test_generators_are_those_of_their_key():
    one, two = generator(3, "permutation", 1), generator(3, "permutation", 1)
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=two))
    other = generator(3, "permutation", 2)
    assert not torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=other))


def test_a_seeded_block_draws_the_same_and_is_not_felt_outside():
    draws = []
    for _ in range(2):
        before = torch.get_rng_state()
        with seeded(0, "block", 4):
            draws.append(torch.randn(3))
        assert torch.equal(torch.get_rng_state(), before)
        torch.randn(1)
    assert torch.equal(*draws)


def _draw_and_fail():
    torch.randn(3)
    raise KeyError


def test_a_seeded_block_restores_the_generator_where_it_fails():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(0):
        _draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_blocks_leave_the_other_generators_alone():
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with seeded(0, "block"):
        torch.randn(1)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert random.getstate() == python_state


@pytest.mark.usefixtures("gpu")
def test_a_seeded_block_covers_its_cuda_device():
    device = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(0, "block", device=device):
            draws.append(torch.randn(3, device=device))
    assert torch.equal(*draws)
    assert torch.equal(torch.cuda.get_rng_state(), before)


# ── What the data draw from it ───────────────────────────────────────────────────────────────


def grey(count):
    return torch.randint(0, 256, (count, 1, 3, 5), dtype=torch.uint8)


def rows(examples, **options):
    return torch.cat([raw.rows for raw in examples.shuffled(4, **options)])


def test_the_order_of_an_epoch_is_a_permutation_of_seed_and_epoch():
    examples = Examples(grey(50))
    first = rows(examples, seed=1, epoch=2)
    torch.randn(3)
    assert torch.equal(rows(examples, seed=1, epoch=2), first)
    assert sorted(first.tolist()) == list(range(50))
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}, {"seed": 2, "epoch": 1}):
        assert not torch.equal(rows(examples, **other), first)


@pytest.mark.parametrize("preprocessing", [Binarize("dynamic"), Binarize("static"), Dequantize()])
def test_an_examples_fixed_noise_is_its_own_whatever_the_batch(preprocessing):
    examples = Examples(grey(10), preprocessing=preprocessing)
    whole = torch.cat([batch.x for batch in examples.in_order(10)])
    pieces = torch.cat([batch.x for batch in examples.in_order(3)])
    assert torch.equal(whole, pieces)
    assert torch.equal(examples.head(4).x, whole[:4])


def test_fixed_noise_differs_between_examples_splits_and_seeds():
    raw = torch.full((6, 1, 8, 8), 128, dtype=torch.uint8)

    def fixed(**options):
        return Examples(raw, preprocessing=Dequantize(), **options).head(6).x

    assert len(fixed().flatten(1).unique(dim=0)) == 6
    assert not torch.equal(fixed(split="train"), fixed(split="test"))
    assert not torch.equal(fixed(seed=0), fixed(seed=1))


def test_a_dynamic_binarisation_is_drawn_anew_and_a_static_one_is_not():
    raw = torch.full((3, 1, 8, 8), 128, dtype=torch.uint8)
    for mode, anew in (("dynamic", True), ("static", False)):
        examples = Examples(raw, preprocessing=Binarize(mode))
        one, two = (examples.prepare(examples.raw([0, 1, 2])).x for _ in range(2))
        assert torch.equal(one, two) != anew


def test_a_static_binarisation_is_that_of_the_reported_numbers():
    examples = Examples(grey(7), preprocessing=Binarize("static"))
    for raw in examples.shuffled(3, seed=0, epoch=0):
        trained = examples.prepare(raw).x
        assert torch.equal(trained, examples.head(7).x[raw.rows])


def test_training_noise_follows_the_seeded_block():
    examples = Examples(grey(4), preprocessing=Dequantize())
    raw = examples.raw([0, 1, 2, 3])
    with seeded(0, "step", 5):
        first = examples.prepare(raw).x
    with seeded(0, "step", 5):
        again = examples.prepare(raw).x
    with seeded(0, "step", 6):
        other = examples.prepare(raw).x
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_uniform_draws_are_uniform():
    torch.manual_seed(0)
    u = uniform((1000, 501), torch.device("cpu")).double()
    assert u.shape == (1000, 501)
    assert 0 <= u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1
    # Moments, and the pairs that come from one draw, within five standard errors.
    size = u.numel()
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / size)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / size)
    low, high = u.flatten().reshape(2, -1) - 0.5
    assert abs((low * high).mean()) < 5 / 12 / math.sqrt(size / 2)
    for half in (low, high):
        assert abs(half.mean()) < 5 * math.sqrt(1 / 6 / size)
    counts = torch.histc(u, 100, 0, 1)
    chi_square = ((counts - size / 100) ** 2 / (size / 100)).sum()
    assert chi_square < 99 + 5 * math.sqrt(2 * 99)


def test_uniform_draws_never_reach_one(monkeypatch):
    # The largest halves, which are rounded up, and the smallest.
    bits = torch.tensor([0x7FFFFFFF_7FFFFFFF, 0x00000000_80000000])
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, *_: bits)
    found = uniform((4,), torch.device("cpu"))
    assert found.tolist() == [1 - 2**-24, 0.0, 1 - 2**-24, 0.0]


def test_uniform_draws_follow_the_seed():
    torch.manual_seed(3)
    first = uniform((3, 5), torch.device("cpu"))
    torch.manual_seed(3)
    assert torch.equal(first, uniform((3, 5), torch.device("cpu")))
    assert not torch.equal(first, uniform((3, 5), torch.device("cpu")))

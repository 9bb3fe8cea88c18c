"""Data sets of torch's, in memory or streamed, and those of a DataLoader."""

import random

import numpy as np
import pytest
import torch
from programs_for_tests import small_vae
from torch.utils.data import Dataset

import pyrovae
from pyrovae.data import Examples, load_data
from pyrovae.errors import InputError


class Noisy(Dataset):
    """Items that draw from all three global generators."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        noise = [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002
        return torch.tensor([float(index), *noise]), index


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_streamed_dataset_draws_the_same_noise_for_any_number_of_workers(num_workers):
    before = torch.get_rng_state()
    train = Examples(Noisy(), num_workers=num_workers)
    batches = list(train.shuffled(5, seed=3, epoch=1))
    expected = torch.stack([Examples(Noisy()).raw([i]).x[0] for i in batches[0].rows.tolist()])

    assert [len(batch.x) for batch in batches] == [5, 5, 5, 5, 3]
    for batch in batches:
        assert torch.equal(batch.x[:, 0].long(), batch.rows)
        assert torch.equal(batch.y, batch.rows)
    noise = torch.cat([batch.x for batch in batches])[:, 1:]
    assert len(noise.flatten().unique()) == noise.numel()
    again = list(Examples(Noisy(), num_workers=0).shuffled(5, seed=3, epoch=1))
    assert torch.equal(noise, torch.cat([batch.x for batch in again])[:, 1:])
    assert not torch.equal(expected[:, 1:], batches[0].x[:, 1:])
    assert torch.equal(before, torch.get_rng_state())


def test_a_dataset_that_fits_is_read_into_memory_and_one_that_does_not_streams(monkeypatch):
    assert not load_data(Noisy()).train.streams
    monkeypatch.setattr("pyrovae.data.given.MEMORY_LIMIT", 0)
    data = load_data(Noisy())
    assert data.train.streams
    assert len(data.train) + len(data.valid) + len(data.test) == 23


class HalfLabelled(Dataset):
    """Of the items from a place on, none has a label."""

    def __init__(self, place):
        self.place = place

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.zeros(2), index if index < self.place else None


class Growing(Dataset):
    """Items of several shapes."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.zeros(2 + index // 3), index


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("dataset", "cause"),
    [
        (HalfLabelled(2), "Some items of the Dataset have a label"),
        (HalfLabelled(4), "Some items of the Dataset have a label"),
        (Growing(), r"Items of the Dataset are of several shapes, \[\(2,\), \(3,\)\]"),
    ],
)
def test_items_that_cannot_be_put_together_are_refused(dataset, cause, num_workers):
    """In one sentence also where a worker found it, without the worker's traceback."""
    examples = Examples(dataset, num_workers=num_workers)
    with pytest.raises(InputError, match=f"^{cause}") as caught:
        list(examples.in_order(4))
    assert "Traceback" not in str(caught.value)


def test_a_dataset_of_single_tensors_or_of_no_tensors():
    items = torch.utils.data.TensorDataset(torch.rand(30, 4))
    assert load_data(items).train.y is None

    class Pictures(Noisy):
        def __getitem__(self, index):
            return object(), 0

    with pytest.raises(InputError, match="ToTensor"):
        load_data(Pictures())
    with pytest.raises(InputError, match="own labels"):
        load_data(items, np.zeros(30, int))


# ── DataLoaders ──────────────────────────────────────────────────────────────────────────────


def loader(**told):
    x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)).round()
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), **told)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_is_trained_on_as_its_data_set_is(shuffle):
    given = loader(batch_size=7, shuffle=shuffle)
    runs = [
        pyrovae.fit(small_vae((4,)), data, epochs=1, progress=False, **told)
        for data, told in ((given, {}), (given.dataset, {"batch_size": 7}))
    ]
    assert [run.config["training"]["batch_size"] for run in runs] == [7, 7]
    assert [run.metrics[0]["step"] for run in runs] == [5, 5]
    assert runs[0].metrics[0]["loss"] == runs[1].metrics[0]["loss"]
    assert len(pyrovae.load_data(given).train) == 24


def test_the_size_of_batches_that_is_told_counts():
    given = loader(batch_size=7)
    run = pyrovae.fit(small_vae((4,)), given, epochs=1, batch_size=10, progress=False)
    assert run.metrics[0]["step"] == 3
    run = pyrovae.fit(small_vae((4,)), given.dataset, epochs=1, progress=False)
    assert run.config["training"]["batch_size"] == 128


@pytest.mark.parametrize(
    ("told", "cause"),
    [
        ({"sampler": torch.utils.data.SubsetRandomSampler([1, 2])}, "SubsetRandomSampler"),
        (
            {"sampler": torch.utils.data.RandomSampler(range(30), replacement=True)},
            "picks its items by a RandomSampler",
        ),
        (
            {"sampler": torch.utils.data.RandomSampler(range(30), num_samples=9)},
            "picks its items by a RandomSampler",
        ),
        ({"batch_sampler": [[0, 1], [2]]}, "picks its items by a list"),
        ({"collate_fn": lambda items: items}, "collate_fn"),
    ],
)
def test_a_loader_with_ways_of_its_own_is_refused(told, cause):
    with pytest.raises(InputError, match=cause):
        pyrovae.fit(small_vae((4,)), loader(**told), epochs=1, progress=False)


def test_a_data_set_without_indices_is_refused():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield torch.zeros(4)

    for given in (Endless(), torch.utils.data.DataLoader(Endless())):
        for take in (pyrovae.load_data, lambda x: pyrovae.fit(small_vae((4,)), x)):
            with pytest.raises(InputError, match="no length"):
                take(given)

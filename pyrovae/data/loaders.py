"""A `DataLoader` as a user gives one: its data set, of which batches are made anew."""

__all__ = ["batch_size_of", "dataset_of"]

from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from torch.utils.data.dataloader import default_collate

from pyrovae.errors import InputError


def dataset_of(given: Any) -> Any:
    """The `Dataset` of a `DataLoader`; anything else as it is.

    Its order and its batches are made anew, as functions of the seed, so that every item is
    visited once an epoch, also those that `drop_last` would leave out.

    Raises:
        InputError: If it picks its items, or puts them together, in a way that would be lost; or
            if the items have no indices.
    """
    dataset = given.dataset if isinstance(given, DataLoader) else given
    if isinstance(dataset, IterableDataset):
        raise InputError("An IterableDataset has no length.", "Give a Dataset with indices.")
    if isinstance(given, DataLoader):
        _check_is_plain(given)
    return dataset


def _check_is_plain(given: "DataLoader[Any]") -> None:
    sampler = given.sampler
    visits_all = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(given.dataset)  # pyright: ignore[reportArgumentType]
    )
    if not visits_all or type(given.batch_sampler) not in (BatchSampler, type(None)):
        picks = sampler if not visits_all else given.batch_sampler
        raise InputError(
            f"The DataLoader picks its items by a {type(picks).__name__}, and every example is to "
            "be visited once an epoch.",
            "Give a Dataset of the items that are meant, such as torch.utils.data.Subset.",
        )
    if given.batch_size is not None and given.collate_fn is not default_collate:
        raise InputError(
            "The DataLoader puts its items together by a collate_fn of its own, which would not "
            "be called.",
            "Let the items of the Dataset be what the program is to see.",
        )


def batch_size_of(given: Any) -> int | None:
    """How many items a `DataLoader` takes at a time; None of anything else."""
    return given.batch_size if isinstance(given, DataLoader) else None

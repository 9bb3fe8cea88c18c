"""The items of a `Dataset`: each drawn by a seed, and put together, in any number of workers."""

__all__ = ["Item", "batches_of", "items_of"]

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrovae.errors import InputError, shorten
from pyrovae.randomness import draw_key, generator, seeded

Item = tuple[Tensor, Tensor | None]


def items_of(dataset: "Dataset[Any]", rows: Sequence[int], *, seed: int, epoch: int = 0) -> Item:
    """Some items put together: x of shape (N, x), and labels (N,) where they have some.

    Args:
        dataset: Of x or of (x, y).
        rows: Which items.
        seed: It keys, with the epoch and the item's index, whatever an item draws.
        epoch: The epoch.

    Raises:
        InputError: If an item is no tensor or array, they are of several shapes, or some alone
            have a label.
    """
    return _together(_Seeded(dataset, seed, epoch)[row] for row in rows)


def batches_of(
    dataset: "Dataset[Any]",
    groups: Sequence[Tensor],
    *,
    seed: int,
    epoch: int,
    num_workers: int,
) -> Iterator[Item]:
    """`items_of` every group of rows, read ahead by workers.

    Raises:
        InputError: As `items_of`, or if the items of some groups alone have labels.
    """
    loader = DataLoader(
        _Seeded(dataset, seed, epoch),
        batch_sampler=[rows.tolist() for rows in groups],
        num_workers=num_workers,
        collate_fn=_as_it_is,
        # Its workers' base seed would otherwise be drawn from the global generator.
        generator=generator(seed, "loader", epoch),
    )
    labelled: bool | None = None
    for found in loader:
        if isinstance(found, InputError):
            raise found
        if labelled not in (None, found[1] is not None):
            raise _partly_labelled()
        labelled = found[1] is not None
        yield found


class _Seeded(Dataset[Item]):
    """A data set whose items draw their noise from (seed, epoch, index), in any process."""

    def __init__(self, dataset: "Dataset[Any]", seed: int, epoch: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = epoch

    def __getitem__(self, index: int) -> Item:
        key = draw_key(self.seed, "item", self.epoch, index)
        # Users' transforms draw from any of the three global generators.
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            random.seed(key)
            np.random.seed(key % 2**32)  # noqa: NPY002
            with seeded(self.seed, "item", self.epoch, index):
                item = self.dataset[index]
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002

        x, y, *_ = (*item, None) if isinstance(item, tuple | list) else (item, None)
        try:
            return torch.as_tensor(x), None if y is None else torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"Item {index} of the Dataset is no tensor or array ({type(x).__name__}).",
                "Make it one, for example with torchvision.transforms.ToTensor.",
            ) from error

    def __getitems__(self, rows: list[int]) -> Item | InputError:
        """A batch, as a `DataLoader` asks for it, or why there is none.

        What is raised in a worker, a loader raises anew with the worker's traceback in its text.
        """
        try:
            return _together(map(self.__getitem__, rows))
        except InputError as error:
            return error


def _as_it_is(found: Any) -> Any:
    return found


def _together(items: Iterator[Item]) -> Item:
    every = list(items)
    labels = [y for _, y in every if y is not None]
    if labels and len(labels) < len(every):
        raise _partly_labelled()
    x = _stacked([x for x, _ in every], "Items")
    return x, _stacked(labels, "Labels") if labels else None


def _stacked(values: list[Tensor], what: str) -> Tensor:
    shapes = {tuple(value.shape): None for value in values}
    if len(shapes) > 1:
        raise InputError(
            f"{what} of the Dataset are of several shapes, {shorten([*shapes])}.",
            "Make them of one, by cropping, scaling or padding; sequences of several lengths can "
            "be given as a list of tensors.",
        )
    return torch.stack(values)


def _partly_labelled() -> InputError:
    return InputError(
        "Some items of the Dataset have a label, and others none.",
        "Give each item one, or none of them.",
    )

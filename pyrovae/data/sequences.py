"""Sequences of several lengths as one array."""

__all__ = ["is_ragged", "pad_sequences"]

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import InputError


def pad_sequences(
    sequences: "Sequence[Tensor | np.ndarray]", *, length: int | None = None
) -> Tensor:
    r"""Sequences $(T_i, X)$ of several lengths as one tensor $(N, T, X)$, NaN after their ends.

    What comes after an end is missing: `Examples(..., missing=True)` and `load_data(...,
    missing=True, sequences=True)` take it so, a `NanMaskedDecoder` leaves it out of log p(x), and
    a `RecurrentEncoderNet(..., missing=True)` does not read it.

    Args:
        sequences: The sequences, $T_i \ge 1$ steps of X numbers each.
        length: The number T of steps; those of the longest if None.

    Raises:
        InputError: If there is none, one has another shape than the first or no step, or is
            longer than T.

    Example:
        >>> pad_sequences([torch.ones(2, 1), torch.ones(1, 1)])[..., 0]
        tensor([[1., 1.],
                [1., nan]])
    """
    if not len(sequences):
        raise InputError("There is no sequence.", "Give at least one.")
    given = [torch.as_tensor(sequence) for sequence in sequences]
    given = [x if x.is_floating_point() else x.float() for x in given]
    for place, x in enumerate(given):
        if x.dim() != 2 or 0 in x.shape or x.shape[1] != given[0].shape[-1]:
            raise InputError(
                f"Sequence {place} has the shape {tuple(x.shape)}, and the first one "
                f"{tuple(given[0].shape)}.",
                "Give each as (T, X): one step or more of the same X numbers.",
            )
    longest = max(range(len(given)), key=lambda place: len(given[place]))
    steps = len(given[longest]) if length is None else length
    if len(given[longest]) > steps:
        raise InputError(
            f"Sequence {longest} has {len(given[longest])} steps, and {steps} are asked for.",
            "Cut it, or give a larger length.",
        )
    padded = given[0].new_full((len(given), steps, given[0].shape[1]), torch.nan)
    for row, x in zip(padded, given, strict=True):
        row[: len(x)] = x
    return padded


def is_ragged(given: Any) -> TypeGuard[list[Tensor] | list[np.ndarray]]:
    """Whether it is a list of arrays that are not all of one length."""
    if not isinstance(given, list | tuple) or not all(
        isinstance(x, Tensor | np.ndarray) for x in given
    ):
        return False
    return len({x.shape[:1] for x in given}) > 1

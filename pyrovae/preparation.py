"""Preparation: what is checked and made ready before the first step of training."""

__all__ = [
    "PlateSizeWarning",
    "as_splits",
    "check_bound",
    "check_callback",
    "check_config",
    "check_options",
    "check_plate",
    "check_program",
    "check_schedule",
    "describe_data",
    "describe_program",
]

import json
import math
import warnings
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from pyro.infer.util import check_fully_reparametrized

from pyrovae.bounds.base import refusal_of
from pyrovae.checks import as_number, check_finite, check_whole
from pyrovae.data import Batch, Binarize, Data, Examples, Given, as_examples
from pyrovae.data.tables import as_config
from pyrovae.errors import InputError, first_line, shorten
from pyrovae.inspection import FEW, check_parameters, inspect_program
from pyrovae.parts import to_config
from pyrovae.programs import Program, evaluating, sites, trace_pair
from pyrovae.schedules import Schedule
from pyrovae.structure import Structure
from pyrovae.supports import check_support
from pyrovae.svi import Differentiable, Objective
from pyrovae.svi.stepper import LATE_STEPS

COUNTS = ("epochs", "batch_size", "patience")
POSITIVE = ("clip_norm", "lr")
# What torch.manual_seed takes.
MIN_SEED, MAX_SEED = -(2**63), 2**64 - 1
NO_CLIPPING = ("clip_norm", math.inf)


def check_options(*, seed: int = 0, **options: Any) -> None:
    """Refuses options of training that are too small, or no finite or whole numbers.

    Raises:
        InputError: Naming the option.
    """
    check_whole(least=None, seed=seed)
    if not MIN_SEED <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed}, of more than 64 bits.", "Give a smaller number.")
    check_whole(**{name: options.pop(name) for name in COUNTS if name in options})
    for name, value in options.items():
        # An infinite norm is never exceeded, and clips nothing.
        if (name, value) != NO_CLIPPING:
            check_finite(**{name: value}, **{"above" if name in POSITIVE else "least": 0})


def check_schedule(schedule: Schedule | None) -> None:
    """Refuses a schedule of the learning rate that is no function of the step to a factor.

    Raises:
        InputError: If it cannot be called with a step, or gives no finite number of 0 or more.
    """
    if schedule is None:
        return
    remedy = "Give one, as pyrovae.schedules.cosine(1.0, 0.0, steps) makes it."
    if not callable(schedule):
        raise InputError(f"The lr_schedule {schedule!r} is no function of the step.", remedy)
    try:
        first = as_number(schedule(0))
    except TypeError as error:
        raise InputError(
            f"The lr_schedule cannot be called with a step ({first_line(error)}).", remedy
        ) from error
    if not isinstance(first, int | float) or not 0 <= first < math.inf:
        raise InputError(f"The lr_schedule gives {shorten(first)} at step 0.", remedy)


def check_callback(on_epoch: Callable[[Any], object] | None) -> None:
    """Refuses what cannot be called with a run, before an epoch has been trained.

    Raises:
        InputError: If it is no function, or takes another number of arguments.
    """
    if on_epoch is None:
        return
    remedy = "Give a function of the run, such as pyrovae.TensorBoard()."
    if not callable(on_epoch):
        raise InputError(f"on_epoch is {shorten(on_epoch)}, and no function.", remedy)
    try:
        signature(on_epoch).bind(None)
    except TypeError as error:
        raise InputError(f"on_epoch cannot be called with a run ({error}).", remedy) from error
    except ValueError:
        return  # one that tells nothing of its arguments


def check_config(config: Mapping[str, Any] | None) -> None:
    """Refuses a record of a run that cannot be written beside it.

    Raises:
        InputError: If it is no dictionary, or holds what JSON has no words for.
    """
    if config is None:
        return
    remedy = "Give a dictionary of numbers, texts, lists and such dictionaries."
    if not isinstance(config, Mapping):
        raise InputError(f"config is {shorten(config)}.", remedy)
    try:
        json.dumps(dict(config))
    except (TypeError, ValueError) as error:
        raise InputError(f"config cannot be written ({first_line(error)}).", remedy) from error


def check_replays(steps: int, engine: str | None) -> None:
    """Refuses steps that cannot be replayed as one.

    Raises:
        InputError: If there are none or too many of them, or the engine replays none.
    """
    if not 1 <= steps <= LATE_STEPS:
        raise InputError(f"steps_per_replay is {steps}.", f"Give 1 to {LATE_STEPS}.")
    if steps > 1 and engine != "cuda-graph":
        raise InputError(
            f"steps_per_replay is {steps}, and only the engine cuda-graph replays steps.",
            "Take that engine, on a GPU, or leave steps_per_replay out.",
        )


class PlateSizeWarning(UserWarning):
    """A plate round shared latents that has another size than the training data."""


def as_splits(
    train: Given, valid: Given | None, test: Given | None, *, dtype: torch.dtype
) -> dict[str, Examples]:
    """The examples under train and, where they are given, valid and test.

    Raises:
        InputError: If data are empty, complex, or hold NaN or infinity.
    """
    if isinstance(train, Data):
        given: dict[str, Given | None] = {**train.splits}
        given |= {
            name: value for name, value in (("valid", valid), ("test", test)) if value is not None
        }
    else:
        given = {"train": train, "valid": valid, "test": test}
    return {
        name: as_examples(value, name, dtype=dtype)
        for name, value in given.items()
        if value is not None or name == "train"
    }


def check_program(program: Program, splits: Mapping[str, Examples]) -> Structure:
    """What a program is, if it can be trained and measured on these examples.

    Raises:
        InputError: If it cannot; see `pyrovae.programs`.
    """
    train = splits["train"]
    # Supports first: the log-probability of a code that is none would fail in words of torch's.
    structure = inspect_program(program, train.head(FEW))
    check_parameters(program, train.head(FEW))
    for name, split in splits.items():
        if split.x_shape != train.x_shape:
            _check_shape(program, name, split, train)
        # Of binary values the first examples show all that there is.
        limit = 1000 if isinstance(split.preprocessing, Binarize) else None
        if not split.streams:
            check_support(program, split.in_order(split.block, limit=limit))
    return structure


def _check_shape(program: Program, name: str, split: Examples, train: Examples) -> None:
    """Refuses examples of another shape than those to train on, unless the program takes both."""
    try:
        inspect_program(program, split.head(FEW))
    except InputError as error:
        raise InputError(
            f"The {name} data are of shape {split.x_shape} each and the train data of "
            f"{train.x_shape}, and the program does not take both.",
            "Give examples of one shape.",
        ) from error


def check_plate(structure: Structure, size: int, batch_size: int, processes: int) -> None:
    """Refuses a plate of the size of a batch round latents that all examples share.

    One of another size that is not that of the training data is warned of.

    Args:
        structure: The structure of the program.
        size: The number of training examples.
        batch_size: How many of them make a step.
        processes: How many processes share a batch.

    Raises:
        InputError: If every batch, or every process, would count their KL.
    """
    if not structure.charged or size <= FEW:
        return  # of so few it is not told whether the plate has the size of a batch
    outside = f"The latent {structure.charged[0]!r} is outside the plate 'data', whose size"
    remedy = f"Give the plate that of the data: pyro.plate('data', {size}, subsample=x)."
    if structure.full_size is None and (processes > 1 or batch_size < size):
        which = "process" if processes > 1 else "batch"
        raise InputError(
            f"{outside} is that of a batch: every {which} would count its KL.", remedy
        )
    if structure.full_size not in (None, size):
        warnings.warn(
            f"{outside} is {structure.full_size:,}, and the training data are {size:,}: its KL "
            f"counts in another proportion than once for all. {remedy}",
            PlateSizeWarning,
            stacklevel=3,
        )


def check_bound(
    program: Program, structure: Structure, bound: ELBO | Differentiable, few: Batch
) -> None:
    """Refuses a bound that cannot be had of a program's draws, by its loss of a few examples.

    Raises:
        InputError: If they carry no gradient and it needs one, its control of the KL needs one
            for each dimension and there is none, or it has no losses that could be watched.
    """
    with (
        evaluating(program),
        torch.enable_grad(),
        warnings.catch_warnings(action="ignore"),
    ):
        if isinstance(bound, TraceMeanField_ELBO):
            _check_closed_kl(program, structure, bound, few)
        try:
            Objective(program, structure, bound)(few.x, few.y)
        except InputError:
            raise
        except Exception:  # of so few examples, maybe: a step will tell, and where
            return


def _check_closed_kl(program: Program, structure: Structure, bound: ELBO, few: Batch) -> None:
    """Says what Pyro does in a first step, or fails of, in a bound's own words and before it."""
    model_trace, guide_trace = trace_pair(program, few)
    guide_trace.compute_score_parts()
    guided = sites(guide_trace, observed=False)
    if left := sorted(sites(model_trace, observed=False).keys() - guided.keys()):
        raise InputError(
            f"{type(bound).__name__} needs a guide of every latent, and {left[0]!r} is drawn by "
            "the model alone.",
            "Take pyro.infer.Trace_ELBO or ELBO (--bound elbo), which do not, or draw it in the "
            "guide.",
        )
    for name, site in guided.items():
        try:
            check_fully_reparametrized(site)
        except NotImplementedError as error:
            shared = name in structure.global_latents
            raise refusal_of(bound, name, shared=shared) from error


def describe_program(program: Program) -> dict[str, Any]:
    """What a run records of its program: how to build it, or its name and why it cannot be."""
    try:
        return to_config(program)
    except InputError as error:
        name = f"{type(program).__module__}.{type(program).__qualname__}"
        return {"class": name, "reason": error.cause}


def describe_data(data: Data | None, splits: Mapping[str, Examples]) -> dict[str, Any]:
    """What a run records of its data: how to load and to recognise them."""
    train = splits["train"]
    return {
        "name": "array" if data is None else data.name,
        "source": None if data is None else data.source,
        "data_dir": None if data is None else data.data_dir,
        "fingerprint": None if data is None else data.fingerprint,
        "sets": sorted(splits),
        "contents": {
            name: {
                "examples": len(split),
                "sha256": split.digest() if data is None else None,
                "labels": split.label_digest(),
            }
            for name, split in splits.items()
        },
        "x_shape": list(train.x_shape),
        "preprocessing": _describe_preprocessing(train),
        "missing": train.missing,
        "images": None if data is None or data.images is None else dict(data.images),
        "columns": None if data is None or data.columns is None else as_config(data.columns),
    }


def _describe_preprocessing(train: Examples) -> Any:
    try:
        return to_config(train.preprocessing)
    except InputError:
        return None

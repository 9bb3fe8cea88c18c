"""Restoring: a run given back from its folder, or from what it was passed on as."""

__all__ = ["from_pretrained", "load"]

import os
from pathlib import Path
from typing import Any

import torch

from pyrovae import checkpoint, hub, pretrained, run_folder, user_programs
from pyrovae.allotment import Allotment
from pyrovae.data import Data, Examples, as_examples, load_data
from pyrovae.devices import describe_environment, resolve_device
from pyrovae.errors import InputError
from pyrovae.inspection import inspect_program
from pyrovae.parts import from_config, why_undescribed
from pyrovae.programs import Program, as_module, dtype_of
from pyrovae.run_folder import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    read_config,
    read_json,
    read_lines,
)
from pyrovae.runs import Run, columns_of
from pyrovae.weights import make_ready


def load(
    path: str | os.PathLike[str],
    *,
    program: Program | str | None = None,
    data: Any = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    trust_source: bool = False,
) -> Run:
    """Gives a trained run back, data splits and all.

    Args:
        path: The run directory, its name under `runs`, or `latest`.
        program: The program, for a run of a class that no configuration can name; its weights
            are replaced by the run's. Or the file it is in, as `my_model.py:build`, for one whose
            file has moved or changed.
        data: The data, for a run on arrays that were passed to Python: the array, or for one
            with labels what `load_data` made of it. They are split and preprocessed as they
            were, and refused if they are others.
        data_dir: Where named sets lie, if not where they lay in training.
        device: The device; CUDA where there is one if None.
        trust_source: Whether to run the run's own copies of the user's files that its program is
            made of, where these are no longer where and as they were. A run from elsewhere may
            hold any code: look at its folder `source` first.

    Raises:
        InputError: If it is no run directory, its configuration is not as it was trained, or the
            program or the data are not those of the run.
        CheckpointError: If no checkpoint is whole.
    """
    path = run_folder.find(path)
    config = read_config(path)
    target = resolve_device(device)
    newest = checkpoint.load_newest(path / CHECKPOINTS)

    run_folder.check_identity(path, config, newest.state)

    x_shape = tuple(config["data"]["x_shape"])
    with run_folder.as_config(path), Allotment(newest.weights):
        if program is None:
            program = _build(config["program"], x_shape, path, trusted=trust_source)
        elif isinstance(program, str):
            arguments = config["program"].get("arguments", {})
            program = user_programs.load_builder(program)(x_shape, **arguments)
    make_ready(program, newest.weights, x_shape)
    module = as_module(program).to(target).eval()
    try:
        module.load_state_dict(newest.weights)
    except RuntimeError as error:
        raise InputError(
            f"The weights of {path} do not fit the program ({_last_line(error)}).",
            "Give the program that was trained: pyrovae.load(run, program=...).",
        ) from error

    with run_folder.as_config(path):
        splits = _splits(config["data"], data, data_dir, target, dtype_of(program))
        if splits and "config" not in newest.state:  # nothing else tells whether it is as it was
            inspect_program(program, next(iter(splits.values())).head(3))
    if any(examples.x_shape != x_shape for examples in splits.values()):
        raise InputError(
            f"The {CONFIG} of {path} tells of data of shape {x_shape}, and there are others.",
            "Restore it, or give the run's own data.",
        )
    return Run(
        program=program,
        splits=splits,
        metrics=read_lines(path / METRICS),
        config=config,
        environment=read_json(path / ENVIRONMENT) or describe_environment(target),
        path=path,
    )


def from_pretrained(
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    program: Program | None = None,
    device: str | torch.device | None = None,
    trust_source: bool = False,
) -> Run:
    """Gives a run back from what `Run.save_pretrained` wrote, to be used on other data.

    Nothing in the folder is unpickled, and nothing is run unless it is trusted.

    Args:
        folder: The folder, or the name of a repository of the Hugging Face hub, `user/name`:
            the extra `hub`.
        revision: The branch, tag or commit of a repository.
        program: The program, for one of a class that no configuration can name; its weights are
            replaced.
        device: The device; CUDA where there is one if None.
        trust_source: Whether to run the files in it that the program is made of. They may hold
            any code: look at its folder `source` first.

    Returns:
        The run, without data: `run.sample(16)`, `run.on(data).evaluate()`.

    Raises:
        InputError: If it is neither a folder nor such a repository, or what is in it is missing,
            damaged, or other than `save_pretrained` writes it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir() and hub.is_name(str(folder)):
        path = hub.download(str(folder), pretrained.FILES, revision=revision)
    target = resolve_device(device)
    found = pretrained.read(path, program=program, trusted=trust_source)
    as_module(found.program).to(target)
    return Run(
        program=found.program,
        splits={},
        metrics=[],
        config=found.config,
        environment=found.config["environment"],
    )


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


def _build(
    config: dict[str, Any], x_shape: tuple[int, ...], run: Path, *, trusted: bool
) -> Program:
    if "function" in config:
        return user_programs.build(config, x_shape, run, trusted=trusted)
    if "part" in config:
        return from_config(config, run, trusted=trusted)
    raise InputError(
        why_undescribed(config), "Give the program again: pyrovae.load(run, program=...)."
    )


def _splits(
    config: dict[str, Any], data: Any, data_dir: Any, device: torch.device, dtype: torch.dtype
) -> dict[str, Examples]:
    source = config["source"] if data is None else data
    if source is None:
        return {}
    if isinstance(source, Examples) or config["fingerprint"] is None:
        # Trained on bare tensors or a stream, which no fingerprint tells from others.
        return {"test": as_examples(source, "test", dtype=dtype).to(device)}

    loaded = source
    if not isinstance(source, Data):
        loaded = load_data(
            source,
            data_dir=data_dir or config["data_dir"],
            preprocessing=from_config(config["preprocessing"]),
            missing=config.get("missing", False),
            columns=columns_of(config),
            sequences=len(config["x_shape"]) == 2,
            **(config.get("images") or {}),
        )
    if loaded.fingerprint != config["fingerprint"]:
        raise InputError(
            f"The data under {loaded.name!r} are not those that the run was trained on.",
            "Restore them, or name their folder with --data-dir.",
        )
    for name, split in loaded.splits.items():
        before = config.get("contents", {}).get(name, {}).get("labels")
        if before is not None and before != split.label_digest():
            raise InputError(
                f"The labels of the data under {loaded.name!r} are not those that the run was "
                "trained on.",
                "Restore them, or name their folder with --data-dir.",
            )
    return loaded.to(device).in_type(dtype).splits

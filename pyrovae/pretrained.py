"""Pretrained programs: a folder that holds what a run is, without its data.

`config.json` describes the program and its preprocessing as plain data, `model.safetensors` has
the weights, `README.md` says what they are, and `source/` keeps copies of the user's files that
the program is made of. Such a folder is made to be passed on. What is read from one is therefore
a stranger's word: parts come from pyrovae's own table, tensors must fit one by one, and no file
is run unless the reader says so.
"""

__all__ = ["CONFIG", "FILES", "WEIGHTS", "Pretrained", "read", "without_places", "write"]

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pyrovae import user_files, user_programs
from pyrovae.checkpoint import storable
from pyrovae.data import Batch, Preprocessing
from pyrovae.data.decoding import Decoding
from pyrovae.errors import CheckpointError, InputError, first_line, unwritable
from pyrovae.parts import from_config, why_undescribed
from pyrovae.programs import Program, as_module, dtype_of, evaluating, trace_pair
from pyrovae.weights import make_ready

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
# What is asked of a hub: nothing else in a repository is looked at.
FILES = (CONFIG, WEIGHTS, f"{user_files.SOURCE}/*/*.py")
FORMAT = 1
DECODING = {field.name for field in fields(Decoding)}
# What a description of the wrong structure raises, wherever that is met.
_MALFORMED = (AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
# What is known of a run wherever it is.
KEPT = ("program", "parameters", "data", "training", "command", "engine", "best_epoch")


class Pretrained(NamedTuple):
    """What a folder holds.

    Attributes:
        program: The program with its weights, on the CPU.
        config: What its run was told, as plain data.
    """

    program: Program
    config: dict[str, Any]


def write(
    folder: Path, program: Program, config: Mapping[str, Any], card: str, *, run: Path | None
) -> Path:
    """Writes a new folder, which is there whole or not at all.

    Args:
        folder: The folder.
        program: The trained program.
        config: What its run was told, and what else is to be kept.
        card: The text of the model card.
        run: The folder of the run, which has copies of the user's files.

    Raises:
        InputError: If there is something else, or no description of the preprocessing.
        CheckpointError: If it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already.", "Choose another folder, or remove it.")
    if config["data"]["preprocessing"] is None:
        raise InputError(
            "The preprocessing of the run is a class that no configuration can name.",
            "Train with one of pyrovae.data, or on data that are preprocessed already.",
        )
    weights = save_tensors(storable(as_module(program).state_dict()))
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        described = {
            "format": FORMAT,
            **config,
            "program": _portable(config["program"], run, temporary),
            "data": _portable(config["data"], run, temporary),
            "weights": {"sha256": sha256(weights).hexdigest(), "bytes": len(weights)},
        }
        (temporary / CONFIG).write_text(json.dumps(described, indent=1) + "\n")
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / CARD).write_text(card)
        os.replace(temporary, folder)
    except OSError as error:
        raise unwritable(CheckpointError, folder, error, "another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was told, without where its data and its files lie."""
    name = Path(str(config["data"]["name"])).name
    kept = {key: config[key] for key in KEPT if key in config}
    if "command" in kept:
        kept["command"] = _without_folders(kept["command"])
    return {**kept, "data": {**config["data"], "name": name, "source": None, "data_dir": None}}


def _without_folders(command: str) -> str:
    """A command whose paths are names.

    Example:
        >>> _without_folders("pyrovae train /home/me/photos/ --run-dir=../runs/a --lr 0.1")
        'pyrovae train photos --run-dir=a --lr 0.1'
    """
    words = (re.sub(r"[^=]*/", "", word.rstrip("/")) for word in shlex.split(command))
    return shlex.join(words)


def _portable(config: Any, run: Path | None, folder: Path) -> Any:
    """A description whose files are copied into the folder, and named without their own."""
    if isinstance(config, list):
        return [_portable(item, run, folder) for item in config]
    if not isinstance(config, Mapping):
        return config
    if "file" not in config:
        return {key: _portable(value, run, folder) for key, value in config.items()}
    path = user_files.locate(config, run, trusted=True)
    user_files.copy(path, config, folder)
    rest = {key: value for key, value in config.items() if key != "file"}
    return {"file": path.name, **_portable(rest, run, folder)}


# ── Reading what a stranger wrote ────────────────────────────────────────────────────────────


def read(folder: Path, *, program: Program | None = None, trusted: bool = False) -> Pretrained:
    """Reads a folder.

    Args:
        folder: The folder.
        program: The program, for one of a class that no configuration can name; its weights are
            replaced.
        trusted: Whether the files in it may be run.

    Raises:
        InputError: If anything in it is missing, damaged, or other than `write` writes it.
    """
    config = _read_config(folder)
    files = list(_files(config))
    if program is None and files and not trusted:
        raise InputError(
            f"The program is made of its author's file {files[0]}, which is not run unasked.",
            f"Read {folder / user_files.SOURCE} first, and then give trust_source=True.",
        )
    built = _build(config, folder, trusted=trusted) if program is None else program
    weights = _read_weights(folder, config)
    as_module(built).cpu()
    make_ready(built, weights, tuple(config["data"]["x_shape"]))
    _put_into(built, weights, folder)
    _check_runs(built, config, folder)
    return Pretrained(built, config)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{folder / CONFIG} cannot be read ({first_line(error)}).",
            "Give a folder that save_pretrained wrote.",
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise _damaged(folder, f"it is not of format {FORMAT}")
    for key in ("program", "data", "weights", "training", "environment"):
        if not isinstance(config.get(key), dict):
            raise _damaged(folder, f"it has no {key}")
    shape, images = (config["data"].get(key) for key in ("x_shape", "images"))
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _damaged(folder, f"{shape!r} is not the shape of an observation")
    if images is not None and (not isinstance(images, dict) or images.keys() != DECODING):
        raise _damaged(folder, f"{images!r} does not say what is made of images")
    return config


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _damaged(folder: Path, reason: str) -> InputError:
    return InputError(
        f"{folder / CONFIG} describes no pretrained program: {reason}.",
        "Give a folder that save_pretrained wrote, unchanged.",
    )


def _files(config: Any) -> Iterator[str]:
    """The user's files that a description names.

    Raises:
        InputError: If one is named other than by its own name and a sha256.
    """
    if isinstance(config, list):
        for item in config:
            yield from _files(item)
    if isinstance(config, Mapping):
        if "file" in config:
            yield _checked(config)
        for item in config.values():
            yield from _files(item)


def _checked(config: Mapping[str, Any]) -> str:
    # A path, absolute or upwards, would let a stranger name any file of the reader's.
    file, digest = config["file"], config.get("sha256")
    is_name = isinstance(file, str) and re.fullmatch(r"\w[\w.-]*\.py", file)
    if not is_name or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(
            f"The configuration names the file {file!r}, which is none in {user_files.SOURCE}.",
            "Give a folder that save_pretrained wrote, unchanged.",
        )
    return file


def _build(config: dict[str, Any], folder: Path, *, trusted: bool) -> Program:
    described, shape = config["program"], tuple(config["data"]["x_shape"])
    if "class" in described:
        raise InputError(
            why_undescribed(described),
            "Give the program yourself: pyrovae.from_pretrained(folder, program=...).",
        )
    try:
        described_data = config["data"].get("preprocessing")
        preprocessing = from_config(described_data, folder, trusted=trusted)
        if not isinstance(preprocessing, Preprocessing):
            raise TypeError("it describes no preprocessing")
        if "function" in described:
            return user_programs.build(described, shape, folder, trusted=trusted)
        program = from_config(described, folder, trusted=trusted)
        as_module(program)
    except InputError:
        raise
    except _MALFORMED as error:
        raise _damaged(folder, first_line(error)) from error
    return program


def _read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    try:
        content = (folder / WEIGHTS).read_bytes()
        if sha256(content).hexdigest() != config["weights"].get("sha256"):
            raise ValueError("it does not match its sha256")
        return load_tensors(content)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({first_line(error)}).",
            "Copy or download the folder again.",
        ) from error


def _put_into(program: Program, weights: dict[str, Tensor], folder: Path) -> None:
    """Gives a program its weights, tensor by tensor.

    Raises:
        InputError: If one is missing, of another shape or kind, NaN, or too many.
    """
    module = as_module(program).eval()
    own = module.state_dict()
    wrong = sorted(own.keys() ^ weights.keys())
    wrong += [name for name in own.keys() & weights.keys() if not _fits(own[name], weights[name])]
    if wrong:
        raise InputError(
            f"The weights in {folder} do not fit the program, first {wrong[0]}.",
            "Copy or download the folder again, or give the program that was trained.",
        )
    module.load_state_dict(weights)


def _fits(own: Tensor, found: Tensor) -> bool:
    alike = own.is_floating_point() == found.is_floating_point() and own.shape == found.shape
    return alike and not bool(found.isnan().any())


def _check_runs(program: Program, config: dict[str, Any], folder: Path) -> None:
    """Refuses parts that fit their weights and not one another."""
    try:
        x = torch.zeros(2, *config["data"]["x_shape"], dtype=dtype_of(program))
        with evaluating(program):
            trace_pair(program, Batch(x, torch.zeros(2, dtype=torch.int64)))
    except Exception as error:  # whatever a part makes of what it was not made for
        raise _damaged(folder, f"it cannot be run ({first_line(error)})") from error

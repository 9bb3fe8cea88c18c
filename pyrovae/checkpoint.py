"""Checkpoints: whole or ignored, and never a pickle.

A checkpoint is a folder `step-N` of safetensors files and a `MANIFEST.json` with the sha256 and
size of each, plain values, and the sha256 of itself. It is written under a temporary name,
synced to the disk file by file, and renamed: a folder under its final name is complete. What is
loaded is the newest folder that verifies, found by looking, not by a pointer.
"""

__all__ = ["Checkpoint", "exists", "load_newest", "marks", "save", "storable"]

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from pyrovae.errors import CheckpointError, unwritable

MANIFEST = "MANIFEST.json"
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        step: The number of steps taken.
        weights: The state of the program's modules.
        state: Whatever else training needs, a tree of dicts, lists, plain values and tensors.
    """

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint into a folder of checkpoints, and keeps the last two.

    Raises:
        CheckpointError: If it cannot be written; what stood before stands as it was.
    """
    tensors, plain = _split(checkpoint.state)
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    # One of the same step stays to be found until the new one has its name.
    before = folder / f"{final.name}.old"
    files = {
        "model.safetensors": save_tensors(storable(checkpoint.weights)),
        "state.safetensors": save_tensors(storable(tensors)),
    }
    manifest = {
        "step": checkpoint.step,
        "state": plain,
        "files": {
            name: {"sha256": sha256(b).hexdigest(), "bytes": len(b)} for name, b in files.items()
        },
    }
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in (*files.items(), (MANIFEST, _seal(manifest))):
            _write_synced(temporary / name, content)
        shutil.rmtree(before, ignore_errors=True)
        if final.exists():
            os.rename(final, before)
        os.rename(temporary, final)
        _sync_folder(folder)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        instead = "another --run-dir; earlier checkpoints are untouched"
        raise unwritable(CheckpointError, f"The checkpoint {final}", error, instead) from error

    for old in _folders(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def exists(folder: Path) -> bool:
    """Whether there is any checkpoint in a folder, damaged or not."""
    return bool(_folders(folder))


def marks(folder: Path) -> list[tuple[str, int, int]]:
    """What tells the checkpoints of a folder from any that are saved later, without a look inside.

    Raises:
        CheckpointError: If one goes away meanwhile.
    """
    try:
        found = [(path.name, path.stat()) for path in _folders(folder)]
    except OSError as error:
        raise CheckpointError(
            f"The checkpoints in {folder} cannot be read ({error.strerror}).",
            "Another process may be at them: start again.",
        ) from error
    return [(name, status.st_ino, status.st_mtime_ns) for name, status in found]


def load_newest(folder: Path) -> Checkpoint:
    """The newest checkpoint that is whole, with a warning that names a newer one that is not.

    Raises:
        CheckpointError: If there is none, naming what is wrong with the newest.
    """
    first_error: CheckpointError | None = None
    for candidate in _folders(folder):
        try:
            found = _load(candidate)
        except CheckpointError as error:
            first_error = first_error or error
            continue
        if first_error is not None:
            warnings.warn(f"{first_error.cause} {candidate} is used.", stacklevel=2)
        return found

    if first_error is not None:
        raise first_error
    raise CheckpointError(
        f"There is no checkpoint in {folder}.", "Check the path, or train the run first."
    )


def _load(path: Path) -> Checkpoint:
    try:
        manifest = _unseal((path / MANIFEST).read_bytes())
        contents = {}
        for name in ("model.safetensors", "state.safetensors"):
            content = (path / name).read_bytes()
            if sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
                raise ValueError(f"{name} does not match its sha256")
            contents[name] = load_tensors(content)
        state = _join(manifest["state"], contents["state.safetensors"])
        return Checkpoint(manifest["step"], contents["model.safetensors"], state)
    except (OSError, ArithmeticError, LookupError, RuntimeError, *_MALFORMED) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged ({error}).",
            "Restore it, or remove it so that the one before it is used.",
        ) from error


# What a manifest of the wrong structure raises, wherever that is met.
_MALFORMED = (AttributeError, TypeError, ValueError, SafetensorError)


def _folders(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [(re.fullmatch(r"step-([0-9]+)(\.old)?", p.name), p) for p in folder.glob("step-*")]
    named = [(int(match[1]), match[2] is None, path) for match, path in found if match]
    return [path for *_, path in sorted(named, reverse=True)]


# ── The manifest seals itself ────────────────────────────────────────────────────────────────


def _seal(manifest: dict[str, Any]) -> bytes:
    """A manifest with the sha256 of its own text, so that an edit of it is seen too."""
    text = json.dumps(manifest, indent=1, sort_keys=True)
    return json.dumps({"sha256": sha256(text.encode()).hexdigest(), "manifest": text}).encode()


def _unseal(content: bytes) -> dict[str, Any]:
    sealed = json.loads(content)
    if sha256(sealed["manifest"].encode()).hexdigest() != sealed["sha256"]:
        raise ValueError(f"{MANIFEST} does not match its sha256")
    return json.loads(sealed["manifest"])


# ── Files ────────────────────────────────────────────────────────────────────────────────────


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ── Trees of tensors and plain values ────────────────────────────────────────────────────────


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: safetensors refuses tensors that share their memory."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def _split(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Takes the tensors out of a tree, leaving their numbers in their places."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            name = str(len(tensors))
            tensors[name] = node
            return {"tensor": name}
        if isinstance(node, Mapping):
            # Pairs rather than an object: an optimizer's keys are integers.
            return {"pairs": [[key, walk(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return [walk(item) for item in node]
        return node

    return tensors, walk(tree)


def _join(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_join(item, tensors) for item in plain]
    if isinstance(plain, dict):
        if "tensor" in plain:
            return tensors[plain["tensor"]]
        return {key: _join(value, tensors) for key, value in plain["pairs"]}
    return plain

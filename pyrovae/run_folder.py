"""The folder of a run: what its files are called, and how they are written and read.

It holds `config.json` (plain data, enough to build the program again or to name the file that
does), `environment.json`, `metrics.jsonl`, `checkpoints/`, `stages.safetensors`, and what later
commands add: `evaluation.json`, pictures, `report.html`.
"""

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "ENVIRONMENT",
    "EVALUATION",
    "METRICS",
    "REPORT",
    "STAGES",
    "differences",
    "find",
    "held",
    "is_new",
    "read_config",
    "read_json",
    "read_lines",
    "remove",
    "write",
]

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pyrovae.errors import CheckpointError, InputError

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.jsonl"
CHECKPOINTS, EVALUATION, REPORT = "checkpoints", "evaluation.json", "report.html"
STAGES = "stages.safetensors"
LOCK = ".lock"
# Where `pyrovae train` puts runs that were given no folder.
RUNS = Path("runs")


def find(name: str | os.PathLike[str]) -> Path:
    """The folder that a path, the name of a run under `runs`, or the word `latest` stands for.

    Raises:
        InputError: If there is no run at all to be the latest.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if str(name) == "latest":
        runs = sorted(RUNS.glob(f"*/{CONFIG}"), key=lambda config: config.stat().st_mtime)
        if not runs:
            raise InputError(f"There is no run in {RUNS.resolve()}.", "Name the folder of a run.")
        return runs[-1].parent
    return RUNS / path if (RUNS / path).exists() else path


def is_new(path: Path) -> bool:
    """Whether a run can begin in a folder: it is not there, or empty but for a lock."""
    if path.is_dir():
        return all(entry.name == LOCK for entry in path.iterdir())
    return not path.exists()


@contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Holds a run, made where it is not there, against any other process that would train it.

    Raises:
        InputError: If another one does.
        CheckpointError: If the folder cannot be written.
    """
    if path is None:
        yield
        return
    lock = FileLock(path / LOCK, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"Another process is training {path}.", "Let it finish, or stop it first."
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


# ── Files ────────────────────────────────────────────────────────────────────────────────────


def write(file: Path, content: str | bytes, *, append: bool = False) -> None:
    """Writes a file of a run; one that stood there stands until the new one is whole.

    Raises:
        CheckpointError: If it cannot be written.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    as_bytes = content.encode() if isinstance(content, str) else content
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if append:
            with file.open("ab") as lines:
                lines.write(as_bytes)
        else:
            temporary.write_bytes(as_bytes)
            os.replace(temporary, file)
    except OSError as error:
        raise _unwritable(file, error) from error


def remove(file: Path) -> None:
    """Removes a file of a run, if it is there.

    Raises:
        CheckpointError: If it cannot be removed.
    """
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(file, error) from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is missing or damaged."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_config(path: Path) -> dict[str, Any]:
    """What the run in a folder was told.

    Raises:
        InputError: If there is no run in it.
    """
    config = read_json(path / CONFIG)
    if not all(isinstance(config.get(key), dict) for key in ("program", "data")):
        raise InputError(
            f"{path} is not a run directory: it has no {CONFIG} that describes a run.",
            "Give the folder that pyrovae train printed as its run directory.",
        )
    return config


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that was cut off is left out."""
    records = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be written ({error.strerror or error}).",
        "Free some space or choose another --run-dir.",
    )


# ── Whether two runs are one ─────────────────────────────────────────────────────────────────


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two trees of plain values differ, as `a.b is 1, and was 2`, for what both tell of.

    Example:
        >>> differences({"a": {"b": 2, "c": 3}}, {"a": {"b": 1, "d": 4}})
        ['a.b is 1, and was 2']
    """
    then, current = _flat(before), _flat(json.loads(json.dumps(now)))
    return [
        f"{name} is {current[name]!r}, and was {then[name]!r}"
        for name in current
        if name in then and current[name] != then[name]
    ]


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {place: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{place}.{key}" if place else key).items()
    }

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
    "as_config",
    "check_identity",
    "compared",
    "differences",
    "find",
    "held",
    "identity",
    "is_new",
    "read_config",
    "read_json",
    "read_lines",
    "remove",
    "sealed",
    "write",
]

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pyrovae.errors import CheckpointError, InputError, PyrovaeError, shorten, unwritable

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.jsonl"
CHECKPOINTS, EVALUATION, REPORT = "checkpoints", "evaluation.json", "report.html"
STAGES = "stages.safetensors"
LOCK = ".lock"
# What no path has: NUL, and surrogates but those that stand for bytes which are no text.
NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
# No program nests its parts deeper.
DEEPEST = 50
# What says which run it is. Where its data lie, and how it was called, may change.
COMPARED = ("program", "parameters", "data", "training")
FREE = {"data": ("name", "source", "data_dir"), "training": ("epochs",)}
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
        raise unwritable(CheckpointError, path, error, "another --run-dir") from error
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
        temporary.unlink(missing_ok=True)
        raise unwritable(CheckpointError, file, error, "another --run-dir") from error


def remove(file: Path) -> None:
    """Removes a file of a run, if it is there.

    Raises:
        CheckpointError: If it cannot be removed.
    """
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(CheckpointError, file, error, "another --run-dir") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is missing or damaged."""
    try:
        return _parsed(file.read_text())
    except (OSError, ValueError):
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_config(path: Path) -> dict[str, Any]:
    """What the run in a folder was told.

    Raises:
        InputError: If there is no run in it.
    """
    config = read_json(path / CONFIG)
    if not _describes_a_run(config):
        raise InputError(
            f"{path} is not a run directory: it has no {CONFIG} that describes a run.",
            "Give the folder that pyrovae train printed as its run directory.",
        )
    return config


def _describes_a_run(config: dict[str, Any]) -> bool:
    """Whether a configuration is of the kind that every reader of it counts on."""
    if _depth(config) > DEEPEST or not isinstance(config.get("program"), dict):
        return False
    data = config.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return False
    texts = [data.get(key) for key in ("source", "data_dir", "fingerprint")]
    engine = config.get("engine", {"name": ""})
    shape = data.get("x_shape")
    return (
        all(text is None or (isinstance(text, str) and not NO_NAME.search(text)) for text in texts)
        and isinstance(shape, list)
        and all(type(size) is int and 0 < size < 2**31 for size in shape)
        and isinstance(data.get("images"), dict | None)
        and isinstance(engine, dict)
        and isinstance(engine.get("name"), str)
    )


def _depth(tree: Any) -> int:
    """How deep a tree is, which is asked before it is walked by functions that call themselves."""
    level, depth = [tree], 0
    while level:
        lists = [node.values() if isinstance(node, dict) else node for node in level]
        level = [n for children in lists for n in children if isinstance(n, dict | list)]
        depth += 1
    return depth


@contextmanager
def as_config(path: Path) -> Iterator[None]:
    """Says of a run's configuration what is raised where it does not make sense.

    Raises:
        InputError: Instead of what Python and torch raise.
    """
    try:
        yield
    except PyrovaeError:
        raise
    except _MALFORMED as error:
        raise InputError(
            f"The {CONFIG} of {path} makes no program with data ({type(error).__name__}: "
            f"{shorten(error)}).",
            "Restore it, or give program= or data= when the run is loaded from Python.",
        ) from error


# What a description of the wrong structure raises, wherever that is met.
_MALFORMED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError),
)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, up to a line that was cut off or is none."""
    records = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


# ── Whether two runs are one ─────────────────────────────────────────────────────────────────


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration says which run it is."""
    found: dict[str, Any] = {}
    for key in COMPARED:
        value = config.get(key)
        if key in FREE and isinstance(value, Mapping):
            value = {name: v for name, v in value.items() if name not in FREE[key]}
        found[key] = value
    return found


def identity(config: Mapping[str, Any]) -> str:
    """The sha256 of what says which run it is, as JSON has it.

    Example:
        >>> one, other = {"training": {"epochs": 1, "seed": 0}}, {"training": {"seed": 0}}
        >>> identity(one) == identity(other)
        True
    """
    return sha256(json.dumps(compared(config), sort_keys=True).encode()).hexdigest()


def sealed(config: Mapping[str, Any]) -> dict[str, str]:
    """What a checkpoint keeps of the configuration that it is of."""
    return {"config": identity(config), "told": json.dumps(compared(config))}


def check_identity(path: Path, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuses a configuration that is not the one that a checkpoint is of.

    Args:
        path: The folder of the run.
        config: Its configuration.
        state: What the checkpoint holds, `sealed` among it; not so in versions up to 0.1.0.

    Raises:
        InputError: If it is another, naming what differs.
    """
    expected = state.get("config")
    if expected is not None and identity(config) != expected:
        found = differences(_parsed(str(state.get("told"))), compared(config))
        raise InputError(
            f"The {CONFIG} of {path} has changed since the run was trained"
            f"{': ' if found else ''}{'; '.join(found)}.",
            "Restore it: its weights would mean something else under another one.",
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two trees of plain values differ, as `a.b is 1, and was 2`, for what both tell of.

    Example:
        >>> differences({"a": {"b": 2, "c": 3}}, {"a": {"b": 1, "d": 4}})
        ['a.b is 1, and was 2']
    """
    then, current = _flat(before), _flat(json.loads(json.dumps(now)))
    return [
        f"{name} is {shorten(current[name])}, and was {shorten(then[name])}"
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

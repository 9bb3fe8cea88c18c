"""The programs in files of the user's own that were trained here, which may be run again.

A run's configuration says of such a file where it is, what it holds, and what is taken out of it.
A stranger can write the same of any file whose content is public, as of a module of the standard
library. So every training leaves a line in a file of the user's, outside of all runs, and what a
run names is run without being asked only if there is such a line.
"""

__all__ = ["is_known", "remember"]

import json
import os
from contextlib import suppress
from pathlib import Path


def remember(path: Path, name: str, sha256: str) -> None:
    """Notes that a file was trained with. Where that cannot be written, runs ask for trust."""
    if is_known(path, name, sha256):
        return
    with suppress(OSError):
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        # One write at the end of the file: several trainings may do this at once.
        with place.open("ab", buffering=0) as lines:
            lines.write(_line(path, name, sha256) + b"\n")


def is_known(path: Path, name: str, sha256: str) -> bool:
    """Whether what a file defines under a name was trained here, while it held what it holds."""
    try:
        return _line(path, name, sha256) in _place().read_bytes().splitlines()
    except OSError:
        return False


def _line(path: Path, name: str, sha256: str) -> bytes:
    return json.dumps([os.fspath(path), name, sha256]).encode()


def _place() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")

    return state.expanduser() / "pyrovae" / "known_files.jsonl"

"""The images of a folder: which files there are, and the splits and labels that folders name."""

__all__ = ["Listed", "counted", "list_images", "roles_of", "shown"]

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from pyrovae.data.decoding import is_image_name
from pyrovae.data.raw import SPLITS
from pyrovae.errors import InputError

SPLIT_NAMES = {**{split: split for split in SPLITS}, "val": "valid"}


class Listed(NamedTuple):
    """A file as its folder lists it."""

    name: str
    size: int
    changed: int


def list_images(folder: Path) -> list[Listed]:
    """The image files of a folder and of those in it, by name, links followed."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}).", "Check its permissions."
        )

    for where, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        relative = Path(where).relative_to(folder).as_posix()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if is_image_name(name) and not name.startswith("."):
                found.append(_status(where, name, relative))
    return sorted(found)


def _status(where: str, name: str, relative: str) -> Listed:
    own = name if relative == "." else f"{relative}/{name}"
    try:
        status = os.stat(os.path.join(where, name))
    except OSError:  # a link to nothing, which reading will name
        return Listed(own, 0, 0)
    return Listed(own, status.st_size, status.st_mtime_ns)


def roles_of(folder: Path, names: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """The split and the label of each file.

    Raises:
        InputError: If files lie beside the folders of splits.
    """
    parts = {name: name.split("/") for name in names}
    depth = any(_split_of(words) for words in parts.values())
    for name, words in parts.items():
        if depth and _split_of(words) is None:
            raise InputError(
                f"{folder} has folders for splits, and {shown(name)} lies in none of them.",
                f"Move it into one of {', '.join(SPLITS)}.",
            )
    return {
        name: (_split_of(words), words[depth] if len(words) > depth + 1 else None)
        for name, words in parts.items()
    }


def _split_of(words: Sequence[str]) -> str | None:
    return SPLIT_NAMES.get(words[0].lower()) if len(words) > 1 else None


def shown(name: str) -> str:
    """A file's name as it can be printed, whatever its bytes."""
    return os.fsencode(name).decode(errors="replace")


def counted(names: Collection[str]) -> str:
    """How many files there are, in words."""
    return f"{len(names):,} file{'s' if len(names) > 1 else ''}"

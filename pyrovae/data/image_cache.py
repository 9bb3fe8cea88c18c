"""The cache of a folder of images: a file of bytes that is mapped into memory, and its index.

It lies in the user's cache, under a name made of the folder, its files (their names, sizes and
times of change) and what is made of them; it is written under another name, and renamed when it
is whole. Its rows stand split by split, so that each split is a part of the map, and nothing of
it is read before it is needed.
"""

__all__ = ["Cached", "ImageFile", "open_cache", "place_of", "write_cache"]

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyrovae.data.decoding import BadImage, Decoding, Header
from pyrovae.data.listing import Listed, counted
from pyrovae.data.raw import SPLITS, Raw, cache_folder

IMAGES, INDEX, UNFINISHED = "images.raw", "index.json", "unfinished-"
# Caches of another number are made anew; one more wherever the pixels or the splits change.
VERSION = 2


class ImageFile(NamedTuple):
    """An image file before it is decoded."""

    name: str
    split: str | None
    label: str | None
    digest: str
    header: Header


@dataclass(frozen=True)
class Cached:
    """What a cache holds.

    Attributes:
        images: All rows, (N, C, H, W), mapped.
        counts: The number of rows of each split, which stand in this order.
        labels: The label of each row, if every one has one.
        names: The file of each row.
        drawn: The splits that are no folders of their own.
        fingerprint: A hash of the files' contents, their roles and what was made of them.
        bad: The files that cannot be read, and why.
        path: The file that they are mapped from.
    """

    images: np.ndarray
    counts: Mapping[str, int]
    labels: Sequence[int] | None
    names: Sequence[str]
    drawn: Sequence[str]
    fingerprint: str
    bad: Mapping[str, str]
    path: Path

    @property
    def summary(self) -> str:
        """Where the cache is, how large, and what it lacks."""
        lacking = f", without {counted(self.bad)} that cannot be read" if self.bad else ""
        return f"{self.path} ({self.images.nbytes / 1e6:,.1f} MB){lacking}"

    def raw(self, counts: Mapping[str, int]) -> Raw:
        """The splits, as parts of the map."""
        labels = None if self.labels is None else np.asarray(self.labels, np.int64)
        splits, names, start = {}, {}, 0
        for split, count in counts.items():
            rows = slice(start, start + count)
            splits[split] = self.images[rows], None if labels is None else labels[rows]
            names[split] = self.names[rows]
            start += count
        rule = f"{' and '.join(self.drawn)}: a tenth each, by a seeded hash of the files"
        return Raw(
            splits,
            maximum=255,
            split_rule=rule if self.drawn else None,
            fingerprint=self.fingerprint,
            cache=self.summary,
            names=names,
        )


def place_of(folder: Path, files: Sequence[Listed], decoding: Decoding) -> Path:
    """The cache of these files, as they are now, and of what is to be made of them."""
    made = asdict(replace(decoding, skip_bad=False))
    place = sha256(repr((VERSION, os.fsencode(folder.resolve()), made)).encode()).hexdigest()
    state = sha256(repr(files).encode()).hexdigest()

    return cache_folder() / "folders" / place[:16] / state[:16]


def open_cache(place: Path) -> Cached | None:
    """What a cache holds, or None if it is not there or not as it was written."""
    try:
        index = json.loads((place / INDEX).read_text())
        path = place / IMAGES
        if path.stat().st_mtime_ns != index.pop("written"):
            return None
        shape = tuple(index.pop("shape"))
        if path.stat().st_size != int(np.prod(shape)):
            return None
        return Cached(np.memmap(path, np.uint8, "r", shape=shape), path=path, **index)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_cache(
    place: Path,
    results: Iterable[tuple[ImageFile, "np.ndarray | BadImage"]],
    shape: tuple[int, int, int],
    decoding: Decoding,
    drawn: Sequence[str],
    bad: dict[str, str],
) -> list[ImageFile]:
    """Writes a cache, which is put in its place once it is whole, and is gone if it never is.

    Args:
        place: Where it belongs.
        results: Each file with its pixels, or why it has none.
        shape: The shape (C, H, W) of all of these.
        decoding: What they were made by.
        drawn: The splits that are no folders of their own.
        bad: The files that cannot be read, and why, which is told of further ones.

    Returns:
        The files that have pixels. Where none has, there is no cache.

    Raises:
        OSError: If it cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=UNFINISHED) as beside:
        made = Path(beside, "cache")
        made.mkdir()
        kept = _write(made / IMAGES, results, bad)
        if kept:
            index = _index(kept, shape, decoding, drawn, bad)
            index["written"] = (made / IMAGES).stat().st_mtime_ns
            (made / INDEX).write_text(json.dumps(index))
            _replace(made, place)
    return kept


def _write(
    path: Path, results: Iterable[tuple[ImageFile, "np.ndarray | BadImage"]], bad: dict[str, str]
) -> list[ImageFile]:
    """Writes the pixels of files, and gives those that have any; `bad` is told of the others."""
    kept = []
    with path.open("wb") as file:
        for found, pixels in results:
            if isinstance(pixels, BadImage):
                bad[found.name] = str(pixels)
            else:
                file.write(pixels.tobytes())
                kept.append(found)
        # On the disk before it has its name: a cache that is there is whole.
        file.flush()
        os.fsync(file.fileno())
    return kept


def _replace(made: Path, place: Path) -> None:
    """Puts a whole cache where it belongs, instead of any for other states of the folder."""
    for old in place.parent.iterdir():
        if not old.name.startswith(UNFINISHED):
            shutil.rmtree(old, ignore_errors=True)
    try:
        made.rename(place)
    except OSError:
        # Another process has made the same in the meantime.
        if open_cache(place) is None:
            raise


def _index(
    files: Sequence[ImageFile],
    shape: tuple[int, int, int],
    decoding: Decoding,
    drawn: Sequence[str],
    bad: Mapping[str, str],
) -> dict[str, Any]:
    """What is to be known of the rows of a cache, as plain data."""
    labels = sorted({file.label for file in files if file.label is not None})
    number = {label: index for index, label in enumerate(labels)}
    told = [(file.split, file.label, file.digest) for file in files]
    return {
        "shape": [len(files), *shape],
        "counts": {split: sum(file.split == split for file in files) for split in SPLITS},
        "labels": [number[f.label] for f in files if f.label is not None]
        if all(file.label is not None for file in files)
        else None,
        "names": [file.name for file in files],
        "drawn": list(drawn),
        "fingerprint": sha256(repr((shape, decoding.pad, told)).encode()).hexdigest(),
        "bad": dict(bad),
    }

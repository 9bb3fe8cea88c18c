"""Folders of images: decoded once, in parallel, into a file of bytes that is mapped into memory.

The file lies in the user's cache, under a name made of the folder, its files (their names, sizes
and times of change) and what is made of them; it is written under another name, and renamed when
it is whole. Its rows stand split by split, so that each split is a part of the map, and nothing
of it is read before it is needed.
"""

__all__ = ["read"]

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from pyrovae.data.decoding import BadImage, Decoding, Header, decode, is_image_name, read_header
from pyrovae.data.raw import SPLITS, Raw, cache_folder
from pyrovae.errors import InputError, unwritable

IMAGES, INDEX, UNFINISHED = "images.raw", "index.json", "unfinished-"
# Caches of another number are made anew; one more wherever the pixels or the splits change.
VERSION = 2
SPLIT_NAMES = {**{split: split for split in SPLITS}, "val": "valid"}
# How many files are decoded ahead of those that are written.
AHEAD = 256
# How many files a message names.
NAMED_FILES = 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def read(folder: Path, decoding: Decoding, *, whole: bool = False) -> Raw:
    """Reads a folder of images, from its cache where that is whole.

    Folders named train, valid and test are splits, and any others, there or at the top, labels
    in alphabetical order, if every image has one. Without splits a tenth of the contents each
    goes to validation and test, so that copies of one file never stand in two of them. Hidden
    files, and those whose names do not end as images do, are left out.

    Args:
        folder: The folder.
        decoding: What is made of its images.
        whole: Whether to leave a folder undivided that has no test set of its own.

    Raises:
        InputError: If there are no images or too few to split, they are of several sizes and
            none is asked for, or some cannot be read and are not to be skipped.
    """
    files = _list(folder)
    if not files:
        raise InputError(f"{folder} holds no images.", "Name a folder with files such as a.jpg.")
    place = _place(folder, files, decoding)
    cached = _open(place) or _make(folder, [file.name for file in files], decoding, place)
    if cached.bad and not decoding.skip_bad:
        raise _unreadable(folder, cached.bad)
    if whole and "test" in cached.drawn:
        return cached.raw({"train": len(cached.images)})
    if not all(cached.counts[split] for split in SPLITS):
        raise InputError(
            f"{folder} holds too few different images to split: {len(cached.images)}.",
            "Give at least 10, or some in each of the folders train, valid and test.",
        )
    return cached.raw(cached.counts)


# ── Files ────────────────────────────────────────────────────────────────────────────────────


class _Listed(NamedTuple):
    """A file as its folder lists it."""

    name: str
    size: int
    changed: int


class _File(NamedTuple):
    """An image file before it is decoded."""

    name: str
    split: str | None
    label: str | None
    digest: str
    header: Header


def _list(folder: Path) -> list[_Listed]:
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


def _status(where: str, name: str, relative: str) -> _Listed:
    own = name if relative == "." else f"{relative}/{name}"
    try:
        status = os.stat(os.path.join(where, name))
    except OSError:  # a link to nothing, which reading will name
        return _Listed(own, 0, 0)
    return _Listed(own, status.st_size, status.st_mtime_ns)


def _roles(folder: Path, names: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """The split and the label of each file.

    Raises:
        InputError: If files lie beside the folders of splits.
    """
    parts = {name: name.split("/") for name in names}
    depth = any(_split_of(words) for words in parts.values())
    for name, words in parts.items():
        if depth and _split_of(words) is None:
            raise InputError(
                f"{folder} has folders for splits, and {_shown(name)} lies in none of them.",
                f"Move it into one of {', '.join(SPLITS)}.",
            )
    return {
        name: (_split_of(words), words[depth] if len(words) > depth + 1 else None)
        for name, words in parts.items()
    }


def _split_of(words: Sequence[str]) -> str | None:
    return SPLIT_NAMES.get(words[0].lower()) if len(words) > 1 else None


def _shown(name: str) -> str:
    """A file's name as it can be printed, whatever its bytes."""
    return os.fsencode(name).decode(errors="replace")


# ── The cache ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Cached:
    """What a cache holds.

    Attributes:
        images: All rows, (N, C, H, W), mapped.
        counts: The number of rows of each split, which stand in this order.
        labels: The label of each row, if every one has one.
        names: The file of each row.
        drawn: The splits that are no folders of their own.
        fingerprint: A hash of the files' contents, their roles and what was made of them.
        bad: The files that cannot be read, and why.
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
        lacking = f", without {_number(self.bad)} that cannot be read" if self.bad else ""
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


def _place(folder: Path, files: Sequence[_Listed], decoding: Decoding) -> Path:
    """The cache of these files, as they are now, and of what is to be made of them."""
    made = asdict(replace(decoding, skip_bad=False))
    place = sha256(repr((VERSION, os.fsencode(folder.resolve()), made)).encode()).hexdigest()
    state = sha256(repr(files).encode()).hexdigest()

    return cache_folder() / "folders" / place[:16] / state[:16]


def _open(place: Path) -> _Cached | None:
    """What a cache holds, or None if it is not there or not as it was written."""
    try:
        index = json.loads((place / INDEX).read_text())
        path = place / IMAGES
        if path.stat().st_mtime_ns != index.pop("written"):
            return None
        shape = tuple(index.pop("shape"))
        if path.stat().st_size != int(np.prod(shape)):
            return None
        return _Cached(np.memmap(path, np.uint8, "r", shape=shape), path=path, **index)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _make(folder: Path, names: list[str], decoding: Decoding, place: Path) -> _Cached:
    """Decodes a folder into its cache.

    Raises:
        InputError: As `read`, or if the cache cannot be written.
    """
    with _workers() as pool:
        files, bad = _scan(folder, names, pool)
        if not files:
            raise _unreadable(folder, bad)
        shape = _shape(folder, files, decoding)
        ordered, drawn = _in_splits(folder, files)

        def pixels(file: _File) -> np.ndarray:
            return decode(folder / file.name, shape, pad=decoding.pad)

        try:
            with _unfinished(place) as made:
                results = _in_parallel(pool, pixels, ordered, "decoding")
                kept = _write(made / IMAGES, results, bad)
                if not kept:
                    raise _unreadable(folder, bad)
                index = _index(kept, shape, decoding, drawn, bad)
                index["written"] = (made / IMAGES).stat().st_mtime_ns
                (made / INDEX).write_text(json.dumps(index))
        except OSError as error:
            what, instead = f"The cache {place}", "another folder for caches by XDG_CACHE_HOME"
            raise unwritable(InputError, what, error, instead) from error

    cached = _open(place)
    if cached is None:
        raise InputError(f"The cache {place} has changed since it was written.", "Try again.")
    _say(f"cache    {cached.summary}")
    if several := sum(file.header.several for file in kept):
        _say(f"{several:,} of {len(kept):,} files have several frames: the first is taken")
    return cached


@contextmanager
def _unfinished(place: Path) -> Iterator[Path]:
    """A new folder that is put in its place once it is whole, and is gone if it never is."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=UNFINISHED) as folder:
        made = Path(folder, "cache")
        made.mkdir()
        yield made
        _replace(made, place)


def _write(
    path: Path, results: Iterable[tuple[_File, "np.ndarray | BadImage"]], bad: dict[str, str]
) -> list[_File]:
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
        if _open(place) is None:
            raise


def _index(
    files: Sequence[_File],
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


# ── Reading and decoding ─────────────────────────────────────────────────────────────────────


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads, which Pillow decodes in at the same time; what it warns of is silenced."""
    pool = ThreadPoolExecutor(min(32, os.cpu_count() or 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _in_parallel(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    doing: str,
) -> Iterator[tuple[Item, Result | BadImage]]:
    """Each item with what a function makes of it, or why it cannot; a few are made ahead."""

    def attempt(item: Item) -> Result | BadImage:
        try:
            return function(item)
        except BadImage as error:
            return error
        except OSError as error:  # gone since it was listed
            return BadImage(str(error.strerror))

    if not sys.stderr.isatty():
        _say(f"{doing} {len(items):,} images ...")
    with tqdm(total=len(items), desc=doing, unit="image", disable=None) as bar:
        for start in range(0, len(items), AHEAD):
            some = items[start : start + AHEAD]
            for item, result in zip(some, pool.map(attempt, some), strict=True):
                yield item, result
                bar.update()


def _scan(
    folder: Path, names: list[str], pool: ThreadPoolExecutor
) -> tuple[list[_File], dict[str, str]]:
    """What is to be known of each file before it is decoded, and why some are none."""
    roles = _roles(folder, names)

    def scan(name: str) -> _File:
        header = read_header(folder / name)
        with (folder / name).open("rb") as file:
            return _File(name, *roles[name], file_digest(file, "sha256").hexdigest(), header)

    files, bad = [], {}
    for name, found in _in_parallel(pool, scan, names, "reading"):
        if isinstance(found, BadImage):
            bad[name] = str(found)
        else:
            files.append(found)
    return files, bad


def _shape(folder: Path, files: Sequence[_File], decoding: Decoding) -> tuple[int, int, int]:
    """The shape (C, H, W) that all images are to have.

    Raises:
        InputError: If none is asked for and the images have several.
    """
    grey = all(f.header.grey for f in files) if decoding.grey is None else decoding.grey
    sizes = Counter(file.header.size for file in files)
    if decoding.size is None and len(sizes) > 1:
        most = ", ".join(f"{h}x{w} ({count})" for (h, w), count in sizes.most_common(3))
        raise InputError(
            f"The images of {folder} have {len(sizes)} different sizes, most often {most}.",
            "Give one for all of them, height x width, such as --size 64 or --size 48x64.",
        )
    height, width = decoding.size or next(iter(sizes))
    return (1 if grey else 3), height, width


def _in_splits(folder: Path, files: Sequence[_File]) -> tuple[list[_File], list[str]]:
    """The files split by split, by name in each, and the splits that were drawn.

    Raises:
        InputError: If there are splits, and no training set.
    """
    own = {file.split for file in files} - {None}
    if own and "train" not in own:
        raise InputError(
            f"{folder} has folders for splits, and none with images to train on.",
            "Put those into a folder named train.",
        )
    drawn = [split for split in SPLITS[1:] if split not in own]
    given = [file for file in files if file.split in SPLITS[1:]]
    placed = given + _draw(drawn, [file for file in files if file.split not in SPLITS[1:]])

    return sorted(placed, key=lambda file: (SPLITS.index(str(file.split)), file.name)), drawn


def _draw(splits: Sequence[str], files: Sequence[_File]) -> list[_File]:
    """Files in training, and a tenth of them in each of some splits, copies in the same one.

    The order that is cut is that of a hash of the contents' hashes. Of fewer than ten different
    files all are in training.
    """
    contents = {file.digest for file in files}
    order = sorted(contents, key=lambda digest: sha256(f"split 0 {digest}".encode()).digest())
    tenth = round(len(order) / 10) if len(order) >= 10 else 0
    drawn = {
        digest: split
        for index, split in enumerate(splits)
        for digest in order[index * tenth : (index + 1) * tenth]
    }
    return [file._replace(split=drawn.get(file.digest, "train")) for file in files]


# ── Words ────────────────────────────────────────────────────────────────────────────────────


def _unreadable(folder: Path, bad: Mapping[str, str]) -> InputError:
    """The error that lists files that cannot be read."""
    named = sorted(bad.items())
    listed = "; ".join(f"{_shown(name)} ({reason})" for name, reason in named[:NAMED_FILES])
    more = f"; and {len(named) - NAMED_FILES:,} more" if len(named) > NAMED_FILES else ""
    return InputError(
        f"In {folder} {_number(bad)} cannot be read: {listed}{more}.",
        "Mend or remove them, or go on without them: --skip-bad.",
    )


def _number(files: Mapping[str, str]) -> str:
    return f"{len(files):,} file{'s' if len(files) > 1 else ''}"


def _say(line: str) -> None:
    """Says something beside what a command prints, which a program may read."""
    print(line, file=sys.stderr, flush=True)

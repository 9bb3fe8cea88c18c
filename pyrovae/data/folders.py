"""Folders of images: decoded once, in parallel, into a cache that is mapped into memory."""

__all__ = ["read"]

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from pyrovae.data.decoding import BadImage, Decoding, decode, read_header
from pyrovae.data.image_cache import Cached, ImageFile, open_cache, place_of, write_cache
from pyrovae.data.listing import counted, list_images, roles_of, shown
from pyrovae.data.raw import SPLITS, Raw
from pyrovae.errors import InputError, unwritable

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
    files = list_images(folder)
    if not files:
        raise InputError(f"{folder} holds no images.", "Name a folder with files such as a.jpg.")
    place = place_of(folder, files, decoding)
    cached = open_cache(place) or _make(folder, [file.name for file in files], decoding, place)
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


def _make(folder: Path, names: list[str], decoding: Decoding, place: Path) -> Cached:
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

        def pixels(file: ImageFile) -> np.ndarray:
            return decode(folder / file.name, shape, pad=decoding.pad)

        results = _in_parallel(pool, pixels, ordered, "decoding")
        try:
            kept = write_cache(place, results, shape, decoding, drawn, bad)
        except OSError as error:
            what, instead = f"The cache {place}", "another folder for caches by XDG_CACHE_HOME"
            raise unwritable(InputError, what, error, instead) from error

    if not kept:
        raise _unreadable(folder, bad)
    cached = open_cache(place)
    if cached is None:
        raise InputError(f"The cache {place} has changed since it was written.", "Try again.")
    _say(f"cache    {cached.summary}")
    if several := sum(file.header.several for file in kept):
        _say(f"{several:,} of {len(kept):,} files have several frames: the first is taken")
    return cached


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
) -> tuple[list[ImageFile], dict[str, str]]:
    """What is to be known of each file before it is decoded, and why some are none."""
    roles = roles_of(folder, names)

    def scan(name: str) -> ImageFile:
        header = read_header(folder / name)
        with (folder / name).open("rb") as file:
            return ImageFile(name, *roles[name], file_digest(file, "sha256").hexdigest(), header)

    files, bad = [], {}
    for name, found in _in_parallel(pool, scan, names, "reading"):
        if isinstance(found, BadImage):
            bad[name] = str(found)
        else:
            files.append(found)
    return files, bad


def _shape(folder: Path, files: Sequence[ImageFile], decoding: Decoding) -> tuple[int, int, int]:
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


def _in_splits(folder: Path, files: Sequence[ImageFile]) -> tuple[list[ImageFile], list[str]]:
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


def _draw(splits: Sequence[str], files: Sequence[ImageFile]) -> list[ImageFile]:
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


def _unreadable(folder: Path, bad: Mapping[str, str]) -> InputError:
    """The error that lists files that cannot be read."""
    named = sorted(bad.items())
    listed = "; ".join(f"{shown(name)} ({reason})" for name, reason in named[:NAMED_FILES])
    more = f"; and {len(named) - NAMED_FILES:,} more" if len(named) > NAMED_FILES else ""
    return InputError(
        f"In {folder} {counted(bad)} cannot be read: {listed}{more}.",
        "Mend or remove them, or go on without them: --skip-bad.",
    )


def _say(line: str) -> None:
    """Says something beside what a command prints, which a program may read."""
    print(line, file=sys.stderr, flush=True)

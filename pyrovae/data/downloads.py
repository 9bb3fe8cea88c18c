"""Downloads: files from elsewhere, which are there whole and as they should be, or not at all."""

__all__ = ["OFFLINE", "Remote", "fetch"]

import os
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import IO, NamedTuple
from urllib.request import urlopen

from tqdm import tqdm

# Where this variable of the environment is set, nothing is downloaded.
OFFLINE = "PYROVAE_OFFLINE"
# How long to wait for an answer, over all addresses.
SECONDS = 10.0
CHUNK = 2**16
UNFINISHED = ".download-"


class Remote(NamedTuple):
    """A file that is to be had elsewhere.

    Attributes:
        name: Its name there, and here.
        size: Its size in bytes.
        sha256: The hash of its content.
    """

    name: str
    size: int
    sha256: str


def fetch(files: Sequence[Remote], addresses: Sequence[str], folder: Path) -> None:
    """Downloads the files that a folder lacks, from the first address that has them.

    A file is written under a temporary name, compared with its size and hash, and then renamed:
    what is there under its own name is what it should be, whatever address it came from.

    Args:
        files: The files.
        addresses: The addresses of folders that hold all of them, ending in a slash.
        folder: Where they are to lie.

    Raises:
        OSError: If no address gives what is expected, or the folder cannot be written.
    """
    if os.environ.get(OFFLINE):
        raise ConnectionError(f"{OFFLINE} is set")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file.name).is_file():
            _fetch_one(file, addresses, folder)


def _fetch_one(file: Remote, addresses: Sequence[str], folder: Path) -> None:
    for address in addresses:
        try:
            with urlopen(address + file.name, timeout=SECONDS / len(addresses)) as answer:
                _keep(answer, file, folder)
            return
        except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
            if address == addresses[-1]:
                raise OSError(str(error) or type(error).__name__) from error


def _keep(answer: IO[bytes], file: Remote, folder: Path) -> None:
    """Writes what arrives, if it is what was expected.

    Raises:
        OSError: If it is longer, shorter or another file, or cannot be written.
    """
    # A folder of its own, so that several processes may do this at once.
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as beside:
        path = Path(beside, file.name)
        with path.open("wb") as kept:
            digest = _copy(answer, kept, file)
            kept.flush()
            os.fsync(kept.fileno())
        if digest != file.sha256:
            raise OSError(f"{file.name} arrived other than it should be")
        os.replace(path, folder / file.name)


def _copy(answer: IO[bytes], kept: IO[bytes], file: Remote) -> str:
    """Copies what arrives, not much more of it than there should be, and gives its hash."""
    found, received = sha256(), 0
    if not sys.stderr.isatty():
        print(f"downloading {file.name} ({file.size / 1e6:.1f} MB) ...", file=sys.stderr)
    with tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
        while received <= file.size and (chunk := answer.read(CHUNK)):
            kept.write(chunk)
            found.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    return found.hexdigest()

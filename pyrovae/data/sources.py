"""Sources: where data come from, by name or by path, as arrays in their own units."""

__all__ = ["NAMED", "OFFLINE", "SPLITS", "Raw", "cache_folder", "data_folder", "read"]

import gzip
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data import counts, tables
from pyrovae.errors import InputError

# An array, or a matrix of scipy.sparse, and labels.
Split = tuple[Any, np.ndarray | None]
SPLITS = ("train", "valid", "test")
# Where this variable of the environment is set, nothing is downloaded.
OFFLINE = "PYROVAE_OFFLINE"


@dataclass(frozen=True)
class Raw:
    """Data as they were found.

    Attributes:
        splits: Arrays or sparse matrices (x, y or None) under train, valid and test, or under
            train alone where the source has no split of its own.
        maximum: The grey value that stands for one, where the data are grey images.
        binarize: The binarisation that the literature uses for the set, where there is one.
        columns: What the columns of a table hold.
        notes: What is to be known of how the data were read.
        held_out: How many examples it validates on, and as many it tests on, where it splits a
            set at random that has no split of its own.
        split_rule: The rule that made the splits, where it is none of the source's own.
        fingerprint: What tells the data from others, where that is known without reading them.
        cache: A phrase about the file that holds the arrays, where it was made of others.
    """

    splits: Mapping[str, Split]
    maximum: float | None = None
    binarize: str | None = None
    split_rule: str | None = None
    fingerprint: str | None = None
    cache: str | None = None
    columns: tuple[tables.Column, ...] | None = None
    notes: tuple[str, ...] = ()
    held_out: int | None = None


def cache_folder() -> Path:
    """Where pyrovae keeps what it can make again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

    return (cache / "pyrovae").expanduser()


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where named sets lie: the argument, `PYROVAE_DATA`, or the user's cache directory."""
    return Path(data_dir or os.environ.get("PYROVAE_DATA") or cache_folder()).expanduser()


def read(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    columns: tables.Asked = None,
) -> Raw:
    """Reads a named set, or a file: of arrays, of counts, or a table of such columns.

    Raises:
        InputError: If there is no such name or file, or it cannot be read.
    """
    if name in NAMED:
        return NAMED[name](data_folder(data_dir))

    path = Path(name).expanduser()
    if path.suffix.lower() in tables.SUFFIXES:
        table = tables.read(path, columns)
        return Raw({"train": (table.rows, None)}, columns=table.columns, notes=table.notes)
    if path.name.endswith(counts.SUFFIXES):
        return Raw({"train": counts.read(path)})
    if path.suffix not in (".npy", ".npz"):
        raise InputError(
            f"{name!r} is neither a named data set, nor a folder, nor a file of data: .npy, .npz, "
            f"{', '.join((*counts.SUFFIXES, *tables.SUFFIXES))}.",
            f"Take one of {', '.join(NAMED)}, or the path of a file or of a folder of images.",
        )
    return Raw(_read_arrays(path))


# ── Files ────────────────────────────────────────────────────────────────────────────────────


def _load(path: Path) -> Any:
    """An array, or a mapping of arrays; what is pickled is refused, not run."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Check the path.")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy raises ValueError, OSError, BadZipFile, EOFError, ...
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}).",
            "Write it again with numpy.save or numpy.savez, as plain numbers.",
        ) from error


def _read_arrays(path: Path) -> dict[str, Split]:
    found = _load(path)
    if isinstance(found, np.ndarray):
        return {"train": (found, None)}
    if counts.is_matrix(found):
        return {"train": counts.read_npz(path, found)}

    if "train" in found:
        return {
            split: (found[split], found.get(f"{split}_labels"))
            for split in SPLITS
            if split in found
        }

    labels = found.pop("y", None)
    if len(found) != 1 and "x" not in found:
        raise InputError(
            f"{path} holds the arrays {sorted(found)}, and none is named x.",
            "Name the observations x (and labels y), or the splits train, valid and test.",
        )
    return {"train": (found["x"] if "x" in found else next(iter(found.values())), labels)}


def _find(folder: Path, *names: str) -> Path | None:
    """The first of the files that lies in a folder, as it is or gzipped."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _read_idx(path: Path) -> np.ndarray:
    """An array in the idx format of MNIST: a magic number, the sizes, the bytes."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        rank = content[3]
        shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("no idx file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}).",
            "Remove it, so that it is downloaded again.",
        ) from error


# ── Named sets ───────────────────────────────────────────────────────────────────────────────


def _digits(folder: Path) -> Raw:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return Raw(
        {"train": (digits.images.astype(np.uint8), digits.target)}, maximum=16, binarize="dynamic"
    )


def _torchvision_mnist(class_name: str, subfolder: str) -> Callable[[Path], Raw]:
    """A member of the MNIST family: the raw files as they lie, or downloaded by torchvision.

    Its split: the last 10,000 training images are for validation, as in VampPrior's protocol.
    """
    files = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]

    def read_set(folder: Path) -> Raw:
        places = [folder / subfolder / "raw", folder / subfolder]
        # Four bare files directly in the folder can only be told apart from a sibling's by the
        # user, who named the folder; MNIST's own name is the one they carry.
        places += [folder] if class_name == "MNIST" else []
        place = next((p for p in places if all(_find(p, name) for name in files)), None)
        if place is None:
            _download(class_name, folder, files)
            place = places[0]

        x, y, x_test, y_test = (_read_idx(found) for n in files if (found := _find(place, n)))
        held_out = len(x) // 6
        return Raw(
            {
                "train": (x[:-held_out], y[:-held_out]),
                "valid": (x[-held_out:], y[-held_out:]),
                "test": (x_test, y_test),
            },
            maximum=255,
            binarize="dynamic",
        )

    return read_set


def _download(class_name: str, folder: Path, files: list[str]) -> None:
    import socket

    from torchvision import datasets

    limit = socket.getdefaulttimeout()
    try:
        if os.environ.get(OFFLINE):
            raise ConnectionError(f"{OFFLINE} is set")
        socket.setdefaulttimeout(10)
        folder.mkdir(parents=True, exist_ok=True)
        getattr(datasets, class_name)(str(folder), download=True)
    except Exception as error:  # urllib, ssl, the file system, a checksum: each its own kind
        raise InputError(
            f"{class_name} is not under {folder} and cannot be downloaded "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}).",
            f"Put {', '.join(files)} (or their .gz) into {folder / class_name / 'raw'}, name the "
            f"folder above {class_name} with --data-dir, or take --data digits, which needs no "
            "network.",
        ) from error
    finally:
        socket.setdefaulttimeout(limit)


def _binarized_mnist(folder: Path) -> Raw:
    """Larochelle's fixed binarisation, from the packed archive or from the three .amat files."""
    packed = folder / "binarized_mnist_larochelle.npz"
    if packed.is_file():
        found = _load(packed)
        height, width = found["shape"]
        bits = {
            split: np.unpackbits(found[f"{split}_packed"], axis=1, count=height * width)
            for split in SPLITS
        }
        labels = {"test": found.get("test_labels")}
        return Raw(
            {s: (b.reshape(-1, height, width), labels.get(s)) for s, b in bits.items()}, maximum=1
        )

    texts = {split: _find(folder, f"binarized_mnist_{split}.amat") for split in SPLITS}
    if not all(texts.values()):
        raise InputError(
            f"Larochelle's binarised MNIST is not under {folder}, and has no automatic source.",
            "Put binarized_mnist_{train,valid,test}.amat, or the packed .npz, there.",
        )
    return Raw(
        {
            split: (np.loadtxt(path, dtype=np.uint8).reshape(-1, 28, 28), None)
            for split, path in texts.items()
            if path is not None
        },
        maximum=1,
    )


def _frey_faces(folder: Path) -> Raw:
    """The frames of a video, 1,565 to train on and 200 and 200: VampPrior's protocol."""
    packed, matlab = folder / "frey_faces.npz", folder / "frey_rawface.mat"
    if packed.is_file():
        images = _load(packed)["images"]
    elif matlab.is_file():
        from scipy.io import loadmat

        images = loadmat(str(matlab))["ff"].T.reshape(-1, 28, 20)
    else:
        raise InputError(
            f"Frey Faces is not under {folder}, and has no automatic source.",
            "Put frey_faces.npz or frey_rawface.mat there, or name the folder with --data-dir.",
        )
    return Raw({"train": (images, None)}, maximum=255, held_out=200)


NAMED: dict[str, Callable[[Path], Raw]] = {
    "digits": _digits,
    "mnist": _torchvision_mnist("MNIST", "MNIST"),
    "fashion-mnist": _torchvision_mnist("FashionMNIST", "FashionMNIST"),
    "kmnist": _torchvision_mnist("KMNIST", "KMNIST"),
    "binarized-mnist": _binarized_mnist,
    "frey-faces": _frey_faces,
}

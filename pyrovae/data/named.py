"""Named sets: which files they are, where these come from, and what is read from them."""

__all__ = ["NAMED", "NamedSet"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.data.arrays import find, load, read_idx
from pyrovae.data.downloads import Remote, fetch
from pyrovae.data.raw import SPLITS, Raw
from pyrovae.errors import InputError, first_line, shorten


@dataclass(frozen=True)
class NamedSet:
    """A data set that is asked for by name.

    Attributes:
        title: What it is called.
        reader: What reads its files from the first of the places that has all of them.
        files: What they are, as they are to be had elsewhere.
        addresses: Where from; without any it has no automatic source.
        places: The folders in which they may lie, below that of data; downloads go to the first.
        others: Other files that will do, such as an archive of all of them.
    """

    title: str
    reader: Callable[[Path], Raw]
    files: tuple[Remote, ...] = ()
    addresses: tuple[str, ...] = ()
    places: tuple[str, ...] = (".",)
    others: tuple[str, ...] = ()

    def read(self, folder: Path) -> Raw:
        """Reads the set, after a download where it is not there.

        Raises:
            InputError: If it is not there and cannot be downloaded, or cannot be read.
        """
        for place in self.places:
            if self._is_in(folder / place):
                return self._read_in(folder / place)
        self._download(folder)
        return self._read_in(folder / self.places[0])

    def _read_in(self, place: Path) -> Raw:
        try:
            return self.reader(place)
        except InputError:
            raise
        except Exception as error:  # whatever numpy and scipy make of files that are others
            raise InputError(
                f"{self.title} in {place.resolve()} cannot be read ({type(error).__name__}: "
                f"{shorten(error)}).",
                "Remove its files there, and get them anew.",
            ) from error

    def _is_in(self, folder: Path) -> bool:
        if any(find(folder, name) for name in self.others):
            return True
        if not self.files:  # it comes with a library, or another file was wanted
            return not self.others
        return all(find(folder, file.name.removesuffix(".gz")) for file in self.files)

    def _download(self, folder: Path) -> None:
        place = (folder / self.places[0]).resolve()
        together = ", ".join(file.name for file in self.files)
        names = " or ".join(filter(None, (*self.others, together)))
        remedy = (
            f"Put {names} into {place}, name the folder of all data with --data-dir, or take "
            "--data digits, which needs no network."
        )
        if not self.addresses:
            raise InputError(
                f"{self.title} is not in {place}, and has no automatic source.", remedy
            )
        try:
            fetch(self.files, self.addresses, place)
        except OSError as error:  # urllib's errors, a checksum, the file system
            raise InputError(
                f"{self.title} is not in {place} and cannot be downloaded ({first_line(error)}).",
                remedy,
            ) from error


# ── What is read ─────────────────────────────────────────────────────────────────────────────


def _digits(_: Path) -> Raw:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return Raw(
        {"train": (digits.images.astype(np.uint8), digits.target)}, maximum=16, binarize="dynamic"
    )


IDX_NAMES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def _idx_images(folder: Path) -> Raw:
    """A member of the MNIST family.

    The last sixth of its training images is for validation, as in VampPrior's protocol.
    """
    x, y, x_test, y_test = (read_idx(found) for n in IDX_NAMES if (found := find(folder, n)))
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


PACKED_BITS = "binarized_mnist_larochelle.npz"


def _binarized_mnist(folder: Path) -> Raw:
    """Larochelle's fixed binarisation, from the packed archive or from the three .amat files."""
    if (folder / PACKED_BITS).is_file():
        found = load(folder / PACKED_BITS)
        height, width = found["shape"]
        bits = {
            split: np.unpackbits(found[f"{split}_packed"], axis=1, count=height * width)
            for split in SPLITS
        }
        labels = {"test": found.get("test_labels")}
        return Raw(
            {s: (b.reshape(-1, height, width), labels.get(s)) for s, b in bits.items()}, maximum=1
        )
    texts = {split: find(folder, f"binarized_mnist_{split}.amat") for split in SPLITS}
    return Raw({split: (_read_bits(str(text)), None) for split, text in texts.items()}, maximum=1)


def _read_bits(path: str) -> np.ndarray:
    """Images in a text of zeros and ones, (N, 28, 28)."""
    try:
        return np.loadtxt(path, dtype=np.uint8).reshape(-1, 28, 28)
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read ({error}).", "Remove it, so that it is downloaded again."
        ) from error


def _frey_faces(folder: Path) -> Raw:
    """The frames of a video, 1,565 to train on and 200 and 200: VampPrior's protocol."""
    packed = folder / "frey_faces.npz"
    if packed.is_file():
        images = load(packed)["images"]
    else:
        from scipy.io import loadmat

        found = loadmat(str(folder / "frey_rawface.mat"), variable_names=["ff"])
        images = found["ff"].T.reshape(-1, 28, 20)
    return Raw({"train": (images, None)}, maximum=255, held_out=200)


# ── The sets ─────────────────────────────────────────────────────────────────────────────────


def _of_mnists_family(
    title: str, folder: str, addresses: tuple[str, ...], known: tuple[tuple[int, str], ...]
) -> NamedSet:
    """A set of four idx files, where torchvision keeps them or directly in its folder."""
    files = [Remote(f"{n}.gz", *told) for n, told in zip(IDX_NAMES, known, strict=True)]
    # Four bare files directly in the folder can only be told apart from a sibling's by the user,
    # who named the folder; MNIST's own name is the one they carry.
    bare = (".",) if folder == "MNIST" else ()
    return NamedSet(title, _idx_images, tuple(files), addresses, (f"{folder}/raw", folder, *bare))


NAMED: dict[str, NamedSet] = {
    "digits": NamedSet("The digits of scikit-learn", _digits),
    "mnist": _of_mnists_family(
        "MNIST",
        "MNIST",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        (
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion-mnist": _of_mnists_family(
        "Fashion-MNIST",
        "FashionMNIST",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        (
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "kmnist": _of_mnists_family(
        "KMNIST",
        "KMNIST",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        (
            (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
    ),
    "binarized-mnist": NamedSet(
        "Larochelle's binarised MNIST",
        _binarized_mnist,
        (
            Remote(
                "binarized_mnist_train.amat",
                78400000,
                "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
            ),
            Remote(
                "binarized_mnist_valid.amat",
                15680000,
                "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
            ),
            Remote(
                "binarized_mnist_test.amat",
                15680000,
                "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
            ),
        ),
        ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",),
        others=(PACKED_BITS,),
    ),
    "frey-faces": NamedSet(
        "Frey Faces", _frey_faces, others=("frey_faces.npz", "frey_rawface.mat")
    ),
}

"""Decoding: from an image file of any kind to 8-bit pixels of one shape.

Orientation tags are applied. Transparent pixels are laid over white. CMYK, palettes and the like
become RGB, 16-bit grey values are scaled to 8 bits, and of a file with several frames the first
is taken.
"""

__all__ = ["BadImage", "Decoding", "Header", "decode", "is_image_name", "read_header"]

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pyrovae.errors import InputError

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
# Formats whose grey values Pillow may hold in 32 bits and which have 16 at most.
SIXTEEN_BIT = frozenset({"PNG", "PPM"})


class BadImage(Exception):
    """A file that cannot be read as an image, in a phrase that says why."""


class Header(NamedTuple):
    """What the first bytes of an image tell.

    Attributes:
        size: The height and the width, as the image is to be looked at.
        grey: Whether it has no colour.
        several: Whether it has more than one frame.
    """

    size: tuple[int, int]
    grey: bool
    several: bool


@dataclass(frozen=True)
class Decoding:
    """What is made of the images of a folder.

    Args:
        size: The height and the width that all are scaled to: two numbers, one for both, or as
            they are typed, "64" or "48x64". The shorter side is scaled and the centre is cut
            out. If None, the images' own, which must then be one.
        pad: Whether to scale the longer side instead, and fill up with black.
        grey: Whether to make them grey (True) or of three colours (False). If None, they are
            grey where all of them are.
        skip_bad: Whether to go on without files that cannot be read.

    Raises:
        InputError: If the size is none, or there is none to pad to.

    Example:
        >>> Decoding("48x64").size
        (48, 64)
    """

    size: Any = None
    pad: bool = False
    grey: bool | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", _parse_size(self.size))
        elif self.pad:
            raise InputError("There is no size to pad to.", "Give one, such as --size 64.")


def _parse_size(size: Any) -> tuple[int, int]:
    words = re.findall(r"\d+", size) if isinstance(size, str) else np.atleast_1d(size).tolist()
    understood = not isinstance(size, str) or re.fullmatch(r"\d+(x\d+)?", size)
    if not understood or len(words) not in (1, 2) or not all(int(word) > 0 for word in words):
        raise InputError(
            f"{size!r} is no size of images.",
            "Give the side of a square, such as 64, or height x width, such as 48x64.",
        )
    return int(words[0]), int(words[-1])


# ── Files ────────────────────────────────────────────────────────────────────────────────────


@cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow reads by itself: for EPS it would run another program."""
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


@cache
def _suffixes() -> frozenset[str]:
    found = Image.registered_extensions()
    return frozenset(suffix for suffix, name in found.items() if name in _formats())


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in _suffixes()


def read_header(path: Path) -> Header:
    """What can be told of an image without decoding it.

    Raises:
        BadImage: If it is none, or one with more pixels than Pillow's `MAX_IMAGE_PIXELS`.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        # Pillow itself turns a TIFF.
        if turned and image.format != "TIFF":
            width, height = height, width
        several = bool(getattr(image, "is_animated", False))
        return Header((height, width), image.mode in GREY_MODES, several)


def decode(
    source: Path | BinaryIO, shape: tuple[int, int, int], *, pad: bool = False
) -> np.ndarray:
    """The pixels of an image, (C, H, W) in uint8.

    Args:
        source: The file, or what is in it.
        shape: The shape (C, H, W), of 1 or 3 channels. The shorter side is scaled and the centre
            is cut out.
        pad: Whether to scale the longer side instead, and fill up with black.

    Raises:
        BadImage: If it cannot be read whole.
    """
    channels, height, width = shape
    with _opened(source) as image:
        # A JPEG is decoded at the least eighth of its size that is still twice what is needed.
        side = 2 * max(height, width)
        image.draft(None, (side, side))
        if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BIT):
            raise BadImage(f"values of 32 bits (mode {image.mode}), which have no scale")
        flat = _flatten(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
        if flat.size != (width, height):
            resize = ImageOps.pad if pad else ImageOps.fit
            flat = resize(flat, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(flat).reshape(height, width, channels)

    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """An image, and whatever is wrong with it as one kind of error."""
    try:
        if isinstance(source, Path) and (source.is_dir() or not source.is_file()):
            raise BadImage("not a file")
        with Image.open(source, formats=_formats()) as image:
            _refuse_bomb(image)
            yield image
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("an empty file" if _size(source) == 0 else "not an image") from None
    except Exception as error:  # each of Pillow's formats raises errors of its own kinds
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(said.splitlines()[0]) from None


def _size(source: Path | BinaryIO) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, os.SEEK_END)


def _refuse_bomb(image: Image.Image) -> None:
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise BadImage(
            f"{pixels:,} pixels exceed the limit of {most:,}, could be a decompression bomb"
        )


# ── Pixels ───────────────────────────────────────────────────────────────────────────────────


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """An image of whatever mode as 8-bit grey or RGB, without transparency."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits scaled to 8."""
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))

"""Placing: a drawing is put where the data have theirs, as those of MNIST are in their images."""

__all__ = ["Placing"]

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# A drawing is on paper where so large a share of the values are the darkest, or the brightest.
PAPER = 0.3
# How far apart, as a share of the image, the centres of nine tenths of the drawings may lie.
SPREAD = 0.2
# The share of black to white from which a value is ink.
INK = 0.1


@dataclass(frozen=True)
class Placing:
    """Where the ink of a data set's images is.

    Attributes:
        size: The height and the width of an image.
        side: The longer side of what is drawn, in pixels: the median.
        centre: Its centre of mass, (down, across) in pixels: the median.
        bright: Whether the ink is bright on dark paper.
    """

    size: tuple[int, int]
    side: int
    centre: tuple[float, float]
    bright: bool

    @classmethod
    def of(cls, images: Tensor) -> "Placing | None":
        """Where it is in images (N, H, W) from 0 to 1, if they are drawings centred alike."""
        bright = bool((images <= 0).float().mean() >= PAPER)
        if not bright and (images >= 1).float().mean() < PAPER:
            return None
        ink = images if bright else 1 - images
        ink = ink[ink.amax((1, 2)) > INK]
        if not len(ink):
            return None

        height, width = ink.shape[1:]
        centres = torch.stack(
            [_centre(ink.sum(2)) / max(1, height - 1), _centre(ink.sum(1)) / max(1, width - 1)]
        )
        near, far = torch.quantile(centres, torch.tensor([0.05, 0.95]), dim=1)
        if (far - near).max() > SPREAD:
            return None
        down, across = centres.median(1).values.tolist()
        marked = ink > INK
        sides = torch.maximum(_extent(marked.any(2)), _extent(marked.any(1)))
        return cls(
            (height, width),
            int(sides.median()),
            (down * (height - 1), across * (width - 1)),
            bright,
        )

    def place(self, drawing: np.ndarray) -> np.ndarray:
        """A drawing (h, w) in uint8 at the size and the centre of the data's, (H, W).

        What is drawn on nothing stays so; what would lie outside is cut off.
        """
        ink = drawing if self.bright else 255 - drawing
        height, width = self.size
        placed = Image.new("L", (width, height))
        rows, columns = (np.flatnonzero((ink > 255 * INK).any(axis)) for axis in (1, 0))
        if len(rows):
            cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
            scale = self.side / max(cut.size)
            scaled = cut.resize(
                (max(1, round(scale * cut.width)), max(1, round(scale * cut.height))),
                Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC,
            )
            mass = torch.from_numpy(np.asarray(scaled).astype(np.float32))
            down = round(self.centre[0] - float(_centre(mass.sum(1)[None])))
            across = round(self.centre[1] - float(_centre(mass.sum(0)[None])))
            placed.paste(scaled, (across, down))
        pixels = np.asarray(placed)
        return pixels if self.bright else 255 - pixels


def _centre(profiles: Tensor) -> Tensor:
    """The centres of mass of profiles (N, L): (N,)."""
    places = torch.arange(profiles.shape[1], dtype=profiles.dtype)
    return (profiles * places).sum(1) / profiles.sum(1)


def _extent(marked: Tensor) -> Tensor:
    """From the first to the last mark of each row (N, L), both included: (N,)."""
    length = marked.shape[1]
    marks = marked.float()
    return length - marks.argmax(1) - marks.flip(1).argmax(1)

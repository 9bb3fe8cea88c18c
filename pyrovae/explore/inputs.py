"""Inputs: from what a person gives a page to a program's x, and from x to what a page shows.

A file becomes an observation exactly as one of a folder of images would; a drawing is first put
where the data have theirs. Nothing is read but the bytes that were given.
"""

__all__ = ["Inputs"]

import base64
import io
import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyrovae.data import Batch, Binarize, Dequantize, Examples, Standardize
from pyrovae.data.decoding import BadImage, decode
from pyrovae.data.tables import Column
from pyrovae.errors import InputError
from pyrovae.explore.placing import Placing
from pyrovae.runs import Run, columns_of

# How many examples are looked at to learn the units of the data, and the side of a drawing.
LOOKED_AT = 1000
CANVAS = 280


class Inputs:
    """What a run takes and shows, in the data's own units.

    Args:
        run: A run with its data.

    Attributes:
        examples: The examples that it is shown on.
        shape: That of a picture, (C, H, W) with 1, 3 or 4 channels; None where an observation
            is shown as a chart.
        columns: What an observation's entries are called and hold, where it is a row of a table.
        low: The value of the data that is drawn black, or lowest.
        high: The value of the data that is drawn white, or highest.
    """

    def __init__(self, run: Run) -> None:
        self.examples = run.measured
        self.preprocessing = run.preprocessing
        self.shape = _picture_shape(self.examples.x_shape)
        self.columns = columns_of(run.config["data"])
        self._pad = bool((run.config["data"].get("images") or {}).get("pad"))
        self.low, self.high = self._range()

    # ── From a person ──

    def example(self, index: Any) -> Batch:
        """One of the examples.

        Raises:
            InputError: If there is no such example.
        """
        count = len(self.examples)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise InputError(f"There is no example {index!r}.", f"Take one of 0 to {count - 1}.")
        return next(self.examples.chosen(torch.tensor([index]), 1))

    def file(self, content: bytes) -> Batch:
        """An image file of any kind, scaled and cropped as the data of the run were.

        Raises:
            InputError: If it cannot be read, or the data are no images.
        """
        _, height, width = self._image_shape()
        return self._given(self._decoded(content, (height, width)))

    def drawing(self, content: bytes) -> Batch:
        """A drawing in the values that `paper` and ink have in the data, as an image file.

        Raises:
            InputError: If it cannot be read, or the data are no images.
        """
        if self.placing is None:
            return self.file(content)
        height, width = self.placing.size
        scale = CANVAS / max(height, width)
        drawn = self._decoded(content, (round(scale * height), round(scale * width)))
        return self._given(self.placing.place(drawn[0])[None])

    def numbers(self, values: Any) -> Batch:
        """One observation as numbers, in the data's own units; None is a missing entry.

        Raises:
            InputError: If they are too few or too many, or some are no numbers.
        """
        shape = self.examples.x_shape
        size = math.prod(shape)
        if not isinstance(values, list) or len(values) != size:
            found = len(values) if isinstance(values, list) else "no"
            raise InputError(f"There are {found} numbers.", f"Give {size}, with commas between.")
        if not all(_is_number(value) or value is None for value in values):
            raise InputError("Not all of these are finite numbers.", "Give numbers alone.")
        if None in values and not self.examples.missing:
            raise InputError(
                f"Entry {values.index(None)} is missing, which the run's data have none of.",
                "Give a number for it.",
            )
        numbers = [math.nan if value is None else float(value) for value in values]
        return self._as_examples(torch.tensor(numbers).reshape(shape))

    def _decoded(self, content: bytes, size: tuple[int, int]) -> np.ndarray:
        channels = 1 if self._image_shape()[0] == 1 else 3
        try:
            return decode(io.BytesIO(content), (channels, *size), pad=self._pad)
        except BadImage as error:
            raise InputError(
                f"The file cannot be read: {error}.", "Give an image, such as a PNG or a JPEG."
            ) from error

    def _image_shape(self) -> tuple[int, int, int]:
        if self.shape is None:
            raise InputError("The run's data are no images.", "Give numbers.")
        return self.shape

    def _given(self, pixels: np.ndarray) -> Batch:
        """Pixels (C, H, W) from 0 to 255 as an observation."""
        if self._image_shape()[0] == 4:
            pixels = np.concatenate([pixels, np.full_like(pixels[:1], 255)])
        # A copy: what Pillow holds may be read alone.
        values = torch.from_numpy(pixels.copy()).reshape(self.examples.x_shape)
        if (self.low, self.high) != (0, 255):
            values = self.low + values.float() / 255 * (self.high - self.low)
        return self._as_examples(values.round() if self._whole else values)

    def _as_examples(self, raw: Tensor) -> Batch:
        found = Examples(
            raw[None],
            preprocessing=self.preprocessing,
            missing=self.examples.missing,
            split="test",
            seed=self.examples.seed,
        )
        self.preprocessing.check(raw[None])
        found.dtype = self.examples.dtype
        return found.to(self.examples.device).head(1)

    # ── What the data are like ──

    @cached_property
    def _some(self) -> Tensor:
        """The first examples in the data's own units."""
        count = min(LOOKED_AT, len(self.examples), max(1, self.examples.block))
        return self.examples.raw(torch.arange(count)).x.cpu().float()

    @cached_property
    def _whole(self) -> bool:
        """Whether the data are whole numbers, among which are those that are 0 or 1."""
        return bool((self._some.nan_to_num(0) % 1 == 0).all())

    @cached_property
    def placing(self) -> "Placing | None":
        """Where the data have their ink, where they are drawings of one colour."""
        if self.shape is None or self.shape[0] != 1:
            return None
        some = self._some.reshape(-1, *self.shape[1:])
        return Placing.of((some - self.low) / (self.high - self.low))

    @property
    def paper(self) -> int:
        """The grey value, from 0 to 255, of what drawings are drawn on."""
        return 255 if self.placing is not None and not self.placing.bright else 0

    def _range(self) -> tuple[float, float]:
        """The least and the greatest value of the data's scale."""
        if self.shape is not None:
            if isinstance(self.preprocessing, Binarize):
                return 0.0, self.preprocessing.maximum
            if isinstance(self.preprocessing, Dequantize):
                return 0.0, self.preprocessing.levels - 1.0
        seen = self._some if self.shape is not None else self._seen(self._some)
        low, high = (float(bound) for bound in seen[seen.isfinite()].aminmax())
        if self.shape is not None and self._whole and low >= 0 and 1 < high <= 255:
            return 0.0, 255.0 if high > 127 else high
        return (low, high) if low < high else (low - 1, high + 1)

    def _seen(self, values: Tensor) -> Tensor:
        """Values as a chart has them: standardised ones have no other unit in common."""
        if not isinstance(self.preprocessing, Standardize):
            return values
        return self.preprocessing.apply(values, None)

    # ── For the page ──

    def shown(self, x: Tensor) -> dict[str, Any]:
        """What a page shows of one x: `image`, a PNG as a URL; or the `values` of a chart.

        The values are in the data's own units; `heights` are those of their bars, which are
        standardised where the data were. Of a table there are `texts` as well, in its own words.
        """
        x = x.detach().cpu().float()
        raw = self.preprocessing.invert(x)
        if self.shape is not None:
            return {"image": _png(self._pixels(raw.reshape(self.shape)))}
        if self.columns is not None:
            texts = [_text(*pair) for pair in zip(self.columns, raw.tolist(), strict=True)]
            return {"values": _rounded(raw), "texts": texts}
        values, heights = raw.flatten(), self._seen(raw[None])[0].flatten()
        same = torch.equal(values.nan_to_num(), heights.nan_to_num())
        return {"values": _rounded(values), **({} if same else {"heights": _rounded(heights)})}

    def describe_columns(self) -> list[dict[str, Any]] | None:
        """The columns of a table, each with the range of its entries; None of other data."""
        if self.columns is None:
            return None
        low = _rounded(self._some.nan_to_num(math.inf).amin(0))
        high = _rounded(self._some.nan_to_num(-math.inf).amax(0))
        return [
            {"name": c.name, "categories": c.categories, "low": least, "high": most}
            for c, least, most in zip(self.columns, low, high, strict=True)
        ]

    def _pixels(self, raw: Tensor) -> np.ndarray:
        """Bytes (H, W) or (H, W, 3), what is transparent on white."""
        share = ((raw - self.low) / (self.high - self.low)).nan_to_num(0).clamp(0, 1)
        if len(share) == 4:
            share = share[:3] * share[3:] + (1 - share[3:])
        pixels = (255 * share).round().byte().numpy()
        return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def _picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    if len(shape) == 2:
        return (1, *shape)
    return shape if len(shape) == 3 and shape[0] in (1, 3, 4) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < torch.finfo(torch.float32).max


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _text(column: Column, value: float) -> str:
    """An entry in words: a category, with its probability where it has two, or a number."""
    if not column.categories and not column.whole and math.isfinite(value):
        return f"{value:.4g}"
    share = max(value, 1 - value)
    likely = f", {share:.0%}" if column.codes == 2 and 0.5 <= share < 1 else ""
    return column.text(value) + likely


def _rounded(values: Tensor) -> list[float | None]:
    """Numbers of six digits, of which JSON has no infinite ones."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]

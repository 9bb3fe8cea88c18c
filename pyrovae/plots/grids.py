"""Grids of examples: images, or vectors as lines or strips of colour."""

__all__ = ["Picture", "grid"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.tables import Column, write
from pyrovae.errors import InputError
from pyrovae.plots.saving import save_arrays, save_png, save_text
from pyrovae.plots.style import BLUE, DPI, FAINT, MUTED, RULE, figure_of, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The size of a grid in pixels: what it aims at, and what it never exceeds.
GRID_WIDTH, GRID_HEIGHT, GRID_LIMIT = 1200, 1000, 1400
CELL, LARGEST = 168, 1500
LINE_FEATURES = 64


@dataclass(frozen=True, eq=False)
class Picture:
    """Generated data with the figure that shows them; a notebook displays it.

    Attributes:
        x: The data, in the data's own units.
        figure: The figure.
        caption: One sentence that says what is to be seen.
        columns: What the columns hold, where the data are rows of a table.
        labels: Which row of the table is which: further columns, by name, of an entry for each.
    """

    x: Tensor = field(repr=False)
    figure: "Figure" = field(repr=False)
    caption: str
    columns: Sequence[Column] | None = None
    labels: Mapping[str, "Sequence[Any] | np.ndarray"] | None = field(default=None, repr=False)

    def save(self, path: str | Path) -> Path:
        """Writes the figure as a PNG of 150 dots per inch.

        Under a name in .npz it writes the data, x, and under one in .csv the rows of a table.

        Raises:
            InputError: If the file is named otherwise, or cannot be written.
        """
        if self.columns and Path(path).suffix == ".csv":
            rows = self.x.flatten(0, -2)
            if self.labels is None:
                # A row of the grid that is short is filled up with rows of nothing.
                rows = rows[~rows.isnan().all(-1)]
            return save_text(path, write(self.columns, rows.numpy(), self.labels))
        if Path(path).suffix == ".npz":
            return save_arrays(path, {"x": self.x})
        return save_png(path, self.figure)

    def _repr_png_(self) -> bytes:
        return png(self.figure)


def grid(
    x: Tensor,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    caption: str = "",
) -> "Figure":
    """Examples in rows and columns, all on one scale.

    Args:
        x: Images (R, C, channels, height, width) with 1 channel (grey), 3 or 4 (colour); or
            vectors (R, C, X), each drawn as a line, or as a strip of colours if X > 64.
        rows: R labels, written at the left.
        columns: C labels, written on top.
        low: The value drawn black, or lowest; the least of the grid if None.
        high: The value drawn white, or highest; the greatest of the grid if None.
        caption: A line beneath the grid.

    Raises:
        InputError: If x is of another shape, or has another number of rows or columns than
            there are labels.
    """
    _check_grid(x, rows, columns)
    values = x.detach().to("cpu", torch.float32)
    low, high = _range(values, low, high)

    if x.dim() == 3 and x.shape[-1] <= LINE_FEATURES:
        caption = f"{caption} Height of every cell: {_span(low, high)}.".strip()
        return _line_grid(values, (rows, columns), low, high, caption)
    shown = (values - low) / (high - low)
    if x.dim() == 3:
        caption = f"{caption} Colours from dark to bright: {_span(low, high)}.".strip()
        return _tile_grid(_strip_cells(shown), (rows, columns), caption)
    return _tile_grid(_image_cells(shown), (rows, columns), caption)


_Labels = tuple[Sequence[str] | None, Sequence[str] | None]


def _check_grid(x: Tensor, rows: Sequence[str] | None, columns: Sequence[str] | None) -> None:
    shape = tuple(x.shape)
    if x.dim() not in (3, 5) or 0 in shape:
        raise InputError(
            f"A grid of shape {shape} cannot be drawn.",
            "Give images (rows, columns, channels, height, width) or vectors (rows, columns, X).",
        )
    if x.dim() == 5 and shape[2] not in (1, 3, 4):
        raise InputError(
            f"Images with {shape[2]} channels cannot be drawn.",
            "Give 1 channel for grey, or 3 or 4 for colour.",
        )
    for name, labels, size in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if labels is not None and len(labels) != size:
            raise InputError(
                f"There are {len(labels)} {name} labels for {size} {name}s.",
                f"Give one label for each {name}, or none.",
            )


def _range(values: Tensor, low: float | None, high: float | None) -> tuple[float, float]:
    """The limits of the scale, never equal."""
    # Transparency has a scale of its own.
    seen = values[:, :, :3] if values.dim() == 5 else values
    seen = seen[seen.isfinite()]
    if not len(seen):
        seen = torch.zeros(1)

    least = seen.min().item() if low is None else low
    greatest = seen.max().item() if high is None else high
    return (least, greatest) if least < greatest else (min(least, 0.0), max(greatest, 1.0))


def _image_cells(shown: Tensor) -> np.ndarray:
    """Images (R, C, channels, H, W) -> enlarged pixels (R, C, h, w, 3)."""
    count_rows, count_columns, channels, height, width = shown.shape
    colour = shown[:, :, :3].nan_to_num(0).clamp(0, 1).expand(-1, -1, 3, -1, -1)
    if channels == 4:
        # On white, like the page beneath.
        opacity = shown[:, :, 3:].nan_to_num(0).clamp(0, 1)
        colour = colour * opacity + (1 - opacity)

    full_width, full_height = count_columns * width, count_rows * height
    scale = min(
        round(GRID_WIDTH / full_width),
        round(GRID_HEIGHT / full_height),
        GRID_LIMIT // max(full_width, full_height),
        CELL // max(height, width),
    )
    pixels = (255 * colour).round().byte().movedim(2, -1).numpy()
    return pixels.repeat(max(1, scale), axis=2).repeat(max(1, scale), axis=3)


def _strip_cells(shown: Tensor) -> np.ndarray:
    """Vectors (R, C, X) -> strips of colours (R, C, h, w, 3)."""
    from matplotlib import colormaps

    count_rows, count_columns, _ = shown.shape
    width = max(24, GRID_WIDTH // count_columns)
    height = max(12, min(36, GRID_HEIGHT // count_rows))
    resized = torch.nn.functional.adaptive_avg_pool1d(shown.nan_to_num(0), width)
    colours = colormaps["viridis"](resized.clamp(0, 1).numpy(), bytes=True)[..., :3]
    return colours[:, :, None].repeat(height, axis=2)


def _tile_grid(cells: np.ndarray, labels: _Labels, caption: str) -> "Figure":
    """Cells (R, C, h, w, 3) side by side, every pixel of theirs a pixel of the picture."""
    count_rows, count_columns, height, width, _ = cells.shape
    gap = min(3, max(1, min(height, width) // 12))
    canvas = np.empty((count_rows, height + gap, count_columns, width + gap, 3), np.uint8)
    canvas[...] = tuple(bytes.fromhex(RULE[1:]))
    canvas[:, :height, :, :width] = cells.swapaxes(1, 2)
    canvas = canvas.reshape(count_rows * (height + gap), count_columns * (width + gap), 3)
    canvas = canvas[:-gap, :-gap]

    full_height, full_width = canvas.shape[:2]
    axes = _canvas(full_width, full_height, (count_rows, count_columns), labels, caption)
    axes.imshow(
        canvas,
        extent=(0, full_width, full_height, 0),
        aspect="auto",
        interpolation="nearest" if max(canvas.shape) <= LARGEST else "antialiased",
    )
    return figure_of(axes)


def _line_grid(values: Tensor, labels: _Labels, low: float, high: float, caption: str) -> "Figure":
    """Vectors (R, C, X) as lines, all in one collection: 400 axes would take seconds."""
    from matplotlib.collections import LineCollection

    count_rows, count_columns, features = values.shape
    width = min(240, GRID_WIDTH // count_columns)
    height = min(round(0.6 * width), max(24, GRID_HEIGHT // count_rows))
    size = (count_columns * width, count_rows * height)
    axes = _canvas(*size, (count_rows, count_columns), labels, caption)

    left = width * np.arange(count_columns)[:, None]
    top = height * np.arange(count_rows)[:, None, None]
    # A single feature becomes a level line.
    points = np.repeat(values.numpy(), 2, axis=-1) if features == 1 else values.numpy()
    across = left + np.linspace(0.08, 0.92, points.shape[-1]) * width
    down = top + (0.9 - 0.8 * (points - low) / (high - low)) * height
    for row in range(count_rows):
        for column in range(count_columns):
            corner = (column * width + 2, row * height + 2)
            axes.add_patch(_box(corner, width - 4, height - 4))
    if low < 0 < high:
        zero = height * (np.arange(count_rows) + 0.9 + 0.8 * low / (high - low))
        axes.hlines(zero, 0, size[0], color=RULE, linewidth=0.6)

    lines = np.stack(np.broadcast_arrays(across[None], down), axis=-1)
    axes.add_collection(
        LineCollection(list(lines.reshape(-1, points.shape[-1], 2)), colors=BLUE, linewidths=1.1)
    )
    return figure_of(axes)


def _box(corner: tuple[float, float], width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=FAINT, edgecolor="none", zorder=0)


def _span(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}".replace("-", "−")


def _canvas(
    width: int, height: int, cells: tuple[int, int], labels: _Labels, caption: str
) -> "Axes":
    """Axes of so many pixels, without ticks, in a figure with room for the labels."""
    from matplotlib.figure import Figure

    rows, columns = labels
    shrink = min(1.0, LARGEST / max(width, height))
    shown = (round(width * shrink), round(height * shrink))
    cell = (shown[0] / cells[1], shown[1] / cells[0])
    turned = columns is not None and max(map(_text_width, columns)) > cell[0]

    left = 0 if rows is None else max(map(_text_width, rows)) + 16
    top = 0 if columns is None else max(map(_text_width, columns)) + 12 if turned else 30
    lines = _wrap(caption, left + shown[0])
    bottom = 12 + 26 * len(lines) if lines else 0
    total = (left + shown[0], top + shown[1] + bottom)

    # A hundredth of a pixel more: rounding must not lose one.
    figure = Figure(figsize=((total[0] + 0.01) / DPI, (total[1] + 0.01) / DPI), dpi=DPI)
    figure.set_facecolor("white")
    box = (left / total[0], bottom / total[1], shown[0] / total[0], shown[1] / total[1])
    axes = figure.add_axes(box)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()

    for index, label in enumerate(rows or ()):
        down = top + (index + 0.5) * cell[1]
        place = ((left - 12) / total[0], 1 - down / total[1])
        _write(figure, place, label, ha="right", va="center_baseline")
    for index, label in enumerate(columns or ()):
        place = ((left + (index + 0.5) * cell[0]) / total[0], 1 - (top - 8) / total[1])
        _write(figure, place, label, ha="center", va="bottom", rotation=90 if turned else 0)
    if lines:
        place = (left / total[0], (bottom - 12) / total[1])
        _write(figure, place, "\n".join(lines), va="top", linespacing=1.3)
    return axes


def _write(figure: "Figure", place: tuple[float, float], text: str, **how: Any) -> None:
    # A label is data: a dollar sign in it starts no formula.
    figure.text(*place, text, fontsize=9, color=MUTED, parse_math=False, **how)


def _text_width(text: str) -> int:
    """The width of a label in pixels."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    # By what draws it: letters that are set on whole pixels are wider than their outlines.
    drawn = RendererAgg(1, 1, DPI)
    width, _, _ = drawn.get_text_width_height_descent(text, FontProperties(size=9), False)
    return math.ceil(width)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of a text that fit into a width in pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

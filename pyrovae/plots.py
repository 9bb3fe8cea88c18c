"""Pictures: image grids, training curves, the latent space, KL by dimension, log p(x).

A figure is a `matplotlib.figure.Figure` of its own: no backend is chosen, no window opened, no
global setting changed, and the style is set on the figure rather than in matplotlib's rcParams.
"""

__all__ = ["Picture", "curves", "grid", "kl_bars", "latent_scatter", "png", "weights"]

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovae.evaluation import Evaluation

DPI = 150
INK, MUTED, RULE, FAINT = "#2b2f36", "#69707d", "#e3e5e9", "#f5f6f8"
# Observable's ten: told apart on screen, in print and by most colour-blind readers.
PALETTE = (
    *("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951"),
    *("#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"),
)
BLUE, AMBER = PALETTE[:2]
GREY = "#b6bbc4"
DASHED = (0, (4, 3))

# The size of a grid in pixels: what it aims at, and what it never exceeds.
GRID_WIDTH, GRID_HEIGHT, GRID_LIMIT = 1200, 1000, 1400
CELL, LARGEST = 168, 1500
LINE_FEATURES = 64
# Above this, the points of a scatter are pixels even in a vector format.
VECTOR_POINTS = 2000
ACTIVE_KL = 0.01


@dataclass(frozen=True, eq=False)
class Picture:
    """Generated data with the figure that shows them; a notebook displays it.

    Attributes:
        x: The data, in the data's own units.
        figure: The figure.
        caption: One sentence that says what is to be seen.
    """

    x: Tensor = field(repr=False)
    figure: "Figure" = field(repr=False)
    caption: str

    def save(self, path: str | Path) -> Path:
        """Writes the figure as a PNG of 150 dots per inch.

        Raises:
            InputError: If the file cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(self.figure))
        except OSError as error:
            raise InputError(
                f"The picture {path} cannot be written ({error.strerror or error}).",
                "Free some space or choose another path.",
            ) from error
        return path

    def _repr_png_(self) -> bytes:
        return png(self.figure)


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG of 150 dots per inch."""
    file = io.BytesIO()
    # Without matplotlib's name and address, so that equal figures give equal bytes.
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


# ── Grids of examples ────────────────────────────────────────────────────────────────────────


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
    return _figure_of(axes)


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
    return _figure_of(axes)


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
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    width, _, _ = TextToPath().get_text_width_height_descent(text, FontProperties(size=9), False)
    return math.ceil(width * DPI / 72)


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


# ── Training ─────────────────────────────────────────────────────────────────────────────────


def curves(metrics: Sequence[Mapping[str, Any]]) -> "Figure":
    """Training over epochs: the ELBO, its two terms, and the norm of the gradient.

    Args:
        metrics: A record for each epoch with the keys "epoch", "train_elbo", "valid_elbo",
            "log_likelihood", "kl", "grad_norm" and "kl_weight". All but the first may be absent
            or None.

    Raises:
        InputError: If there is no record.
    """
    if not metrics:
        raise InputError("There is no epoch to draw.", "Train for at least one epoch.")

    figure, (elbo, log_likelihood, kl, norm) = _panels(2, 2, size=(7.6, 4.6))
    _draw(elbo, metrics, "ELBO", {"train_elbo": "train", "valid_elbo": "validation"})
    _draw(log_likelihood, metrics, "Log-likelihood term", {"log_likelihood": "train"})
    _draw(kl, metrics, "KL term", {"kl": "train"})
    _draw(norm, metrics, "Gradient norm", {"grad_norm": "train"}, unit="")

    _focus(elbo)
    _focus(log_likelihood)
    _shade_annealing(kl, metrics)
    _logarithmic_if_wide(norm)
    for axes in (kl, norm):
        axes.set_xlabel("epoch", fontsize=8.5, color=MUTED)
    return figure


def _draw(
    axes: "Axes",
    metrics: Sequence[Mapping[str, Any]],
    title: str,
    keys: Mapping[str, str],
    *,
    unit: str = "nats per example",
) -> None:
    from matplotlib.ticker import MaxNLocator

    for (key, label), colour in zip(keys.items(), (BLUE, AMBER), strict=False):
        epochs, values = _series(metrics, key)
        if len(values):
            # Markers where points are few, so that a single epoch is seen.
            marker = "o" if len(values) <= 25 else ""
            axes.plot(
                epochs,
                values,
                color=colour,
                linewidth=1.6,
                marker=marker,
                markersize=3.2,
                label=label,
            )
    if not axes.lines:
        axes.text(
            *(0.5, 0.5), "not recorded", transform=axes.transAxes, ha="center", va="center",
            fontsize=8.5, color=MUTED,
        )  # fmt: skip
        axes.set_yticks([])
    if len(axes.lines) > 1:
        _legend(axes, loc="best")

    first, last = metrics[0]["epoch"], metrics[-1]["epoch"]
    margin = 0.02 * (last - first) if last > first else 1
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _title(axes, title, unit)


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs at which a value was recorded and finite, and the values."""
    found = [(record["epoch"], record.get(key)) for record in metrics]
    pairs = [(epoch, value) for epoch, value in found if value is not None]
    points = np.array(pairs, dtype=float).reshape(-1, 2)
    return tuple(points[np.isfinite(points[:, 1])].T)


def _focus(axes: "Axes") -> None:
    """Lets the first tenth of a long run leave the panel: it would flatten all the rest."""
    lines = [np.asarray(line.get_ydata()) for line in axes.lines]
    long = [line[len(line) // 10 :] for line in lines if len(line) >= 20]
    if long:
        later = np.concatenate(long)
        margin = 0.08 * (np.ptp(later) or 1)
        axes.set_ylim(later.min() - margin, later.max() + margin)


def _shade_annealing(axes: "Axes", metrics: Sequence[Mapping[str, Any]]) -> None:
    """Tints the epochs in which the KL term had less than its full weight."""
    epochs, kl_weight = _series(metrics, "kl_weight")
    if len(kl_weight) and kl_weight.min() < kl_weight.max():
        axes.fill_between(
            epochs, 0, 1, where=list(kl_weight < kl_weight.max()), step="mid", color=RULE,
            alpha=0.6, linewidth=0, zorder=0, transform=axes.get_xaxis_transform(),
            label=f"weight below {kl_weight.max():g}",
        )  # fmt: skip
        _legend(axes, loc="best")


def _logarithmic_if_wide(axes: "Axes") -> None:
    values = [y for line in axes.lines for y in np.asarray(line.get_ydata())]
    if values and min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")


# ── The latent space ─────────────────────────────────────────────────────────────────────────


def latent_scatter(means: Tensor, labels: Tensor | None = None) -> "Figure":
    """The posterior means in the plane, coloured by label.

    More than two dimensions are projected onto their first two principal components; a single
    one is drawn as a histogram for each label.

    Args:
        means: The posterior means, (N, D).
        labels: The labels, (N,), if there are any. Up to ten different ones have a colour and
            a name each; more share a colour bar.

    Raises:
        InputError: If the shapes do not fit together.
    """
    if means.dim() != 2 or (labels is not None and labels.shape != means.shape[:1]):
        raise InputError(
            f"Means of shape {tuple(means.shape)} cannot be drawn"
            + ("." if labels is None else f" with labels of shape {tuple(labels.shape)}."),
            "Give means (N, D) and labels (N,).",
        )
    points = means.detach().double().cpu()
    # A fixed shuffle: otherwise the last class in the data hides the others.
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    order = order[points[order].isfinite().all(-1)]
    if 0 in points[order].shape:
        raise InputError("There is no finite mean to draw.", "Give means (N, D) of finite values.")
    points, classes = points[order], None if labels is None else labels.detach().cpu()[order]

    if points.shape[1] == 1:
        figure, (axes,) = _panels(1, 1, size=(6.4, 3.4))
        _histograms(axes, points[:, 0], classes)
        return figure

    figure, (axes,) = _panels(1, 1, size=(5.6, 4.6))
    _axis_names(axes, "dimension 0", "dimension 1")
    if points.shape[1] > 2:
        points, shares = _principal_components(points)
        _axis_names(axes, *(f"principal component {i} ({s:.0%} of variance)" for i, s in shares))
    axes.grid(True, axis="x", color=RULE, linewidth=0.6)
    axes.set_aspect("equal", adjustable="datalim")
    _scatter(axes, points, classes)
    return figure


def _principal_components(points: Tensor) -> tuple[Tensor, list[tuple[int, float]]]:
    """Points (N, D) -> (N, 2), with the number and the share of variance of each component."""
    centred = points - points.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    first_two = directions[:, [-1, -2]]
    # Eigenvectors have no sign of their own; equal data must give equal pictures.
    largest = first_two.gather(0, first_two.abs().argmax(0, keepdim=True))
    shares = (variances / variances.sum().clamp(min=1e-30)).clamp(min=0)
    return centred @ (first_two * largest.sign()), [(1, shares[-1].item()), (2, shares[-2].item())]


def _scatter(axes: "Axes", points: Tensor, classes: Tensor | None) -> None:
    size = float(np.clip(16000 / len(points), 3, 22))
    how: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": len(points) > VECTOR_POINTS}
    x, y = points.T.numpy()
    if classes is None:
        axes.scatter(x, y, color=BLUE, alpha=0.6, **how)
        return

    values, which = classes.unique(return_inverse=True)
    if len(values) > len(PALETTE):
        _colour_bar(axes, axes.scatter(x, y, c=classes.numpy(), cmap="viridis", alpha=0.85, **how))
    else:
        axes.scatter(x, y, c=[PALETTE[i] for i in which.tolist()], alpha=0.85, **how)
        _class_legend(axes, values)


def _histograms(axes: "Axes", values: Tensor, classes: Tensor | None) -> None:
    edges = _edges(values, min(60, max(8, round(len(values) ** 0.5))))
    names = [] if classes is None else classes.unique()
    if classes is None or len(names) > len(PALETTE):
        axes.hist(values.numpy(), bins=edges, color=BLUE, alpha=0.8)
    else:
        for name, colour in zip(names, PALETTE, strict=False):
            _outlined(axes, values[classes == name], edges, colour)
        _class_legend(axes, names)
    _axis_names(axes, "dimension 0", "examples")


def _edges(values: Tensor, bins: int) -> list[float]:
    """The edges of the bins of a histogram, apart even where all values are one."""
    low, high = values.min().item(), values.max().item()
    margin = 0.5 if high - low < 1e-6 * max(1, abs(low)) else 0
    return np.linspace(low - margin, high + margin, bins + 1).tolist()


def _outlined(axes: "Axes", values: Tensor, edges: list[float], colour: str, **how: Any) -> None:
    how = {"bins": edges, "color": colour, **how}
    axes.hist(values.numpy(), **{**how, "label": None}, alpha=0.25)
    axes.hist(values.numpy(), **how, histtype="step", linewidth=1.4)


def _class_legend(axes: "Axes", values: Iterable[Tensor]) -> None:
    from matplotlib.lines import Line2D

    dots = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=colour, label=f"{value:g}")
        for value, colour in zip(map(float, values), PALETTE, strict=False)
    ]
    _legend(axes, handles=dots, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="label")


def _colour_bar(axes: "Axes", dots: Any) -> None:
    bar = _figure_of(axes).colorbar(dots, ax=axes, aspect=30, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.solids.set_alpha(1)  # pyright: ignore[reportOptionalMemberAccess]
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    bar.ax.set_title("label", fontsize=8.5, color=MUTED)


def kl_bars(kl_per_dim: Mapping[str, Tensor]) -> "Figure":
    """The KL of every latent dimension in descending order: which of them are used.

    Args:
        kl_per_dim: The KL of every dimension of each latent site, (D,), in nats.

    Raises:
        InputError: If there is no dimension.
    """
    found = {name: kl.detach().double().cpu().nan_to_num(0) for name, kl in kl_per_dim.items()}
    sites = {name: kl for name, kl in found.items() if len(kl)}
    if not sites:
        raise InputError(
            "There is no KL by dimension to draw.",
            "It is there for latents whose prior and guide factorise over dimensions.",
        )
    count = sum(map(len, sites.values()))
    # Many bars touch and overlap a little: gaps of less than a pixel would flicker.
    how: dict[str, Any] = {"width": 0.78} if count <= 80 else {"width": 1.0, "linewidth": 0.5}
    figure, (axes,) = _panels(1, 1, size=(5.9, 3.0))
    ticks: list[tuple[int, int]] = []
    start = 1
    for (name, kl), colour in zip(sites.items(), PALETTE * len(sites), strict=False):
        values, dims = kl.sort(descending=True, stable=True)
        places = range(start, start + len(kl))
        colours = [colour if value > ACTIVE_KL else GREY for value in values.tolist()]
        axes.bar(places, values.numpy(), color=colours, edgecolor=colours, **how)
        axes.plot([], [], color=colour, linewidth=5, label=name)
        ticks += zip(places, dims.tolist(), strict=True)
        start += len(kl) + 1 + count // 40

    active = sum(int((kl > ACTIVE_KL).sum()) for kl in sites.values())
    _title(axes, "KL by latent dimension", f"nats; {active} of {count} above {ACTIVE_KL} (dashed)")
    axes.axhline(ACTIVE_KL, color=INK, linewidth=0.8, linestyle=DASHED)
    axes.set_ylim(bottom=min(0.0, *(kl.min().item() for kl in sites.values())))
    axes.set_xlim(0.2, ticks[-1][0] + 0.8)
    _name_bars(axes, ticks)
    if len(sites) > 1:
        _legend(axes, loc="upper right")
    return figure


def _name_bars(axes: "Axes", ticks: list[tuple[int, int]]) -> None:
    """The dimension under each bar while there is room, or else the rank."""
    if len(ticks) <= 40:
        axes.set_xticks([place for place, _ in ticks], [str(dim) for _, dim in ticks])
        axes.tick_params(axis="x", labelsize=8 if len(ticks) <= 24 else 6.5)
        axes.set_xlabel("dimension", fontsize=8.5, color=MUTED)
    else:
        axes.set_xlabel("dimensions in descending order", fontsize=8.5, color=MUTED)
        if ticks[-1][0] > len(ticks):
            # Several sites: what the axis would count is not a rank.
            axes.set_xticks([])


# ── The evidence ─────────────────────────────────────────────────────────────────────────────


def weights(evaluation: "Evaluation") -> "Figure":
    r"""How $\log p(x)$ and the ELBO spread over examples, and how far the weights can be trusted.

    Args:
        evaluation: What `evaluate` returned. The tail index is left out where it has none.

    Raises:
        InputError: If nothing in it is finite.
    """
    tail = evaluation.pareto_k.detach().double().cpu()
    tail = tail[~tail.isnan()].clamp(-0.5, 1.5)
    log_evidence, elbo = (
        values.detach().double().cpu() for values in (evaluation.log_evidence, evaluation.elbo)
    )
    log_evidence, elbo = log_evidence[log_evidence.isfinite()], elbo[elbo.isfinite()]
    if not len(log_evidence) or not len(elbo):
        raise InputError("No log p(x) or no ELBO is finite.", "Look for examples of density 0.")

    figure, panels = _panels(1, 2 if len(tail) else 1, size=(7.6, 3.0))
    edges = _edges(torch.cat([log_evidence, elbo]), 40)
    _outlined(panels[0], log_evidence, edges, BLUE, label="log p(x)")
    panels[0].hist(elbo.numpy(), edges, color=AMBER, histtype="step", linewidth=1.4, label="ELBO")
    for values, colour in ((log_evidence, BLUE), (elbo, AMBER)):
        panels[0].axvline(values.mean().item(), color=colour, linewidth=1.2, linestyle=DASHED)
    _title(panels[0], "log p(x) and ELBO", "examples; dashed: means")
    panels[0].set_xlabel("nats per example", fontsize=8.5, color=MUTED)
    _legend(panels[0], loc="upper left")
    if len(tail):
        _tail_panel(panels[1], tail)
    return figure


def _tail_panel(axes: "Axes", tail: Tensor) -> None:
    axes.hist(tail.numpy(), bins=40, range=(-0.5, 1.5), color=GREY)
    axes.axvline(0.7, color=INK, linewidth=0.8, linestyle=DASHED)
    axes.set_xticks([-0.5, 0, 0.5, 1, 1.5])
    share = (tail > 0.7).double().mean().item()
    _title(axes, "Tail of the weights", f"{share:.1%} above 0.7 (dashed)")
    axes.set_xlabel("Pareto k", fontsize=8.5, color=MUTED)


# ── Style ────────────────────────────────────────────────────────────────────────────────────


def _panels(
    rows: int, columns: int, *, size: tuple[float, float]
) -> tuple["Figure", list["Axes"]]:
    """A figure of quiet panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # pyright: ignore[reportOptionalMemberAccess,reportCallIssue]
    panels = [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]
    for axes in panels:
        axes.set_facecolor("none")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set(color=GREY, linewidth=0.8)
        axes.tick_params(which="both", length=0, labelsize=8, labelcolor=MUTED)
        axes.grid(True, axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def _title(axes: "Axes", title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold", pad=8)
    axes.set_title(unit, loc="right", fontsize=8, color=MUTED, pad=8)


def _axis_names(axes: "Axes", horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal, fontsize=8.5, color=MUTED)
    axes.set_ylabel(vertical, fontsize=8.5, color=MUTED)


def _legend(axes: "Axes", **how: Any) -> None:
    legend = axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4, borderaxespad=0.3, **how
    )
    legend.get_title().set(fontsize=8, color=MUTED)


def _figure_of(axes: "Axes") -> "Figure":
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure

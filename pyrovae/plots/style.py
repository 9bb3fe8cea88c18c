"""The style of every figure: colours, quiet panels, titles.

It is set on the figure rather than in matplotlib's rcParams, and figures are made without
pyplot: no backend is chosen, no window opened, no global setting changed.
"""

__all__ = [
    "AMBER",
    "BLUE",
    "DASHED",
    "DPI",
    "FAINT",
    "GREY",
    "INK",
    "MUTED",
    "PALETTE",
    "RULE",
    "axis_names",
    "figure_of",
    "legend",
    "panels",
    "png",
    "title",
]

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG of 150 dots per inch."""
    file = io.BytesIO()
    # Without matplotlib's name and address, so that equal figures give equal bytes.
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def panels(rows: int, columns: int, *, size: tuple[float, float]) -> tuple["Figure", list["Axes"]]:
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


def title(axes: "Axes", text: str, unit: str) -> None:
    """A heading at the left, and the unit at the right."""
    axes.set_title(text, loc="left", fontsize=9.5, color=INK, fontweight="bold", pad=8)
    axes.set_title(unit, loc="right", fontsize=8, color=MUTED, pad=8)


def axis_names(axes: "Axes", horizontal: str, vertical: str) -> None:
    """The names of both axes."""
    axes.set_xlabel(horizontal, fontsize=8.5, color=MUTED)
    axes.set_ylabel(vertical, fontsize=8.5, color=MUTED)


def legend(axes: "Axes", **how: Any) -> None:
    """A legend without a frame."""
    shown = axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, handlelength=1.4, borderaxespad=0.3, **how
    )
    shown.get_title().set(fontsize=8, color=MUTED)


def figure_of(axes: "Axes") -> "Figure":
    """The figure that axes stand in."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure

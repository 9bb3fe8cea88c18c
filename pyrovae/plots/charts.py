"""Charts: training curves, the latent space, KL by dimension, log p(x)."""

__all__ = ["curves", "kl_bars", "latent_scatter", "weights"]

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.plots import style
from pyrovae.plots.style import (
    AMBER,
    BLUE,
    DASHED,
    GREY,
    INK,
    MUTED,
    PALETTE,
    RULE,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyrovae.evaluation import Evaluation

# Above this, the points of a scatter are pixels even in a vector format.
VECTOR_POINTS = 2000
COLOURS = {"train": BLUE, "validation": AMBER}
ACTIVE_KL = 0.01


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

    figure, (elbo, log_likelihood, kl, norm) = style.panels(2, 2, size=(7.6, 4.6))
    _draw(elbo, metrics, "ELBO", {"train_elbo": "train", "valid_elbo": "validation"})
    # The two terms are those of the validation bound, where there is one.
    held = any(record.get("valid_elbo") is not None for record in metrics)
    of = "validation" if held else "train"
    _draw(log_likelihood, metrics, "Log-likelihood term", {"log_likelihood": of})
    _draw(kl, metrics, "KL term", {"kl": of})
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

    for key, label in keys.items():
        colour = COLOURS[label]
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
        style.legend(axes, loc="best")

    first, last = metrics[0]["epoch"], metrics[-1]["epoch"]
    margin = 0.02 * (last - first) if last > first else 1
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    style.title(axes, title, unit)


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
        style.legend(axes, loc="best")


def _logarithmic_if_wide(axes: "Axes") -> None:
    values = [y for line in axes.lines for y in np.asarray(line.get_ydata())]
    if values and min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")


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
        figure, (axes,) = style.panels(1, 1, size=(6.4, 3.4))
        _histograms(axes, points[:, 0], classes)
        return figure

    figure, (axes,) = style.panels(1, 1, size=(5.6, 4.6))
    style.axis_names(axes, "dimension 0", "dimension 1")
    if points.shape[1] > 2:
        points, shares = _principal_components(points)
        style.axis_names(
            axes, *(f"principal component {i} ({s:.0%} of variance)" for i, s in shares)
        )
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
    style.axis_names(axes, "dimension 0", "examples")


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
    style.legend(axes, handles=dots, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="label")


def _colour_bar(axes: "Axes", dots: Any) -> None:
    bar = style.figure_of(axes).colorbar(dots, ax=axes, aspect=30, pad=0.02)
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
    figure, (axes,) = style.panels(1, 1, size=(5.9, 3.0))
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
    style.title(
        axes, "KL by latent dimension", f"nats; {active} of {count} above {ACTIVE_KL} (dashed)"
    )
    axes.axhline(ACTIVE_KL, color=INK, linewidth=0.8, linestyle=DASHED)
    axes.set_ylim(bottom=min(0.0, *(kl.min().item() for kl in sites.values())))
    axes.set_xlim(0.2, ticks[-1][0] + 0.8)
    _name_bars(axes, ticks)
    if len(sites) > 1:
        style.legend(axes, loc="upper right")
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

    figure, panels = style.panels(1, 2 if len(tail) else 1, size=(7.6, 3.0))
    edges = _edges(torch.cat([log_evidence, elbo]), 40)
    _outlined(panels[0], log_evidence, edges, BLUE, label="log p(x)")
    panels[0].hist(elbo.numpy(), edges, color=AMBER, histtype="step", linewidth=1.4, label="ELBO")
    for values, colour in ((log_evidence, BLUE), (elbo, AMBER)):
        panels[0].axvline(values.mean().item(), color=colour, linewidth=1.2, linestyle=DASHED)
    style.title(panels[0], "log p(x) and ELBO", "examples; dashed: means")
    panels[0].set_xlabel("nats per example", fontsize=8.5, color=MUTED)
    style.legend(panels[0], loc="upper left")
    if len(tail):
        _tail_panel(panels[1], tail)
    return figure


def _tail_panel(axes: "Axes", tail: Tensor) -> None:
    axes.hist(tail.numpy(), bins=40, range=(-0.5, 1.5), color=GREY)
    axes.axvline(0.7, color=INK, linewidth=0.8, linestyle=DASHED)
    axes.set_xticks([-0.5, 0, 0.5, 1, 1.5])
    share = (tail > 0.7).double().mean().item()
    style.title(axes, "Tail of the weights", f"{share:.1%} above 0.7 (dashed)")
    axes.set_xlabel("Pareto k", fontsize=8.5, color=MUTED)

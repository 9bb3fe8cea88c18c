r"""Generating: samples, reconstructions, interpolations, traversals, the 2-D manifold.

Every function works on any program: it conditions or unconditions the sites of the model and
reads the likelihood's mean. A likelihood without a mean, as that of text, is shown by a draw, and
`shown_by` says so.
"""

__all__ = [
    "Generated",
    "decode",
    "interpolate",
    "manifold",
    "reconstruct",
    "repeat",
    "run_model",
    "sample",
    "traverse",
]

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.checks import whole
from pyrovae.data import Batch
from pyrovae.devices import send
from pyrovae.distributions import is_improper
from pyrovae.encoding import latent, posterior_means, shared_latents
from pyrovae.errors import InputError
from pyrovae.handlers import fill_improper, unconditioned
from pyrovae.programs import (
    BatchLike,
    Program,
    brought_to,
    data_frame,
    evaluating,
    examples_first,
    is_part,
    labels,
    mean_of,
    observation_site,
    sample_sites,
    sites,
    with_latents,
)
from pyrovae.randomness import seeded


class Generated(NamedTuple):
    """Generated observations, in the program's x.

    Attributes:
        x: One for each row, or for each cell of a grid.
        shown_by: "mean" or "draw".
    """

    x: Tensor
    shown_by: str


def sample(
    program: Program, template: BatchLike, count: int, *, draw: bool = False, seed: int = 0
) -> Generated:
    r"""New examples: $z \sim p(z)$, and then the mean of $p(x \mid z)$, or a draw from it.

    Latents that all examples share, those outside the plate `data`, are one draw of the guide's.

    Args:
        program: Any program of `pyrovae.programs`.
        template: A batch of at least one row, for its shapes and device; its values are not
            used, except labels, which are repeated, and by guides that infer what all examples
            share from x.
        count: How many.
        draw: Whether to draw x from its likelihood where it has a mean.
        seed: The seed of the draws.

    Raises:
        InputError: If a prior is improper, as that of `pyrovae.models.Autoencoder`, or the count
            is no whole number of at least 1.
    """
    rows = repeat(brought_to(program, template), whole("count", count))
    with evaluating(program), seeded(seed, "sample", device=rows.x.device):
        shared = shared_latents(program, rows, draw_by=seed)
        return run_model(program, rows, shared, draw=draw)


def decode(
    program: Program, latents: Mapping[str, Tensor | np.ndarray], template: BatchLike
) -> Generated:
    r"""The mean of $p(x \mid z)$, or a draw where it has none, for given latents.

    Args:
        program: Any program of `pyrovae.programs`.
        latents: Values of latent sites of examples, with N rows as `posterior_means` has them;
            those left out are drawn from the prior. Those that all examples share are the
            guide's, see `shared_latents`, unless they are given too, in their own shape.
        template: As in `sample`, and N rows of it where no latent of examples is given.

    Raises:
        InputError: If the program has no such latent, one is of another shape, those of examples
            are not of as many, or the prior of one that is left out is improper.
    """
    template = brought_to(program, template)
    device = template.x.device
    given = {name: send(torch.as_tensor(value), device) for name, value in latents.items()}
    with evaluating(program), seeded(0, "decode", device=template.x.device):
        shared = shared_latents(program, template)
        rows = {name: len(value) for name, value in given.items() if name not in shared}
        if len({*rows.values()}) > 1:
            raise InputError(f"The latents have rows {rows}.", "Give as many of each.")
        count = next(iter(rows.values()), len(template.x))
        return run_model(program, repeat(template, count), {**shared, **given}, draw=False)


def reconstruct(program: Program, batch: BatchLike) -> Generated:
    """Each example decoded from the mean of its latents."""
    batch = brought_to(program, batch)
    return decode(program, posterior_means(program, batch), batch)


def interpolate(
    program: Program, start: BatchLike, end: BatchLike, *, steps: int = 10
) -> Generated:
    """Straight lines in latent space between pairs of examples.

    A latent of whole numbers, between which there are none, changes half way. A line is decoded
    under the label of its start, where the model reads one.

    Args:
        program: Any program of `pyrovae.programs`.
        start: N examples to start from.
        end: N examples to arrive at.
        steps: The number of points on each line, its ends included.

    Returns:
        x of shape (N, steps, x): row by row from start to end.

    Raises:
        InputError: If there are not as many ends as starts, or steps is no whole number of at
            least 1.
    """
    steps = whole("steps", steps)
    start, end = brought_to(program, start), brought_to(program, end)
    if len(start.x) != len(end.x):
        raise InputError(
            f"There are {len(start.x)} examples to start from and {len(end.x)} to arrive at.",
            "Give as many of both.",
        )
    first, last = posterior_means(program, start), posterior_means(program, end)

    def line(a: Tensor, b: Tensor) -> Tensor:
        whole = not a.is_floating_point()
        shares = torch.linspace(0, 1, steps, device=a.device, dtype=None if whole else a.dtype)
        shares = shares.view(1, -1, *[1] * (a.dim() - 1))
        if whole:
            return torch.where(shares < 0.5, a[:, None], b[:, None])
        return torch.lerp(a[:, None], b[:, None], shares)

    points = {name: line(first[name], last[name]).flatten(0, 1) for name in first}
    found = decode(program, points, _each(start, steps))
    return Generated(found.x.unflatten(0, (len(start.x), steps)), found.shown_by)


def traverse(
    program: Program,
    example: BatchLike,
    *,
    site: str = "z",
    dims: list[int] | None = None,
    steps: int = 9,
    reach: float = 2.5,
) -> Generated:
    """One latent dimension at a time moved from -reach to reach, the others held.

    Args:
        program: Any program of `pyrovae.programs`.
        example: The example, the first row of the batch, whose latents are the starting point.
        site: The latent site.
        dims: The dimensions to move, all if None.
        steps: The number of values.
        reach: The largest value.

    Returns:
        x of shape (dims, steps, x).

    Raises:
        InputError: If there is no such site or dimension, it holds whole numbers, or steps is no
            whole number of at least 1.
    """
    steps = whole("steps", steps)
    one = repeat(brought_to(program, example), 1)
    means = posterior_means(program, one)
    size = latent(means, site).shape[-1]
    if not means[site].is_floating_point():
        raise InputError(
            f"The latent {site!r} holds whole numbers, which cannot be moved bit by bit.",
            "Decode values of your own with pyrovae.decode.",
        )
    dims = list(range(size)) if dims is None else [whole("dims", d, least=None) for d in dims]
    if not dims or any(not 0 <= dim < size for dim in dims):
        raise InputError(f"The site {site!r} has the dimensions 0 to {size - 1}.", "Name these.")

    points = means[site].expand(len(dims), steps, size).clone()
    values = torch.linspace(-reach, reach, steps, device=points.device, dtype=points.dtype)
    for row, dim in enumerate(dims):
        points[row, :, dim] = values

    count = len(dims) * steps
    latents = {name: mean.expand(count, *mean.shape[1:]) for name, mean in means.items()}
    found = decode(program, {**latents, site: points.flatten(0, 1)}, one)
    return Generated(found.x.unflatten(0, (len(dims), steps)), found.shown_by)


def manifold(
    program: Program, template: BatchLike, *, site: str = "z", side: int = 20
) -> Generated:
    r"""The decoder over the plane of a two-dimensional latent.

    The grid is the inverse Gaussian CDF of equally spaced probabilities, so that under a
    standard normal prior every cell stands for the same probability (Kingma & Welling, fig. 4).

    Args:
        program: Any program of `pyrovae.programs`.
        template: As in `sample`.
        site: The latent site.
        side: The number of points along each axis.

    Returns:
        x of shape (side, side, x); the second latent falls from row to row, as on a plot.

    Raises:
        InputError: If the site is not two-dimensional, or side is no whole number of at least 1.
    """
    side, template = whole("side", side), brought_to(program, template)
    means = posterior_means(program, repeat(template, 1))
    size = latent(means, site).shape[-1]
    if size != 2:
        raise InputError(
            f"The latent {site!r} has {size} dimensions; a manifold can be drawn for 2.",
            "Train with --latent-dim 2, or traverse single dimensions.",
        )
    probabilities = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    axis = torch.special.ndtri(probabilities).to(means[site])
    rows, columns = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).flatten(0, 1)

    found = decode(program, {site: points}, template)
    return Generated(found.x.unflatten(0, (side, side)), found.shown_by)


# ── Running the model without its observation ────────────────────────────────────────────────


def run_model(
    program: Program, template: Batch, latents: Mapping[str, Tensor], *, draw: bool
) -> Generated:
    """The model with its observation freed and its latents given, those of examples row by row."""
    model = with_latents(unconditioned(program.model), latents)
    extra = labels(program.model, template)
    with fill_improper(template.x):
        trace = poutine.trace(model).get_trace(template.x, **extra)
    site = observation_site(trace, given=latents)
    if unknown := sorted(latents.keys() - trace.nodes.keys()):
        known = [n for n in sample_sites(prune_subsample_sites(trace)) if n != site["name"]]
        raise InputError(
            f"The program has no latent {unknown[0]!r}.", f"Take some of {', '.join(known)}."
        )
    for name, latent_site in sites(trace, observed=False).items():
        if is_improper(latent_site["fn"]):
            raise InputError(
                f"The latent {name!r} cannot be drawn: its prior is improper.",
                "Give its values to pyrovae.decode, or give it a prior that can be drawn from.",
            )
    mean = None if draw else mean_of(site)
    found = Generated(site["value"], "draw") if mean is None else Generated(mean, "mean")
    if data_frame(site) is not None:
        found = found._replace(x=examples_first(found.x, site))
    if is_part(found.x, template.x):
        raise InputError(
            f"The site {site['name']!r} observes {found.x[0].numel()} of the "
            f"{template.x[0].numel()} values of an example, so what it draws is none.",
            "Let one site named 'x' observe all of x, as by a distribution over all its parts.",
        )

    # A program may observe its images flattened.
    same_size = found.x[0].numel() == template.x[0].numel()
    return found._replace(x=found.x.reshape(template.x.shape)) if same_size else found


def repeat(template: Batch, count: int) -> Batch:
    """As many rows as asked, the template's own again and again."""
    rows = torch.arange(count, device=template.x.device) % len(template.x)
    return Batch(template.x[rows], None if template.y is None else template.y[rows])


def _each(batch: Batch, times: int) -> Batch:
    """Every row several times in a row."""
    y = None if batch.y is None else batch.y.repeat_interleave(times, 0)
    return Batch(batch.x.repeat_interleave(times, 0), y)

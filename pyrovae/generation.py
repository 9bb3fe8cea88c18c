r"""Generating: samples, reconstructions, interpolations, traversals, the 2-D manifold.

Every function works on any program: it conditions or unconditions the sites of the model and
reads the likelihood's mean. A likelihood without a mean, as that of text, is shown by a draw, and
`shown_by` says so.
"""

__all__ = [
    "Encoded",
    "Generated",
    "decode",
    "encode",
    "impute",
    "interpolate",
    "latent",
    "manifold",
    "posterior_means",
    "reconstruct",
    "sample",
    "shared_latents",
    "traverse",
]

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.devices import send
from pyrovae.distributions import is_improper
from pyrovae.errors import InputError
from pyrovae.handlers import fill_improper, unconditioned
from pyrovae.inspection import inspect_program
from pyrovae.programs import (
    Program,
    brought_to,
    data_frame,
    evaluating,
    examples_first,
    is_auxiliary,
    is_part,
    labels,
    mean_of,
    observation_site,
    sample_sites,
    sites,
    trace_pair,
    with_latents,
)
from pyrovae.randomness import seeded
from pyrovae.supports import check_support
from pyrovae.terms import read_terms


class Generated(NamedTuple):
    """Generated observations, in the program's x.

    Attributes:
        x: One for each row, or for each cell of a grid.
        shown_by: "mean" or "draw".
    """

    x: Tensor
    shown_by: str


class Encoded(NamedTuple):
    """The latents of examples, a row for each.

    Attributes:
        means: For each latent site the posterior means, (N, D).
        y: The labels (N,), where there are any.
        names: What the examples are called, (N,): their files, or their rows in the source.
    """

    means: dict[str, Tensor]
    y: Tensor | None
    names: np.ndarray | None = None


def sample(
    program: Program, template: Batch, count: int, *, draw: bool = False, seed: int = 0
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
        InputError: If a prior is improper, as that of `pyrovae.models.Autoencoder`.
    """
    rows = _repeat(brought_to(program, template), count)
    with evaluating(program), seeded(seed, "sample", device=rows.x.device):
        shared = shared_latents(program, rows, draw_by=seed)
        return _run_model(program, rows, shared, draw=draw)


def decode(program: Program, latents: Mapping[str, Tensor], template: Batch) -> Generated:
    r"""The mean of $p(x \mid z)$, or a draw where it has none, for given latents.

    Args:
        program: Any program of `pyrovae.programs`.
        latents: Values of latent sites of examples, with N rows as `posterior_means` has them;
            those left out are drawn from the prior. Those that all examples share are the
            guide's, see `shared_latents`, unless they are given too, in their own shape.
        template: As in `sample`, and N rows of it where no latent of examples is given.

    Raises:
        InputError: If the prior of one that is left out is improper.
    """
    template = brought_to(program, template)
    latents = {name: send(value, template.x.device) for name, value in latents.items()}
    with evaluating(program), seeded(0, "decode", device=template.x.device):
        shared = shared_latents(program, template)
        of_examples = [value for name, value in latents.items() if name not in shared]
        count = len(of_examples[0]) if of_examples else len(template.x)
        return _run_model(program, _repeat(template, count), {**shared, **latents}, draw=False)


def posterior_means(program: Program, batch: Batch) -> dict[str, Tensor]:
    """The mean of every latent site of examples under the guide, or a draw where it has none.

    Below another latent of the guide it is the mean given a draw of that, the same every time,
    and below one that all examples share, given `shared_latents`.

    Returns:
        For each latent site inside the plate `data` a tensor (N, D); (N, ..., D) where there are
        further plates round it.
    """
    batch = brought_to(program, batch)
    with evaluating(program), seeded(0, "encode", device=batch.x.device):
        _, guide_trace = trace_pair(program, batch, within=_Shared(batch.x.device))

    means: dict[str, Tensor] = {}
    for name, site in sites(guide_trace, observed=False).items():
        if data_frame(site) and not is_auxiliary(site):
            mean = mean_of(site)
            means[name] = examples_first(site["value"] if mean is None else mean, site)
    return means


def shared_latents(
    program: Program, batch: Batch, *, draw_by: int | None = None
) -> dict[str, Tensor]:
    """What the guide says of the latents that all examples share: those outside the plate.

    Args:
        program: Any program of `pyrovae.programs`, within `evaluating`.
        batch: Examples. Guides that infer these latents from x do so from them.
        draw_by: The seed by which they are drawn, each as a function of it and of its name.
            Without one they are their means, one given those of the others; of a number that is a
            code, its probability, and where there is no mean, a draw.
    """
    one = Batch(batch.x[:1], None if batch.y is None else batch.y[:1])
    if not _read_shared(program, one, draw_by):
        return {}  # without the work of a whole batch
    return _read_shared(program, batch, draw_by)


def _read_shared(program: Program, batch: Batch, draw_by: int | None) -> dict[str, Tensor]:
    with seeded(0, "shared", device=batch.x.device), _Shared(batch.x.device, draw_by):
        trace = poutine.trace(program.guide).get_trace(batch.x, **labels(program.guide, batch))
    return {
        name: site["value"]
        for name, site in sample_sites(prune_subsample_sites(trace)).items()
        if not data_frame(site) and not is_auxiliary(site)
    }


class _Shared(Messenger):
    """Gives the sites outside the plate `data` their means, or draws by a seed of their own."""

    def __init__(self, device: torch.device, draw_by: int | None = None) -> None:
        super().__init__()
        self.device = device
        self.draw_by = draw_by

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is not None or site_is_subsample(msg) or data_frame(msg):
            return
        mean = mean_of(msg) if self.draw_by is None else None
        if mean is None:
            with seeded(self.draw_by or 0, "shared", msg["name"], device=self.device):
                mean = msg["fn"](*msg["args"], **msg["kwargs"])
        msg["value"] = mean


def encode(program: Program, batches: Iterable[Batch]) -> Encoded:
    """The posterior means of many examples, batch by batch; see `posterior_means`.

    They are on the CPU, whatever the program is on.
    """
    found: dict[str, list[Tensor]] = {}
    y: list[Tensor] = []
    for batch in batches:
        for name, means in posterior_means(program, batch).items():
            found.setdefault(name, []).append(means.cpu())
        y += [] if batch.y is None else [batch.y.cpu()]
    return Encoded({name: torch.cat(means) for name, means in found.items()}, _joined(y))


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts) if parts else None


def latent(means: Mapping[str, Tensor], site: str) -> Tensor:
    """The means of one latent site.

    Raises:
        InputError: If there is no such site, or it is not a vector for each example.
    """
    if not means:
        raise InputError(
            "The program has no latent of examples: all are outside the plate 'data'.",
            "Look at samples, or give the model a latent inside the plate.",
        )
    if site not in means:
        raise InputError(f"There is no latent site {site!r}.", f"Take one of {', '.join(means)}.")
    if means[site].dim() != 2:
        raise InputError(
            f"The latent site {site!r} is no vector for each example: its shape is "
            f"{tuple(means[site].shape)}.",
            "Take a site that is, or decode latents of your own with pyrovae.decode.",
        )
    return means[site]


def reconstruct(program: Program, batch: Batch) -> Generated:
    """Each example decoded from the mean of its latents."""
    return decode(program, posterior_means(program, batch), batch)


def impute(
    program: Program, batch: Batch, *, count: int = 1, num_samples: int = 100, seed: int = 0
) -> Generated:
    r"""Examples with their missing entries drawn: $x_m \sim p(x_m \mid x_o)$.

    Latents are drawn from the guide and chosen by their importance weights
    $p(x_o, z) / q(z \mid x_o)$, and then $x_m \sim p(x_m \mid z)$: exact in the limit of many
    samples. Of several copies, take the mean of a number, and the most frequent of a code.

    Latents that all examples share are, in each copy, one draw of the guide's, as in multiple
    imputation: how far copies differ then tells what is not known of these, too.

    Args:
        program: Any program of `pyrovae.programs` that takes a NaN for a missing entry.
        batch: N examples. Entries that were observed stay as they are.
        count: How many copies of each example to complete.
        num_samples: The number of draws from the guide that the latents are chosen from.
        seed: The seed of the draws.

    Returns:
        x of shape (count, N, x).

    Raises:
        InputError: If the program does not take missing entries, or draws what all examples
            share from latents of these.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei &
        Frellsen, 2019), arXiv:1812.02633.
    """
    batch = brought_to(program, batch)
    structure = inspect_program(program, batch)
    check_support(program, [batch])
    with evaluating(program), seeded(seed, "impute", device=batch.x.device):
        if structure.global_latents:
            seeds = torch.randint(2**31, (count,)).tolist()
            copies = [
                _complete(program, batch, 1, num_samples, _Shared(batch.x.device, draw_by))
                for draw_by in seeds
            ]
        else:
            copies = [_complete(program, batch, count, num_samples)]
    return copies[0]._replace(x=torch.cat([copy.x for copy in copies]))


def _complete(
    program: Program, batch: Batch, count: int, num_samples: int, shared: "_Shared | None" = None
) -> Generated:
    """Copies of examples, (count, N, x), under one draw of what all of them share."""
    latents = _resample(program, batch, count, num_samples, shared)
    rows = _repeat(batch, count * len(batch.x))
    drawn = _run_model(program, rows, latents, draw=True)
    whole = torch.where(rows.x.isnan(), drawn.x, rows.x)
    return drawn._replace(x=whole.unflatten(0, (count, len(batch.x))))


def _resample(
    program: Program, batch: Batch, count: int, num_samples: int, shared: "_Shared | None"
) -> dict[str, Tensor]:
    """Latents chosen from draws of the guide by their weights, each example `count` times.

    One draw after the other takes the place of those chosen so far with the share that it has in
    the sum of the weights: after the last one, each has been chosen in proportion to its own.
    """
    chosen: dict[str, Tensor] = {}
    of_all: dict[str, Tensor] = {}
    total = batch.x.new_full((len(batch.x),), -torch.inf)
    for _ in range(num_samples):
        model_trace, guide_trace = trace_pair(program, batch, within=shared)
        log_weight = read_terms(model_trace, guide_trace, None).log_weight[0]
        total = torch.logaddexp(total, log_weight)
        share = (log_weight - total).exp()
        replaces = torch.rand(count, len(share), device=share.device) < share
        for name, site in sites(model_trace, observed=False).items():
            if data_frame(site) is None:
                if not torch.equal(of_all.setdefault(name, site["value"]), site["value"]):
                    raise InputError(
                        f"The latent {name!r} is outside the plate 'data', and is drawn from "
                        "latents of examples.",
                        "Let the guide draw it first.",
                    )
                continue
            value = examples_first(site["value"], site)
            here = replaces.reshape(*replaces.shape, *[1] * (value.dim() - 1))
            chosen[name] = torch.where(here, value, chosen[name] if name in chosen else value)

    return {**{name: value.flatten(0, 1) for name, value in chosen.items()}, **of_all}


def interpolate(program: Program, start: Batch, end: Batch, *, steps: int = 10) -> Generated:
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
    """
    start = brought_to(program, start)
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
    example: Batch,
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
        InputError: If there is no such site or dimension, or it holds whole numbers.
    """
    one = _repeat(example, 1)
    means = posterior_means(program, one)
    size = latent(means, site).shape[-1]
    if not means[site].is_floating_point():
        raise InputError(
            f"The latent {site!r} holds whole numbers, which cannot be moved bit by bit.",
            "Decode values of your own with pyrovae.decode.",
        )
    dims = list(range(size)) if dims is None else dims
    if any(not 0 <= dim < size for dim in dims):
        raise InputError(f"The site {site!r} has the dimensions 0 to {size - 1}.", "Name these.")

    points = means[site].expand(len(dims), steps, size).clone()
    values = torch.linspace(-reach, reach, steps, device=points.device, dtype=points.dtype)
    for row, dim in enumerate(dims):
        points[row, :, dim] = values

    count = len(dims) * steps
    latents = {name: mean.expand(count, *mean.shape[1:]) for name, mean in means.items()}
    found = decode(program, {**latents, site: points.flatten(0, 1)}, one)
    return Generated(found.x.unflatten(0, (len(dims), steps)), found.shown_by)


def manifold(program: Program, template: Batch, *, site: str = "z", side: int = 20) -> Generated:
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
        InputError: If the site is not two-dimensional.
    """
    means = posterior_means(program, _repeat(template, 1))
    size = latent(means, site).shape[-1]
    if size != 2:
        raise InputError(
            f"The latent {site!r} has {size} dimensions; a manifold can be drawn for 2.",
            "Train with --latent-dim 2, or traverse single dimensions.",
        )
    probabilities = (torch.arange(side) + 0.5) / side
    axis = torch.special.ndtri(probabilities).to(means[site])
    rows, columns = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).flatten(0, 1)

    found = decode(program, {site: points}, template)
    return Generated(found.x.unflatten(0, (side, side)), found.shown_by)


# ── Running the model without its observation ────────────────────────────────────────────────


def _run_model(
    program: Program, template: Batch, latents: Mapping[str, Tensor], *, draw: bool
) -> Generated:
    """The model with its observation freed and its latents given, those of examples row by row."""
    model = with_latents(unconditioned(program.model), latents)
    extra = labels(program.model, template)
    with fill_improper(template.x):
        trace = poutine.trace(model).get_trace(template.x, **extra)
    for name, latent_site in sites(trace, observed=False).items():
        if is_improper(latent_site["fn"]):
            raise InputError(
                f"The latent {name!r} cannot be drawn: its prior is improper.",
                "Give its values to pyrovae.decode, or give it a prior that can be drawn from.",
            )
    site = observation_site(trace, given=latents)
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


def _repeat(template: Batch, count: int) -> Batch:
    """As many rows as asked, the template's own again and again."""
    rows = torch.arange(count, device=template.x.device) % len(template.x)
    return Batch(template.x[rows], None if template.y is None else template.y[rows])


def _each(batch: Batch, times: int) -> Batch:
    """Every row several times in a row."""
    y = None if batch.y is None else batch.y.repeat_interleave(times, 0)
    return Batch(batch.x.repeat_interleave(times, 0), y)

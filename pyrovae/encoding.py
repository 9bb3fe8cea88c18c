r"""From examples to their latents, under any program's guide."""

__all__ = [
    "Encoded",
    "SharedHeld",
    "encode",
    "latent",
    "posterior_means",
    "shared_latents",
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
from pyrovae.errors import InputError
from pyrovae.programs import (
    BatchLike,
    Program,
    brought_to,
    data_frame,
    evaluating,
    examples_first,
    is_auxiliary,
    labels,
    mean_of,
    sample_sites,
    sites,
    trace_pair,
)
from pyrovae.randomness import seeded


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


def posterior_means(program: Program, batch: BatchLike) -> dict[str, Tensor]:
    """The mean of every latent site of examples under the guide, or a draw where it has none.

    Below another latent of the guide it is the mean given a draw of that, the same every time,
    and below one that all examples share, given `shared_latents`.

    Returns:
        For each latent site inside the plate `data` a tensor (N, D); (N, ..., D) where there are
        further plates round it.
    """
    batch = brought_to(program, batch)
    with evaluating(program), seeded(0, "encode", device=batch.x.device):
        _, guide_trace = trace_pair(program, batch, within=SharedHeld(batch.x.device))

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
    with seeded(0, "shared", device=batch.x.device), SharedHeld(batch.x.device, draw_by):
        trace = poutine.trace(program.guide).get_trace(batch.x, **labels(program.guide, batch))
    return {
        name: site["value"]
        for name, site in sample_sites(prune_subsample_sites(trace)).items()
        if not data_frame(site) and not is_auxiliary(site)
    }


class SharedHeld(Messenger):
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

r"""Latents: which of them say something of x, and in which range they are worth moving.

What is asked is asked of the aggregate posterior $\frac1N \sum_n q(z \mid x_n)$ of the examples
at hand, so that it is the same question whatever the prior.
"""

__all__ = ["Latent", "look_at"]

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, Examples
from pyrovae.encoding import posterior_means
from pyrovae.evaluation import ACTIVE_VARIANCE, evaluate
from pyrovae.generation import decode
from pyrovae.programs import Program, Site, evaluating, examples_first, sites, trace_pair
from pyrovae.randomness import seeded
from pyrovae.structure import Structure

# How many examples are looked at, and the quantiles of their latents that a slider goes between.
LOOKED_AT = 1000
QUANTILES = (0.005, 0.995)
# Where a slider of a standard normal latent ends.
REACH = 3.0


@dataclass(frozen=True)
class Latent:
    """One latent site, its values (D,) laid out in a row.

    Attributes:
        name: Its name.
        shape: The shape of one example's value.
        kl: The mean KL of each dimension in nats, (D,), where that is defined.
        order: The dimensions, those first that say most of x.
        active: How many of these are not collapsed: their posterior means vary over examples by
            more than a hundredth of what their draws do.
        low: Where the slider of each dimension begins, (D,).
        high: And where it ends.
        means: The posterior means of the examples, (N, D).
        direct: Whether x depends on it with all other latents held.
    """

    name: str
    shape: tuple[int, ...]
    kl: Tensor | None
    order: list[int]
    active: int
    low: Tensor
    high: Tensor
    means: Tensor
    direct: bool


def look_at(program: Program, examples: Examples, structure: Structure) -> dict[str, Latent]:
    """The local latents of a program, in the order in which its model samples them.

    Args:
        program: Any program of `pyrovae.programs`.
        examples: The examples that their posterior is looked at on, the first ones.
        structure: What `inspect_program` found.
    """
    batch = examples.head(min(LOOKED_AT, len(examples), max(2, examples.block)))
    means = posterior_means(program, batch)
    with evaluating(program), seeded(0, "explore", device=batch.x.device):
        model_trace, guide_trace = trace_pair(program, batch)
    drawn = sites(guide_trace, observed=False)
    kls: dict[str, Tensor] = {}
    if structure.has_bound:
        kls = evaluate(program, examples, num_samples=1, limit=len(batch.x)).kl_per_dim

    model_sites = sites(model_trace, observed=False)
    local = {name: means[name] for name in model_sites if name in structure.latents}
    return {
        name: _latent(
            name,
            model_sites[name],
            value.flatten(1).cpu().float(),
            examples_first(drawn[name]["value"], drawn[name]).flatten(1).cpu().float(),
            kls.get(name),
            direct=_is_direct(program, local, name, batch),
        )
        for name, value in local.items()
    }


def _latent(
    name: str, site: Site, means: Tensor, draws: Tensor, kl: Tensor | None, *, direct: bool
) -> Latent:
    varies, spread = means.var(0, correction=0), draws.var(0, correction=0)
    active = varies > ACTIVE_VARIANCE * spread
    # Collapsed ones come last, whatever the noise of their KL.
    weight = varies if kl is None else kl
    order = sorted(range(len(varies)), key=lambda d: (not active[d], -float(weight[d])))
    low, high = _range(site["fn"], draws)
    return Latent(
        name,
        tuple(examples_first(site["value"], site).shape[1:]),
        kl,
        order,
        int(active.sum()),
        low,
        high,
        means,
        direct=direct,
    )


def _range(prior: Any, draws: Tensor) -> tuple[Tensor, Tensor]:
    base = prior
    # Not of a flow's, whose base is another distribution.
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if isinstance(base, dist.Normal) and bool(((base.loc == 0) & (base.scale == 1)).all()):
        return torch.full_like(draws[0], -REACH), torch.full_like(draws[0], REACH)
    low, high = torch.quantile(draws, torch.tensor(QUANTILES), dim=0)
    # A latent that has one value in all draws is moved by one either way.
    still = low == high
    return torch.where(still, low - 1, low), torch.where(still, high + 1, high)


def _is_direct(program: Program, local: dict[str, Tensor], name: str, batch: Batch) -> bool:
    """Whether the latent of another example, the others held, gives another x."""
    held = {site: value[[0, 0]] for site, value in local.items()}
    moved = local[name][[0, -1]]
    # Of several rows of the template, the same labels.
    one = Batch(batch.x[:1], None if batch.y is None else batch.y[:1])
    found = decode(program, {**held, name: moved}, one).x.float()
    return not torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-7)

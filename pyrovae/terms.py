r"""The terms of the bound, one number per example, read from a program's traces.

Everything is at weight 1 and in nats: `poutine.scale`, beta and warm-ups, which shape the
training loss, are left out; `poutine.mask`, which says what was observed, counts.

Latents g outside the plate `data`, such as the weights of a Bayesian decoder, are of no one
example. Every particle has a draw of theirs from the guide, which the terms of examples are given.
"""

__all__ = ["Terms", "draw_terms", "read_terms", "sum_terms"]

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.distributions import exact_kl, factorizes
from pyrovae.programs import (
    PLATE,
    Program,
    Site,
    data_frame,
    is_auxiliary,
    sample_sites,
    sites,
    trace_pair,
)
from pyrovae.structure import Structure


@dataclass(frozen=True)
class Terms:
    r"""The terms of the bound for K draws from the guide and N examples, in nats.

    Attributes:
        log_likelihood: $\log p(x \mid z, g)$, with shape (K, N).
        log_prior: $\log p(z \mid g)$ of the guide's latents under the model, with shape (K, N).
        log_posterior: $\log q(z \mid x, g)$, with shape (K, N).
        kl_per_dim: For each latent vector whose prior and posterior both factorise, the KL of
            every dimension, averaged over the draws, with shape (N, D).
        latent_means: For each latent vector $E_q[z \mid x]$, with shape (N, D).
        global_kl: $\log q(g) - \log p(g)$ of the latents outside the plate, with shape (K,).
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    kl_per_dim: dict[str, Tensor]
    latent_means: dict[str, Tensor]
    global_kl: Tensor

    @property
    def log_weight(self) -> Tensor:
        r"""The importance weights $\log p(x, z \mid g) - \log q(z \mid x, g)$: (K, N)."""
        return self.log_likelihood + self.log_prior - self.log_posterior


def draw_terms(program: Program, batch: Batch, num_particles: int, structure: Structure) -> Terms:
    r"""The terms of the bound for K draws $z \sim q(z \mid x)$ of each example.

    Args:
        program: The program, within `evaluating`.
        batch: N examples.
        num_particles: The number K of draws.
        structure: What `inspect_program` found.
    """
    if not structure.vectorizes:
        runs = [read_terms(*trace_pair(program, batch), None) for _ in range(num_particles)]
        return _join(runs)

    dim = -1 - structure.depth
    particles = pyro.plate("particles", num_particles, dim=dim)
    return read_terms(*trace_pair(program, batch, within=particles), dim)


def sum_terms(program: Program, batches: Iterable[Batch], structure: Structure) -> Tensor:
    r"""The ELBO, $E_q[\log p(x \mid z)]$ and $\mathrm{KL}(q \,\|\, p)$ over batches, by one draw.

    Sums over examples, behind them that of the global KL, counted for every example, and how many
    examples these were: a tensor (5,) in float64 on the CPU. Within `evaluating`, as
    `draw_terms`.
    """
    totals = [_sum_batch(program, batch, structure) for batch in batches]
    return torch.stack(totals).sum(0).cpu() if totals else torch.zeros(5, dtype=torch.float64)


def _sum_batch(program: Program, batch: Batch, structure: Structure) -> Tensor:
    """The sums of one batch, where it lies: nothing waits for them."""
    terms = draw_terms(program, batch, 1, structure)
    kl = terms.log_posterior - terms.log_prior
    sums = [term.sum() for term in (terms.log_weight, terms.log_likelihood, kl)]
    of_each = torch.cat([terms.global_kl, torch.ones_like(terms.global_kl)])
    return torch.cat([torch.stack(sums).double(), of_each.double() * len(batch.x)])


def read_terms(model_trace: Trace, guide_trace: Trace, particle_dim: int | None) -> Terms:
    """The terms of the draws in a pair of traces, their particles in one dimension, or none."""
    # What the guide says by a factor is of its density, too.
    latents, guided = sites(guide_trace, observed=False), sample_sites(guide_trace)
    observed = sites(model_trace, observed=True)
    frame = data_frame(next(iter(observed.values())))
    dims = (particle_dim, frame.dim)

    zero = next(iter(observed.values()))["value"].new_zeros((), dtype=torch.float32)

    def total(group: dict[str, Site]) -> Tensor:
        # A site that no particle reaches has no particle dimension: broadcasting restores it.
        return sum((_keep(_log_prob(site), *dims) for site in group.values()), zero)

    # A latent that the guide leaves to the model is drawn from p(z), and cancels in the weights.
    matched = {n: model_trace.nodes[n] for n in latents if n in model_trace}
    log_likelihood, log_prior, log_posterior = torch.broadcast_tensors(
        total(observed), total(_local(matched)), total(_local(guided))
    )
    global_kl = _outside(guided, particle_dim, zero) - _outside(matched, particle_dim, zero)
    vectors = {n: s for n, s in latents.items() if _is_vector(s)}
    # An exact KL at a draw of p's parents needs them drawn before z, as a guide against the
    # model's order does not.
    in_order = list(matched) == [name for name in model_trace.nodes if name in matched]
    kls = {n: _kl_per_dim(matched[n], q, *dims, exact=in_order) for n, q in vectors.items()}

    return Terms(
        log_likelihood=log_likelihood,
        log_prior=log_prior,
        log_posterior=log_posterior,
        kl_per_dim={name: kl for name, kl in kls.items() if kl is not None},
        latent_means={n: _average(_mean(site), *dims) for n, site in vectors.items()},
        global_kl=global_kl.expand(len(log_likelihood)),
    )


def _local(group: dict[str, Site]) -> dict[str, Site]:
    """The sites inside the plate `data`."""
    return {name: site for name, site in group.items() if data_frame(site)}


def _outside(group: dict[str, Site], particle_dim: int | None, zero: Tensor) -> Tensor:
    """The log-probability of the sites outside the plate `data`: (K,) or (1,)."""
    each = [_log_prob(site) for site in group.values() if not data_frame(site)]
    dim = None if particle_dim is None else particle_dim - 1
    # As if they were of a single example.
    return sum((_keep(log_prob[..., None], dim, -1)[:, 0] for log_prob in each), zero)


def _is_vector(site: Site) -> bool:
    """Whether a site holds one vector for each example, no further plate inside `data`."""
    inner = {frame.name for frame in site["cond_indep_stack"]} - {PLATE, "particles"}
    own = data_frame(site) is not None and not is_auxiliary(site)
    return own and site["fn"].event_dim == 1 and not inner


def _join(runs: list[Terms]) -> Terms:
    def mean(pick: Callable[[Terms], dict[str, Tensor]]) -> dict[str, Tensor]:
        return {n: torch.stack([pick(run)[n] for run in runs]).mean(0) for n in pick(runs[0])}

    return Terms(
        log_likelihood=torch.cat([run.log_likelihood for run in runs]),
        log_prior=torch.cat([run.log_prior for run in runs]),
        log_posterior=torch.cat([run.log_posterior for run in runs]),
        kl_per_dim=mean(lambda run: run.kl_per_dim),
        latent_means=mean(lambda run: run.latent_means),
        global_kl=torch.cat([run.global_kl for run in runs]),
    )


def _log_prob(site: Site) -> Tensor:
    """A site's log-probability, with its batch shape."""
    log_prob = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
    return log_prob


def _keep(value: Tensor, particle_dim: int | None, data_dim: int) -> Tensor:
    """Sums a tensor over every dimension but two, and lays these out as (K or 1, N)."""
    kept = {dim for dim in (particle_dim, data_dim) if dim is not None and dim >= -value.dim()}
    others = [dim for dim in range(-value.dim(), 0) if dim not in kept]
    value = value.sum(others) if others else value

    return value.reshape(-1, value.shape[-1])


def _average(value: Tensor, particle_dim: int | None, data_dim: int) -> Tensor:
    """Averages over particles a tensor (*, D), one event dimension behind its batch: (N, D)."""
    rank = value.dim() - 1
    if particle_dim is not None and -particle_dim <= rank:
        value = value.mean(particle_dim - 1)
    return value.reshape(-1, value.shape[data_dim - 1], value.shape[-1]).mean(0)


def _kl_per_dim(
    p: Site, q: Site, particle_dim: int | None, data_dim: int, *, exact: bool
) -> Tensor | None:
    """KL(q ‖ p) of each dimension, (N, D): exact where it can be, else by the draws."""
    if not (factorizes(p["fn"]) and factorizes(q["fn"])):
        return None

    p_base, q_base = p["fn"].base_dist, q["fn"].base_dist
    kl = exact_kl(q_base, p_base) if exact else None
    if kl is None:
        kl = q_base.log_prob(q["value"]) - p_base.log_prob(q["value"])
    if q["mask"] is not None:
        kl = torch.where(torch.as_tensor(q["mask"]).unsqueeze(-1), kl, 0.0)
    return _average(kl, particle_dim, data_dim)


def _mean(site: Site) -> Tensor:
    """The mean of a site's distribution, or its draws where that has no mean, as a Cauchy's."""
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        return site["value"]
    return torch.where(torch.isfinite(mean), mean, site["value"])

r"""The terms of the bound, one number per example, read from a program's traces.

Everything is at weight 1 and in nats: `poutine.scale`, beta and warm-ups, which shape the
training loss, are left out; `poutine.mask`, which says what was observed, counts.
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
from pyrovae.errors import InputError
from pyrovae.inspection import Structure
from pyrovae.programs import PLATE, Program, Site, data_frame, is_auxiliary, sites, trace_pair


@dataclass(frozen=True)
class Terms:
    r"""The terms of the bound for K draws from the guide and N examples, in nats.

    Attributes:
        log_likelihood: $\log p(x \mid z)$, with shape (K, N).
        log_prior: $\log p(z)$ of the guide's latents under the model, with shape (K, N).
        log_posterior: $\log q(z \mid x)$, with shape (K, N).
        kl_per_dim: For each latent vector whose prior and posterior both factorise, the KL of
            every dimension, averaged over the draws, with shape (N, D).
        latent_means: For each latent vector $E_q[z \mid x]$, with shape (N, D).
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    kl_per_dim: dict[str, Tensor]
    latent_means: dict[str, Tensor]

    @property
    def log_weight(self) -> Tensor:
        r"""The importance weights $\log p(x, z) - \log q(z \mid x)$, with shape (K, N)."""
        return self.log_likelihood + self.log_prior - self.log_posterior


def draw_terms(program: Program, batch: Batch, num_particles: int, structure: Structure) -> Terms:
    r"""The terms of the bound for K draws $z \sim q(z \mid x)$ of each example.

    Args:
        program: The program, within `evaluating`.
        batch: N examples.
        num_particles: The number K of draws.
        structure: What `inspect_program` found.

    Raises:
        InputError: If the program has a global latent: its terms belong to no one example.
    """
    if structure.global_latents:
        raise InputError(
            f"The latent site {structure.global_latents[0]!r} is outside the plate 'data', and "
            "the evaluation of programs with global latents is not supported yet.",
            "Move it inside the plate, or evaluate with pyro.infer.Predictive.",
        )

    if not structure.vectorizes:
        runs = [read_terms(*trace_pair(program, batch), None) for _ in range(num_particles)]
        return _join(runs)

    dim = -1 - structure.depth
    particles = pyro.plate("particles", num_particles, dim=dim)
    return read_terms(*trace_pair(program, batch, within=particles), dim)


def sum_terms(program: Program, batches: Iterable[Batch], structure: Structure) -> Tensor:
    r"""The ELBO, $E_q[\log p(x \mid z)]$ and $\mathrm{KL}(q \,\|\, p)$ over batches, by one draw.

    Sums over examples, and behind them how many examples these were: a tensor (4,) in float64
    on the CPU. Within `evaluating`, as `draw_terms`.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        terms = draw_terms(program, batch, 1, structure)
        kl = terms.log_posterior - terms.log_prior
        each = (terms.log_weight, terms.log_likelihood, kl)
        totals[:3] += torch.stack([term.sum() for term in each]).double().cpu()
        totals[3] += len(batch.x)
    return totals


def read_terms(model_trace: Trace, guide_trace: Trace, particle_dim: int | None) -> Terms:
    """The terms of the draws in a pair of traces, their particles in one dimension, or none."""
    latents = sites(guide_trace, observed=False)
    observed = sites(model_trace, observed=True)
    frame = data_frame(next(iter(observed.values())))
    dims = (particle_dim, frame.dim)

    zero = next(iter(observed.values()))["value"].new_zeros((), dtype=torch.float32)

    def total(group: list[Site]) -> Tensor:
        # A site that no particle reaches has no particle dimension: broadcasting restores it.
        return sum((_per_example(site, *dims) for site in group), zero)

    # A latent that the guide leaves to the model is drawn from p(z), and cancels in the weights.
    shared = {n: model_trace.nodes[n] for n in latents if n in model_trace}
    log_likelihood, log_prior, log_posterior = torch.broadcast_tensors(
        total(list(observed.values())), total(list(shared.values())), total(list(latents.values()))
    )
    vectors = {n: s for n, s in latents.items() if _is_vector(s)}
    # An exact KL at a draw of p's parents needs them drawn before z, as a guide against the
    # model's order does not.
    in_order = list(shared) == [name for name in model_trace.nodes if name in shared]
    kls = {n: _kl_per_dim(shared[n], q, *dims, exact=in_order) for n, q in vectors.items()}

    return Terms(
        log_likelihood=log_likelihood,
        log_prior=log_prior,
        log_posterior=log_posterior,
        kl_per_dim={name: kl for name, kl in kls.items() if kl is not None},
        latent_means={n: _average(_mean(site), *dims) for n, site in vectors.items()},
    )


def _is_vector(site: Site) -> bool:
    """Whether a site holds one vector for each example, no further plate inside `data`."""
    inner = {frame.name for frame in site["cond_indep_stack"]} - {PLATE, "particles"}
    return site["fn"].event_dim == 1 and not inner and not is_auxiliary(site)


def _join(runs: list[Terms]) -> Terms:
    def mean(pick: Callable[[Terms], dict[str, Tensor]]) -> dict[str, Tensor]:
        return {n: torch.stack([pick(run)[n] for run in runs]).mean(0) for n in pick(runs[0])}

    return Terms(
        log_likelihood=torch.cat([run.log_likelihood for run in runs]),
        log_prior=torch.cat([run.log_prior for run in runs]),
        log_posterior=torch.cat([run.log_posterior for run in runs]),
        kl_per_dim=mean(lambda run: run.kl_per_dim),
        latent_means=mean(lambda run: run.latent_means),
    )


def _per_example(site: Site, particle_dim: int | None, data_dim: int) -> Tensor:
    """A site's log-probability, summed over all but particles and examples: (K or 1, N)."""
    log_prob = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)

    return _keep(log_prob, particle_dim, data_dim)


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

r"""Measuring a program: per example, in nats, with error bars.

All of it comes from the same K draws $z_k \sim q(z \mid x)$ and their importance weights
$\log w_k = \log p(x, z_k) - \log q(z_k \mid x)$:

$$\mathrm{ELBO} = \tfrac1K \sum_k \log w_k, \qquad \log \hat p(x) = \log \tfrac1K \sum_k w_k.$$

Latents $g$ that all examples share, those outside the plate such as the weights of a Bayesian
decoder, are drawn anew for every $w_k$, which is given them: with $g_k \sim q(g)$

$$\log w_k = \log p(x, z_k \mid g_k) - \log q(z_k \mid x, g_k).$$

What is estimated, and bounded, is then the predictive density
$p(x) = \int q(g) \, p(x \mid g) \, dg$. Their own KL is of no one example.
"""

__all__ = ["Evaluation", "evaluate", "log_evidence", "pareto_k"]

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.checks import whole
from pyrovae.data import Batch, Examples, Given, as_examples
from pyrovae.draws import Draws
from pyrovae.errors import InputError
from pyrovae.inspection import inspect_program
from pyrovae.memory import available, peak_of
from pyrovae.programs import (
    Program,
    device_of,
    dtype_of,
    evaluating,
    observation_site,
    trace_pair,
)
from pyrovae.randomness import seeded
from pyrovae.structure import Structure
from pyrovae.supports import check_support
from pyrovae.terms import draw_terms

# The most values of x that are decoded at a time, and the share of the memory at hand that
# this may take.
CHUNK = {"cpu": 2**22, "cuda": 2**24}
SHARE = 0.5
# And how many importance weights are held.
WEIGHTS = 2**22
ACTIVE_VARIANCE = 0.01
COLLAPSED_KL = 0.1
HEAVY_TAIL = 0.7


@dataclass(frozen=True)
class Evaluation:
    r"""What an evaluation found. Every tensor is per example, (N,), in nats, at weight 1.

    Attributes:
        elbo: The evidence lower bound.
        log_likelihood: Its first term, $E_q[\log p(x \mid z)]$.
        kl: Its second term, $\mathrm{KL}(q(z \mid x) \,\|\, p(z))$.
        log_evidence: $\log p(x)$ by importance sampling; a lower bound in expectation.
        log_evidence_error: Its Monte Carlo standard error, by the delta method.
        pareto_k: The tail index of the weights: above 0.7 neither the estimate nor its error can
            be trusted for that example. NaN where there are too few draws to tell.
        kl_per_dim: The mean KL of every dimension of each latent vector, (D,), of those whose
            prior and posterior factorise over dimensions.
        latent_means: $E_q[z \mid x]$ of each latent vector, (N, D).
        global_kl: $\mathrm{KL}(q(g) \,\|\, p(g))$ of the latents that all examples share, by their
            draws, in nats in all; None where there are none, or theirs is undefined.
        labels: The labels of the examples, where there are any.
        num_samples: The number K of draws.
        seconds: How long it took.
        log_cell_volume: What turns $\log p(x)$ into the log-probability of discrete data, per
            dimension of x: 0 for a discrete likelihood, and None where there is no such thing,
            or where examples have missing entries and so no one number of dimensions.
        dims: The number of dimensions of x.
        shared_error: The Monte Carlo error of the mean log-evidence where examples share draws,
            and None where they do not.
    """

    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    pareto_k: Tensor
    kl_per_dim: dict[str, Tensor]
    latent_means: dict[str, Tensor]
    global_kl: float | None
    labels: Tensor | None
    num_samples: int
    seconds: float
    log_cell_volume: float | None
    dims: int
    shared_error: float | None = None

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return len(self.elbo)

    @property
    def active_units(self) -> int:
        r"""The dimensions with $\mathrm{Var}_x(E_q[z_d \mid x]) > 0.01$ (Burda et al., 2016)."""
        means = self.latent_means.values()
        return sum(int((m.var(0, correction=0) > ACTIVE_VARIANCE).sum()) for m in means)

    @property
    def collapsed(self) -> bool:
        """Whether the posterior says nothing of x: no active unit, and a KL below 0.1 nats."""
        says_nothing = self.active_units == 0 and self.kl.mean().item() < COLLAPSED_KL
        return says_nothing and self.latent_dims > 0

    @property
    def latent_dims(self) -> int:
        """The number of latent dimensions that `active_units` counts among."""
        return sum(means.shape[-1] for means in self.latent_means.values())

    @property
    def bits_per_dim(self) -> float | None:
        r"""$-\log_2 P(x)$ per dimension, for discrete or dequantised data alone; else None."""
        if self.log_cell_volume is None:
            return None
        nats = self.log_evidence.mean().item() / self.dims + self.log_cell_volume
        return -nats / math.log(2)

    @property
    def monte_carlo_error(self) -> float:
        """The part of the error of the mean log-evidence that more draws would remove."""
        if self.shared_error is not None:
            return self.shared_error
        return self.log_evidence_error.square().sum().sqrt().item() / self.num_examples

    @property
    def heavy_share(self) -> float:
        r"""The share of examples with $\hat k > 0.7$; NaN if there are too few draws to tell."""
        return math.nan if self.pareto_k.isnan().any() else _mean(self.pareto_k > HEAVY_TAIL)

    @property
    def warning(self) -> str | None:
        r"""What to know before $\log \hat p(x)$ is believed: that most of its weights are heavy.

        None where $\hat k$ is above 0.7 for half of the examples or fewer, or cannot be told.
        """
        if not self.heavy_share > 0.5:
            return None
        return (
            f"log p(x) is underestimated: for {self.heavy_share:.0%} of the examples a few of the "
            f"{self.num_samples:,} samples carry most of the weight (k-hat above {HEAVY_TAIL}). "
            "Take more samples, or train with a tighter bound such as IWAE or DReG."
        )

    def summary(self) -> dict[str, Any]:
        """The numbers in plain Python: means over examples, with their standard errors.

        What cannot be told, such as the error of a single example, is None.
        """
        found = {
            "elbo": self.elbo.mean().item(),
            "elbo_se": standard_error(self.elbo),
            "log_likelihood": self.log_likelihood.mean().item(),
            "kl": self.kl.mean().item(),
            **({} if self.global_kl is None else {"global_kl": self.global_kl}),
            "log_evidence": self.log_evidence.mean().item(),
            "log_evidence_se": standard_error(self.log_evidence),
            "log_evidence_monte_carlo_se": self.monte_carlo_error,
            "pareto_k_above_0.7": self.heavy_share,
            "warning": self.warning,
            "num_samples": self.num_samples,
            "num_examples": self.num_examples,
            "active_units": self.active_units,
            "bits_per_dim": self.bits_per_dim,
            "seconds": self.seconds,
        }
        return {key: None if value != value else value for key, value in found.items()}


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def standard_error(values: Tensor) -> float:
    """The standard error of a mean over examples; NaN for a single one."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def evaluate(
    program: Program,
    examples: Given,
    *,
    num_samples: int = 1000,
    limit: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measures a program on examples, in memory that depends on neither their number nor K.

    It takes no more than half of the memory at hand. Where that is too little for draws in the
    usual numbers fewer are made at a time, and their noise is another.

    Args:
        program: Any program of `pyrovae.programs`.
        examples: N examples, with the same noise at every call; the test set of a data set; or
            the program's x itself, as a tensor or an array.
        num_samples: The number K of draws from the guide for each example.
        limit: How many examples to measure, the first ones.
        seed: The seed of the draws. Batching does not change the examples' own noise.

    Raises:
        InputError: If the program has no bound on log p(x), an example lies outside the support
            of its likelihood, or a number is less than 1 or not whole.
    """
    num_samples = whole("num_samples", num_samples)
    limit = None if limit is None else whole("limit", limit)

    start = time.perf_counter()
    examples = _on_its_device(program, examples)
    first = examples.head(3)
    structure = inspect_program(program, first)
    _check_bound(structure)
    check_support(program, examples.in_order(examples.block, limit=limit))

    dims = first.x[0].numel()
    rows = _most_rows(program, structure, first)
    count = min(len(examples), limit or len(examples))
    # No more than the plate has, lest one that is told its subsample's size be too small.
    most = structure.full_size or count
    batch_size = max(1, min(rows, 500, WEIGHTS // num_samples, count, most))
    parts: list[dict[str, Any]] = []
    calls = max(1, count // batch_size) * -(-num_samples // max(1, rows // batch_size))
    with evaluating(program):
        draws = Draws(program, structure, calls)
        for index, batch in enumerate(examples.in_order(batch_size, limit=limit)):
            with seeded(seed, "evaluate", index, device=examples.device):
                parts.append(_measure(draws, batch, num_samples, rows))
        log_cell_volume = None
        if len(structure.observed) == 1 and not examples.missing:
            log_cell_volume = _log_cell_volume(program, examples, first)

    found = _join(parts)
    kl_per_dim = {site: kl.mean(0) for site, kl in found.pop("kl_per_dim").items()}
    global_kl = found.pop("global_kl").mean().item()
    errors = found.pop("shared_errors")
    return Evaluation(
        **found,
        kl_per_dim=kl_per_dim,
        global_kl=global_kl if structure.has_global_kl else None,
        num_samples=num_samples,
        seconds=time.perf_counter() - start,
        log_cell_volume=log_cell_volume,
        dims=dims,
        shared_error=errors.norm().item() / count if structure.global_latents else None,
    )


def log_evidence(
    program: Program, examples: Given, *, num_samples: int = 1000, seed: int = 0
) -> Tensor:
    r"""$\log \hat p(x)$ of each example by draws of its own, in nats, with shape (N,).

    `evaluate` draws for whole batches, which is faster. Here the draws of an example are a
    function of its values: its number does not depend on its place, nor, but for the rounding of
    draws that are compiled where many are to come, on those beside it.

    Args:
        program: Any program of `pyrovae.programs`.
        examples: N examples, as `evaluate` takes them.
        num_samples: The number of draws from the guide for each example.
        seed: The seed of the draws.

    Raises:
        InputError: As `evaluate`.
    """
    num_samples = whole("num_samples", num_samples)
    examples = _on_its_device(program, examples)
    first = examples.head(3)
    structure = inspect_program(program, first)
    _check_bound(structure)
    check_support(program, examples.in_order(examples.block))

    rows = _most_rows(program, structure, first)
    found: list[Tensor] = []
    with evaluating(program):
        draws = Draws(program, structure, len(examples) * -(-num_samples // rows))
        for example in examples.in_order(1):
            content = example.x.cpu().numpy().tobytes().hex()
            with seeded(seed, "evaluate", content, device=examples.device):
                found.append(_measure(draws, example, num_samples, rows)["log_evidence"])
    return torch.cat(found).cpu()


def _on_its_device(program: Program, examples: Given) -> Examples:
    return as_examples(examples, "test", dtype=dtype_of(program)).to(device_of(program))


def _most_rows(program: Program, structure: Structure, batch: Batch) -> int:
    """How many draws of examples such as these can be made at a time."""
    if structure.global_latents:
        # Each draw has its own, whatever the number of examples.
        batch = Batch(batch.x[:1], None if batch.y is None else batch.y[:1])
    most = max(1, CHUNK.get(batch.x.device.type, CHUNK["cpu"]) // batch.x[0].numel())
    at_hand = available(batch.x.device)
    if at_hand is None or not structure.vectorizes:
        return most

    def draw(count: int) -> int:
        with seeded(0, "memory", device=batch.x.device):
            return peak_of(lambda: draw_terms(program, batch, count, structure))

    with evaluating(program):
        each = max(1.0, (draw(4) - draw(2)) / (2 * len(batch.x)))
    return max(1, min(most, int(SHARE * at_hand / each)))


def _check_bound(structure: Structure) -> None:
    if structure.improper:
        raise InputError(
            f"log p(x) is undefined: the prior of the latent {structure.improper[0]!r} is "
            "improper, so the model is no distribution of x.",
            "Give the latent a prior that can be drawn from, as pyrovae.VAE does.",
        )
    if structure.points:
        raise InputError(
            f"The guide puts the latent {structure.points[0]!r} at a single point, which has no "
            "density: the ELBO is minus infinity, and log p(x) cannot be estimated by its draws.",
            "Let the guide draw the latent, as pyrovae.VAE does.",
        )


def _join(parts: list[Any]) -> Any:
    """Joins what was measured of batches, example by example, on the CPU."""
    if isinstance(parts[0], dict):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    return None if parts[0] is None else torch.cat(parts).cpu()


def _measure(draws: Draws, batch: Batch, num_samples: int, rows: int) -> dict[str, Any]:
    """What `Evaluation` holds per example, of one batch.

    Its particles are drawn a few at a time, and only their weights are kept.
    """
    at_once = max(1, rows // len(batch.x))
    log_weights: list[Tensor] = []
    global_kls: list[Tensor] = []
    log_likelihood = torch.zeros(len(batch.x), dtype=torch.float64, device=batch.x.device)
    kl_per_dim: dict[str, Tensor] = {}
    latent_means: dict[str, Tensor] = {}
    for done in range(0, num_samples, at_once):
        count = min(at_once, num_samples - done)
        terms = draws(batch, count)
        log_weights.append(terms.log_weight.double())
        global_kls.append(terms.global_kl.double())
        log_likelihood += terms.log_likelihood.double().sum(0) / num_samples
        _add(kl_per_dim, terms.kl_per_dim, share=count / num_samples)
        _add(latent_means, terms.latent_means, share=count / num_samples)

    log_weight = torch.cat(log_weights)
    log_evidence = log_weight.logsumexp(0) - math.log(num_samples)
    elbo = log_weight.mean(0)
    relative = (log_weight - log_evidence).exp()

    return {
        "elbo": elbo,
        "log_likelihood": log_likelihood,
        "kl": log_likelihood - elbo,
        "log_evidence": log_evidence,
        "log_evidence_error": _delta_error(relative),
        "pareto_k": pareto_k(log_weight),
        "kl_per_dim": kl_per_dim,
        "latent_means": latent_means,
        "global_kl": torch.cat(global_kls),
        "shared_errors": len(batch.x) * _delta_error(relative.mean(1, keepdim=True)),
        "labels": batch.y,
    }


def _add(totals: dict[str, Tensor], found: dict[str, Tensor], *, share: float) -> None:
    for site, value in found.items():
        totals[site] = totals.get(site, 0) + share * value


def _delta_error(relative: Tensor) -> Tensor:
    r"""The standard error of $\log \tfrac1K \sum_k w_k$, by weights over their mean, (K, n)."""
    if len(relative) < 2:
        return torch.full_like(relative[0], math.nan)
    return relative.std(0) / math.sqrt(len(relative))


def _log_cell_volume(program: Program, examples: Examples, first: Batch) -> float | None:
    model_trace, _ = trace_pair(program, first)
    support: Any = observation_site(model_trace)["fn"].support

    return 0.0 if support.is_discrete else examples.preprocessing.log_cell_volume


def pareto_k(log_weight: Tensor) -> Tensor:
    r"""The tail index $\hat k$ of importance weights, for each column of a (K, N) tensor.

    A generalised Pareto distribution is fitted to the largest $\min(K / 5, 3 \sqrt K)$ weights
    by the method of Zhang & Stephens (2009), with the prior of Vehtari et al. that pulls small
    samples towards 0.5. With fewer than 5 in the tail it is NaN,
    and with weights that are all equal minus infinity.

    References:
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024), arXiv:1507.02646.
    """
    size = int(min(len(log_weight) / 5, 3 * math.sqrt(len(log_weight))))
    if size < 5:
        return torch.full_like(log_weight[0], math.nan)

    top = log_weight.double().topk(size + 1, dim=0, sorted=True).values
    # Exceedances over the largest weight outside the tail, ascending, scaled by the maximum.
    tail = ((top[:-1] - top[0]).exp() - (top[-1] - top[0]).exp()).flip(0).T
    k = _fit_tail(tail.clamp(min=1e-300))

    # Weights that agree to rounding, as at the exact posterior, have no tail to speak of.
    rounding = 16 * torch.finfo(torch.float32).eps * top.abs().amax(0)
    spread = top[0] - top[-1]
    return torch.where(spread > rounding.clamp(min=1e-3), (k * size + 5) / (size + 10), -math.inf)


def _fit_tail(x: Tensor) -> Tensor:
    """Zhang & Stephens' estimate of the shape for sorted exceedances (N, M) -> (N,)."""
    size = x.shape[1]
    grid = torch.arange(1, 31 + int(math.sqrt(size)), dtype=x.dtype, device=x.device) - 0.5
    steps = 1 - ((len(grid)) / grid).sqrt()
    quartile = x[:, int(size / 4 + 0.5) - 1, None]
    b = 1 / x[:, -1:] + steps / (3 * quartile)

    k = torch.log1p(-b[..., None] * x[:, None]).mean(-1)
    log_profile = size * ((-b / k).log() - k - 1)
    posterior = torch.softmax(log_profile, dim=-1)
    b = (posterior * b).sum(-1, keepdim=True)

    return torch.log1p(-b * x).mean(-1)

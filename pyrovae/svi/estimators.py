r"""Pyro's estimators of a bound without a host synchronisation.

Pyro's ELBO objects read the value of every site with `.item()`. Each read makes the CPU wait
for the device, and no tracer and no CUDA graph survives it. Here the same estimators, from
the same traces, keep tensors: a value to report, and a surrogate whose gradient is the
estimator's.
"""

__all__ = ["Estimate", "estimate_with", "has_estimate", "has_own_loss"]

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro.distributions.util import is_identically_zero
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer import traceenum_elbo as enumeration
from pyro.infer.util import (
    Dice,
    get_dependent_plate_dims,
    is_validation_enabled,
    torch_sum,
)
from pyro.ops import packed
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import MarginalRing
from torch import Tensor

from pyrovae.errors import InputError

Estimate = Callable[..., tuple[Tensor, Tensor]]
"""`estimate(*args, **kwargs) -> (value, surrogate)`, two scalars of the same value or nearly."""


def has_estimate(loss: Any) -> bool:
    """Whether a loss can be estimated without calling `backward` by itself."""
    loss = _without_jit(loss)
    return not isinstance(loss, ELBO) or _method_for(loss) is not None


# Pyro's estimators that compile themselves by torch.jit, and what they compile.
_JITTED: Mapping[Any, Any] = {
    JitTrace_ELBO: Trace_ELBO,
    JitTraceEnum_ELBO: TraceEnum_ELBO,
    JitTraceMeanField_ELBO: TraceMeanField_ELBO,
}


def _without_jit(loss: Any) -> Any:
    """The same loss where it would compile itself: that is for the back ends to do."""
    kind = _JITTED.get(type(loss))
    if kind is None:
        return loss
    plain = kind.__new__(kind)
    vars(plain).update(vars(loss))
    return plain


def estimate_with(loss: Any, model: Callable[..., Any], guide: Callable[..., Any]) -> Estimate:
    """The value of a loss and a surrogate with its gradient, as tensors.

    Args:
        loss: What `pyro.infer.SVI` takes: one of Pyro's `ELBO` objects or a subclass, any object
            with a `differentiable_loss`, or a function of (model, guide, *args, **kwargs).
        model: The model.
        guide: The guide.

    Returns:
        A function of the program's arguments.

    Raises:
        InputError: If the loss has no value but infinity.
    """
    particle = getattr(loss, "_differentiable_loss_particle", None)
    if getattr(particle, "__func__", None) is TraceTailAdaptive_ELBO._differentiable_loss_particle:
        raise InputError(
            f"{type(loss).__name__} reports infinite losses by design, in which a step that went "
            "wrong could not be told.",
            "Take DReG or IWAE of several particles (--bound dreg or iwae), or pyro.infer.SVI.",
        )
    loss = _without_jit(loss)
    method = _method_for(loss) if isinstance(loss, ELBO) else None
    return partial(_call, method or _differentiable, loss, model, guide)


def _method_for(loss: ELBO) -> Callable[..., tuple[Any, Any]] | None:
    """How to estimate an ELBO: what its class inherits unchanged of Pyro's is replaced."""
    kind: Any = type(loss)
    if "loss_and_grads" in vars(loss):
        return None
    if kind.loss_and_grads is Trace_ELBO.loss_and_grads:
        particle = kind._differentiable_loss_particle
        return partial(_over_traces, _PARTICLES.get(particle, particle))
    if kind.loss_and_grads is TraceEnum_ELBO.loss_and_grads:
        return _enumerated
    if kind.loss_and_grads is RenyiELBO.loss_and_grads:
        return _renyi
    return _differentiable if _has_gradient_of_its_loss(kind) else None


def _has_gradient_of_its_loss(kind: Any) -> bool:
    """Whether what a class differentiates is what it trains by: not if one alone is replaced."""
    differentiable = _home(kind, "differentiable_loss")
    trained = _home(kind, "loss_and_grads")
    trained = _JITTED.get(trained, trained)
    return differentiable is not None and (trained is None or issubclass(differentiable, trained))


def _home(kind: type, name: str) -> Any:
    """The class that an attribute of a class is inherited from."""
    return next((base for base in kind.__mro__ if name in vars(base)), None)


def has_own_loss(loss: Any) -> bool:
    """Whether an ELBO has a `loss` of a user's, which `evaluate_loss` is to call."""
    if not isinstance(loss, ELBO):
        return False
    home = _home(type(loss), "loss")
    ours = home is not None and home.__module__.startswith(("pyro.", "pyrovae."))
    return "loss" in vars(loss) or not ours


def _call(
    method: Any, loss: ELBO, model: Any, guide: Any, /, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    value, surrogate = method(loss, model, guide, args, kwargs)
    return torch.as_tensor(value).detach(), torch.as_tensor(surrogate)


def _differentiable(loss: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A loss that is a tensor with the right gradient already, or a function that returns one."""
    surrogate = getattr(loss, "differentiable_loss", loss)(model, guide, *args, **kwargs)
    if not isinstance(surrogate, Tensor) or surrogate.numel() != 1:
        shape = f" of shape {tuple(surrogate.shape)}" if isinstance(surrogate, Tensor) else ""
        raise InputError(
            f"The loss is a {type(surrogate).__name__}{shape}, and not one number.",
            "Let it return a tensor of a single number; pyro.infer.SVI takes others.",
        )
    return surrogate.reshape(()), surrogate.reshape(())


# ── Trace_ELBO and TraceMeanField_ELBO ───────────────────────────────────────────────────────


def _kept(value: Any) -> Any:
    """What stands for `torch_item`: the value as it is, without its gradient."""
    return value.detach() if isinstance(value, Tensor) else value


def _rebound(function: Any, names: Mapping[str, Any]) -> Any:
    """A private copy of a function of Pyro's that sees other globals; Pyro's own is untouched."""
    return FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


_PARTICLES = {
    kind._differentiable_loss_particle: _rebound(
        kind._differentiable_loss_particle, {"torch_item": _kept}
    )
    for kind in (Trace_ELBO, TraceMeanField_ELBO)
}


def _over_traces(
    particle: Any, loss: ELBO, model: Any, guide: Any, args: Any, kwargs: Any
) -> tuple[Any, Any]:
    value, surrogate = 0.0, 0.0
    for traces in loss._get_traces(model, guide, args, kwargs):
        of_particle, surrogate_of_particle = particle(loss, *traces)
        value = value + of_particle / loss.num_particles
        surrogate = surrogate + surrogate_of_particle / loss.num_particles
    return value, surrogate


# ── RenyiELBO ────────────────────────────────────────────────────────────────────────────────


def _renyi(loss: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    r"""The Rényi bound $\frac{1}{1-\alpha} \log \tfrac1K \sum_k w_k^{1-\alpha}$ of each datum.

    The gradient is that of each particle weighted by its share
    $\tilde w_k^{1-\alpha}$ (Li & Turner, 2016, arXiv:1602.02311).
    """
    power = 1.0 - loss.alpha
    elbos, surrogates = [], []
    for model_trace, guide_trace in loss._get_traces(model, guide, args, kwargs):
        dims = get_dependent_plate_dims(model_trace.nodes.values())
        elbo, surrogate = 0.0, 0.0
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                log_prob = torch_sum(site["log_prob"], dims)
                elbo, surrogate = elbo + log_prob.detach(), surrogate + log_prob
        for site in guide_trace.nodes.values():
            if site["type"] == "sample":
                log_prob = torch_sum(site["log_prob"], dims)
                elbo = elbo - log_prob.detach()
                surrogate = surrogate + _renyi_share(site["score_parts"], power) * log_prob
        elbos.append(elbo)
        surrogates.append(surrogate)

    vectorized = loss.vectorize_particles and loss.num_particles > 1
    elbo = elbos[0] if vectorized else torch.stack(elbos)
    surrogate = surrogates[0] if vectorized else torch.stack(surrogates)

    log_weight = power * elbo
    log_mean = log_weight.logsumexp(0, keepdim=True) - math.log(loss.num_particles)
    share = (log_weight - log_mean).exp()
    return -log_mean.sum() / power, -(share * surrogate).sum() / loss.num_particles


def _renyi_share(score_parts: Any, power: float) -> float:
    """What multiplies a guide's site in the surrogate: by its path, or by its score."""
    _, score_function, entropy = score_parts
    reparametrised = not is_identically_zero(entropy)
    scored = not is_identically_zero(score_function)
    if reparametrised and scored:
        raise NotImplementedError("RenyiELBO does not support partly reparametrised sites.")
    return -1.0 if reparametrised else (1.0 - power) / power if scored else 0.0


# ── TraceEnum_ELBO ───────────────────────────────────────────────────────────────────────────


def _enumerated(loss: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    elbo = 0.0
    for traces in loss._get_traces(model, guide, args, kwargs):
        elbo = elbo + _dice_elbo(*traces) / loss.num_particles
    return -elbo, -elbo


def _common_scale(scales: list[Any]) -> Any:
    """The scale that all enumerated sites share; it is compared where Pyro validates."""
    if any(isinstance(scale, Tensor) and scale.dim() for scale in scales):
        raise ValueError("enumeration only supports scalar poutine.scale")
    found = {float(scale) for scale in scales} if is_validation_enabled() else {1.0}
    if len(found) != 1:
        raise ValueError(
            "Expected all enumerated sample sites to share a common poutine.scale, "
            f"but found {len(found)} different scales."
        )
    return scales[0]


class _Dice(Dice):
    """Pyro's DiCE operator, which selects the costs of positive probability by a host read."""

    def compute_expectation(self, costs: Mapping[Any, list[Any]]) -> Any:
        """The expected cost, summed over ordinals; a cost of probability zero counts nothing."""
        expected: Any = 0.0
        with shared_intermediates() as cache:
            ring = MarginalRing(cache=cache)
            for ordinal, terms in costs.items():
                factors = self._get_log_factors(ordinal)
                scale = math.exp(sum(f for f in factors if not isinstance(f, Tensor)))
                queries = _queries(terms, [f for f in factors if isinstance(f, Tensor)])
                log_factors: list[Any] = queries.pop(None)
                dims = set().union(*(factor._pyro_dims for factor in log_factors)) - ordinal
                for query in queries.values():
                    require_backward(query)
                ring.sumproduct(log_factors, dims)._pyro_backward()

                for cost in terms:
                    query = queries[frozenset(cost._pyro_dims)]
                    prob: Any = query._pyro_backward_result.exp()
                    prob._pyro_dims = query._pyro_dims
                    cost, prob = packed.broadcast_all(cost, prob)
                    counted = torch.where(prob > 0, cost, torch.zeros_like(cost))
                    expected = expected + scale * (prob * counted).sum()
        return expected


def _queries(costs: list[Any], factors: list[Any]) -> dict[Any, Any]:
    """For each set of dimensions that a cost has, the factor whose marginal is asked for.

    Under None stand all the factors, with a factor of one where none had the dimensions.
    """
    queries: dict[Any, Any] = {frozenset(cost._pyro_dims): None for cost in costs}
    for factor in factors:
        key = frozenset(factor._pyro_dims)
        if key in queries and queries[key] is None:
            queries[key] = factor
    for cost in costs:
        key = frozenset(cost._pyro_dims)
        if queries[key] is None:
            query: Any = torch.zeros_like(cost)
            query._pyro_dims = cost._pyro_dims
            factors.append(query)
            queries[key] = query
    return {**queries, None: factors}


_dice_elbo = _rebound(
    enumeration._compute_dice_elbo,
    {
        "Dice": _Dice,
        "_compute_model_factors": _rebound(
            enumeration._compute_model_factors, {"_get_common_scale": _common_scale}
        ),
    },
)

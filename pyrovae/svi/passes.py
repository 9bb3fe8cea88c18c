r"""The pass of a step: from a call to the loss, the norm of its gradient, and the gradients.

The *kind* of a call is what is fixed in a graph: the shapes and types of its tensors and the
values of its other arguments.
"""

__all__ = [
    "Call",
    "Outcome",
    "Pass",
    "laid_out_as",
    "make_pass",
    "nothing_to_train",
    "precise_norm",
    "run_in_python",
    "stored",
]

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyrovae.errors import InputError
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.updates import Update

Pass = Callable[..., Sequence[Tensor]]
_HOLE = object()


class Call:
    """The arguments of a step, taken apart into tensors and everything else.

    Attributes:
        tensors: The tensors among the arguments, in order.
        kind: What two calls that one plan serves have in common, or None if an argument
            cannot be compared by value.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not kwargs and all(isinstance(arg, Tensor) for arg in args):
            # As almost always, and at every step: a tree of them takes as long as a small graph.
            leaves, self._spec = args, None
        else:
            leaves, self._spec = tree_flatten((args, kwargs))
        self._rest = [_HOLE if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.tensors: list[Tensor] = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.kind: Any = (self._spec, *map(_kind, leaves))
        try:
            hash(self.kind)
        except TypeError:
            self.kind = None

    def arguments(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with these tensors for its own."""
        if self._spec is None:
            return tuple(tensors), {}
        given = iter(tensors)
        leaves = [next(given) if leaf is _HOLE else leaf for leaf in self._rest]
        return tree_unflatten(leaves, self._spec)

    def emptied(self) -> "Call":
        """A copy that can still put arguments together, and keeps no tensor alive."""
        return self._with([])

    def again(self) -> "Call":
        """The same values as other objects, for a run of the program besides that of the step.

        What a flow has last inverted it keeps, by what object that is, together with the run
        that it has done so in. Tensors that need a gradient stay what they are: parameters.
        """
        return self._with([t if t.requires_grad else _other(t) for t in self.tensors])

    def _with(self, tensors: list[Tensor]) -> "Call":
        call = copy.copy(self)
        call.tensors = tensors
        return call


def _other(tensor: Tensor) -> Tensor:
    """The same values as another object, with the attributes that a script has given it."""
    other = tensor.detach()
    vars(other).update(vars(tensor))
    return other


def _kind(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return type(leaf), leaf
    if leaf.is_nested:
        return {}  # of any number of shapes: not to be compared
    order = leaf.stride() if leaf.layout is torch.strided else leaf.layout
    return leaf.shape, order, leaf.dtype, leaf.device, leaf.requires_grad


class Outcome(NamedTuple):
    """What a pass found.

    Attributes:
        parameters: What has a gradient, by name.
        loss: The value of the estimate.
        grad_norm: The norm of all gradients together.
        gradients: One for each parameter.
        idle: What the run meets that would be trained, and has no gradient.
    """

    parameters: dict[str, Tensor]
    loss: Tensor
    grad_norm: Tensor
    gradients: Sequence[Tensor]
    idle: Sequence[Tensor] = ()


def run_in_python(
    estimate: Estimate,
    call: Call,
    owners: Sequence[nn.Module],
    update: Update,
    *,
    calls_hooks: bool = True,
) -> Outcome:
    """The pass of a call, with whatever parameters this run of the program meets.

    It trains what `pyro.infer.SVI` would, the parameter sites of the run, and besides the
    parameters of the modules whose methods model and guide are, unless a handler blocks them.
    One that this run makes no use of, and an earlier one did, has a gradient of zeros under an
    optimizer of Pyro's: its momentum goes on.

    Args:
        estimate: From the arguments of a step to a loss and its surrogate.
        call: The arguments.
        owners: Modules whose parameters are trained besides the parameter sites.
        update: What updates the parameters.
        calls_hooks: Whether hooks on parameters are called, as they are in a step.

    Raises:
        InputError: If there is no parameter to train. That none of them has a gradient is legal.
    """
    args, kwargs = call.arguments(call.tensors)
    with torch.enable_grad(), poutine.trace(param_only=True) as captured:
        value, surrogate = estimate(*args, **kwargs)
    trainable = _trainable(captured.trace, owners)
    candidates = {name: p for name, p in trainable.items() if update.trains(p)}
    if not candidates:
        raise nothing_to_train()
    with nullcontext() if calls_hooks else _without_hooks(candidates.values()):
        gradients = _gradients(surrogate, list(candidates.values()))
    used: dict[str, tuple[Tensor, Tensor]] = {}
    for (name, parameter), gradient in zip(candidates.items(), gradients, strict=True):
        if gradient is not None:
            used[name] = parameter, gradient
        elif update.goes_on(parameter):
            used[name] = parameter, torch.zeros_like(parameter)
    parameters = {name: parameter for name, (parameter, _) in used.items()}
    idle = [parameter for name, parameter in candidates.items() if name not in used]
    loss, grad_norm, laid_out = _results(value, used.values())
    return Outcome(parameters, loss, grad_norm, laid_out, idle)


def nothing_to_train() -> InputError:
    """What to raise where no step could do anything."""
    return InputError(
        "The model and the guide have no parameter to train, or the optimizer has none of theirs.",
        "Use pyro.param, pyro.module or a PyroModule, or pass methods of an nn.Module.",
    )


def make_pass(estimate: Estimate, call: Call, parameters: Sequence[Tensor]) -> Pass:
    """The pass of a plan, to be captured: its parameters are what they are."""
    shape = call.emptied()

    def run(*tensors: Tensor) -> list[Tensor]:
        args, kwargs = shape.arguments(tensors)
        with torch.enable_grad():
            value, surrogate = estimate(*args, **kwargs)
        found = _gradients(surrogate, parameters)
        gradients = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]
        value, norm, gradients = _results(value, zip(parameters, gradients, strict=True))
        return [value, norm, *gradients]

    return run


def _gradients(surrogate: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient of each parameter, None for those that a surrogate does not depend on."""
    if not surrogate.requires_grad:
        return [None] * len(parameters)
    return torch.autograd.grad(surrogate, parameters, allow_unused=True)


@contextmanager
def _without_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Calls no hooks on parameters in a block."""
    hooks = [p._backward_hooks for p in parameters if p._backward_hooks]
    kept = [dict(of_one) for of_one in hooks]
    for of_one in hooks:
        of_one.clear()
    try:
        yield
    finally:
        for of_one, found in zip(hooks, kept, strict=True):
            of_one.update(found)


def _results(value: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """A loss, the norm of the gradients, and the gradients laid out as their parameters."""
    gradients = [laid_out_as(p, g) for p, g in pairs]
    # Not `get_total_norm`, whose kernel a compiler cannot merge with what is round it.
    squares = [_values(gradient).square().sum() for gradient in gradients]
    norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros_like(value)
    return value.clone(), norm, gradients


def precise_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients together in float64, in which squares of large ones are finite."""
    squares = [_values(gradient).double().square().sum() for gradient in gradients]
    return torch.stack(squares).sum().sqrt()


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in its parameter's order in memory, by which the fused updates go."""
    if gradient.is_sparse or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _values(gradient: Tensor) -> Tensor:
    """The entries of a gradient as real numbers, of a sparse one those that it has."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(values) if values.is_complex() else values


def _trainable(trace: Any, owners: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The parameters that a run may train, by name."""
    found: dict[str, Tensor] = {}
    for name, site in trace.nodes.items():
        value = site["value"]
        # Where Pyro keeps parameters in their modules, a plain one is its own.
        found.setdefault(name, getattr(value, "unconstrained", lambda value=value: value)())

    kept = {id(p) for p in stored().values()}
    met = {id(p) for p in found.values()}
    for owner in owners:
        registers = any(id(p) in met for p in owner.parameters())
        for name, parameter in owner.named_parameters():
            # Of a module that registers itself, what the store has and the run does not show
            # has been blocked.
            if id(parameter) not in met and not (registers and id(parameter) in kept):
                met.add(id(parameter))
                found[name if name not in found else f"{type(owner).__name__}.{name}"] = parameter

    first = {id(p): name for name, p in reversed(found.items())}
    return {name: p for name, p in found.items() if p.requires_grad and first[id(p)] == name}


def stored() -> dict[str, Tensor]:
    """The unconstrained tensors of Pyro's parameter store, without a copy."""
    return pyro.get_param_store()._params

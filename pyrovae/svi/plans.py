r"""Plans: what the steps of one kind of batch train and touch, and the pass that they make.

The *kind* of a call is what is fixed in a graph: the shapes and types of its tensors and the
values of its other arguments. A *pass* goes from the tensors of a call to the value of the
estimate, the norm of its gradient, and the gradients.
"""

__all__ = [
    "Call",
    "Outcome",
    "Pass",
    "Plan",
    "State",
    "laid_out_as",
    "make_pass",
    "make_plan",
    "precise_norm",
    "run_in_python",
]

import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyrovae import shared_noise
from pyrovae.errors import InputError
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.updates import Update
from pyrovae.svi.watch import Watch

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
        given = iter(tensors)
        leaves = [next(given) if leaf is _HOLE else leaf for leaf in self._rest]
        return tree_unflatten(leaves, self._spec)

    def emptied(self) -> "Call":
        """A copy that can still put arguments together, and keeps no tensor alive."""
        copy = object.__new__(Call)
        copy._rest, copy._spec, copy.kind, copy.tensors = self._rest, self._spec, self.kind, []
        return copy


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
    return type(leaf), leaf


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


@dataclass(eq=False)
class Plan:
    """What the steps of one kind of call train and touch, and how their pass is run.

    Attributes:
        parameters: What has a gradient, by name.
        modules: The modules that run, and those of the owners.
        buffers: What these may change as they run, and what else the run changes.
        generators: What it draws noise from besides torch's own generators.
        stored: What Pyro's store keeps, by its names there.
        idle: Parameters of the run without a gradient, which are none of the plan's.
        update: What updates the parameters.
        unseen: What of the run a graph would not see, in words, if there is anything.
        operations: How many operations on tensors a pass makes, its backward pass included.
        engine: The name of the back end.
        run: The pass of a back end other than Python: from the tensors of a call to its loss,
            its norm and its gradients.
        taken: The number of steps taken by that back end.
        tried: Whether it was tried to compile what was run for long as a graph.
    """

    parameters: dict[str, Tensor]
    modules: list[nn.Module]
    buffers: list[Tensor]
    generators: list[torch.Generator]
    stored: "dict[str, weakref.ref[Tensor]]"
    idle: Sequence[Tensor]
    update: Update
    operations: int = 0
    unseen: str | None = None
    engine: str = "eager"
    run: Pass | None = None
    taken: int = 0
    tried: bool = False

    def __post_init__(self) -> None:
        # By identity, which stays one's own only while it is alive.
        self._watched = self._own()
        self._state = self._now()

    def _own(self) -> list[Tensor]:
        """Also the parameters that are not trained now, and may be later."""
        own = (p for module in self.modules for p in module._parameters.values())
        return [*self.parameters.values(), *(p for p in own if p is not None)]

    def _now(self) -> Any:
        modules = [(m.training, *map(id, m._modules.values())) for m in self.modules]
        return modules, [
            (id(p), p.dtype, p.device, p.requires_grad, p.stride(), bool(p._backward_hooks))
            for p in self._own()
        ]

    def is_current(self) -> bool:
        """Whether modules and parameters are in the state that the plan was made for."""
        return self._state == self._now() and not any(map(self.update.goes_on, self.idle))

    def is_alive(self) -> bool:
        """Whether Pyro's store still keeps what it did."""
        kept = _stored()
        return all(kept.get(name) is tensor() for name, tensor in self.stored.items())

    @property
    def devices(self) -> set[torch.device]:
        """The CUDA devices that the plan draws noise on."""
        return {p.device for p in self.parameters.values() if p.device.type == "cuda"}


def run_in_python(
    estimate: Estimate,
    call: Call,
    owners: Sequence[nn.Module],
    update: Update,
) -> Outcome:
    """The pass of a call, with whatever parameters this run of the program meets.

    It trains what `pyro.infer.SVI` would, the parameter sites of the run, and besides the
    parameters of the modules whose methods model and guide are, unless a handler blocks them.
    One that this run makes no use of, and an earlier one did, has a gradient of zeros under an
    optimizer of Pyro's: its momentum goes on.

    Raises:
        InputError: If the estimate has no gradient.
    """
    args, kwargs = call.arguments(call.tensors)
    with torch.enable_grad(), poutine.trace(param_only=True) as captured:
        value, surrogate = estimate(*args, **kwargs)
    trainable = _trainable(captured.trace, owners)
    candidates = {name: p for name, p in trainable.items() if update.trains(p)}
    gradients: Sequence[Tensor | None] = []
    if candidates and surrogate.requires_grad:
        found = torch.autograd.grad(surrogate, list(candidates.values()), allow_unused=True)
        gradients = [
            torch.zeros_like(p) if g is None and update.goes_on(p) else g
            for p, g in zip(candidates.values(), found, strict=True)
        ]
    if all(gradient is None for gradient in gradients):
        raise InputError(
            "The model and the guide have no parameter to train, or the optimizer has none of "
            "theirs.",
            "Use pyro.param, pyro.module or a PyroModule, or pass methods of an nn.Module.",
        )
    used = {
        name: (parameter, gradient)
        for (name, parameter), gradient in zip(candidates.items(), gradients, strict=True)
        if gradient is not None
    }
    parameters = {name: parameter for name, (parameter, _) in used.items()}
    idle = [parameter for name, parameter in candidates.items() if name not in used]
    loss, grad_norm, laid_out = _results(value, used.values())
    return Outcome(parameters, loss, grad_norm, laid_out, idle)


def _results(value: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """A loss, the norm of the gradients, and the gradients laid out as their parameters."""
    gradients = [laid_out_as(p, g) for p, g in pairs]
    # Not `get_total_norm`, whose kernel a compiler cannot merge with what is round it.
    squares = torch.stack([_values(gradient).square().sum() for gradient in gradients])
    return value.clone(), squares.sum().sqrt(), gradients


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
    """The entries of a gradient, of a sparse one those that it has."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


class State:
    """What a pass changes besides its results: the streams of noise, and buffers.

    Args:
        devices: The CUDA devices that it draws noise on.
        buffers: What it changes.
        generators: What else of torch's it draws from.
        of_python: Whether Python's own and NumPy's noise are among it.
    """

    def __init__(
        self,
        devices: Iterable[torch.device] = (),
        buffers: Iterable[Tensor] = (),
        generators: Iterable[torch.Generator] = (),
        *,
        of_python: bool = False,
    ) -> None:
        own = map(_cuda_generator, devices)
        self._generators = [torch.default_generator, *own, *generators]
        self._of_python = _noise_of_python() if of_python else None
        self._noise = [generator.get_state() for generator in self._generators]
        self._shared_noise = shared_noise.state()
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def has_drawn_in_python(self) -> bool:
        """Whether noise of Python's or NumPy's has been drawn since."""
        return self._of_python is not None and self._of_python != _noise_of_python()

    def keep_buffers(self, condition: Tensor) -> None:
        """Buffers back to what they were, where a condition on the device holds."""
        for buffer, value in self._buffers:
            buffer.copy_(torch.where(condition, value, buffer))

    def restore(self) -> None:
        """Back to what it was."""
        for generator, state in zip(self._generators, self._noise, strict=True):
            generator.set_state(state)
        shared_noise.set_state(self._shared_noise)
        if self._of_python is not None:
            random.setstate(self._of_python[0])
            np.random.set_state(self._of_python[1])  # noqa: NPY002
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)


def _noise_of_python() -> tuple[Any, Any]:
    """The streams that a program may draw from that torch knows nothing of."""
    of_numpy: Any = np.random.get_state()  # noqa: NPY002
    name, numbers, *rest = of_numpy
    return random.getstate(), (name, tuple(numbers.tolist()), *rest)


def _cuda_generator(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0]


def make_plan(
    estimate: Estimate,
    call: Call,
    owners: Sequence[nn.Module],
    update: Update,
) -> Plan:
    """Finds out what a call trains and touches, by a run that leaves no trace.

    Parameters that the run is the first to ask for are made, as they would be by a step.

    Raises:
        InputError: If the estimate has no gradient.
    """
    modules: list[nn.Module] = []
    named: list[tuple[nn.Module, str, Tensor]] = []
    tensors = (*call.tensors, *(p for owner in owners for p in owner.parameters()))
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    state = State(devices, of_python=True)
    watch = Watch()
    draws_in_python = False
    try:
        with _watched(owners, modules, named), watch:
            found = run_in_python(estimate, call, owners, update)
        draws_in_python = state.has_drawn_in_python()
    finally:
        watch.undo()
        state.restore()
        reassigned = _put_back(named)

    own = [buffer for _, _, buffer in named]
    changed = [t for t, _ in watch.changed if not any(map(t.is_set_to, own))]
    return Plan(
        parameters=found.parameters,
        modules=modules,
        buffers=[
            *own,
            *(t for t in changed if not any(t.data_ptr() == b.data_ptr() for b in own)),
        ],
        generators=[generator for generator, _ in watch.generators],
        stored={name: weakref.ref(p) for name, p in _stored().items()},
        idle=found.idle,
        update=update,
        operations=watch.operations,
        unseen=_unseen(
            found,
            reassigned,
            draws_in_python=draws_in_python,
            writes_to_arguments=any(map(watch.writes_to, call.tensors)),
        ),
    )


def _unseen(
    found: Outcome, reassigned: str | None, *, draws_in_python: bool, writes_to_arguments: bool
) -> str | None:
    """What of a run a graph would not see."""
    if reassigned is not None:
        return f"the buffer {reassigned!r} is replaced rather than changed in place"
    if draws_in_python:
        return "noise is drawn by NumPy or by Python's random"
    if writes_to_arguments:
        return "an argument is changed in place"
    if any(gradient.is_sparse for gradient in found.gradients):
        return "a gradient is sparse"
    hooked = [name for name, p in found.parameters.items() if p._backward_hooks]
    return f"the parameter {hooked[0]!r} has a hook" if hooked else None


def _put_back(named: Iterable[tuple[nn.Module, str, Tensor]]) -> str | None:
    """Undoes the replacement of buffers, and names one of those that were replaced."""
    found = None
    for module, name, buffer in named:
        if module._buffers.get(name) is not buffer:
            module._buffers[name] = buffer
            found = name
    return found


@contextmanager
def _watched(
    owners: Sequence[nn.Module],
    modules: list[nn.Module],
    named: list[tuple[nn.Module, str, Tensor]],
) -> Iterator[None]:
    """Notes the owners' modules, those that run in a block, and their buffers by name."""
    seen: set[int] = set()

    def note(module: nn.Module, args: Any) -> None:
        if id(module) not in seen:
            seen.add(id(module))
            modules.append(module)
            own = module.named_buffers(recurse=False)
            named.extend((module, name, buffer) for name, buffer in own)

    for owner in owners:
        for module in owner.modules():
            note(module, None)
    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _trainable(trace: Any, owners: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The parameters that a run may train, by name."""
    found: dict[str, Tensor] = {}
    for name, site in trace.nodes.items():
        value = site["value"]
        # Where Pyro keeps parameters in their modules, a plain one is its own.
        found.setdefault(name, getattr(value, "unconstrained", lambda value=value: value)())

    stored = {id(p) for p in _stored().values()}
    met = {id(p) for p in found.values()}
    for owner in owners:
        registers = any(id(p) in met for p in owner.parameters())
        for name, parameter in owner.named_parameters():
            # Of a module that registers itself, what the store has and the run does not show
            # has been blocked.
            if id(parameter) not in met and not (registers and id(parameter) in stored):
                met.add(id(parameter))
                found[name if name not in found else f"{type(owner).__name__}.{name}"] = parameter

    first = {id(p): name for name, p in reversed(found.items())}
    return {name: p for name, p in found.items() if p.requires_grad and first[id(p)] == name}


def _stored() -> dict[str, Tensor]:
    """The unconstrained tensors of Pyro's parameter store, without a copy."""
    return pyro.get_param_store()._params


def make_pass(estimate: Estimate, call: Call, parameters: Sequence[Tensor]) -> Pass:
    """The pass of a plan, to be captured: its parameters are what they are."""
    shape = call.emptied()

    def run(*tensors: Tensor) -> list[Tensor]:
        args, kwargs = shape.arguments(tensors)
        with torch.enable_grad():
            value, surrogate = estimate(*args, **kwargs)
        found = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        gradients = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]
        value, norm, gradients = _results(value, zip(parameters, gradients, strict=True))
        return [value, norm, *gradients]

    return run

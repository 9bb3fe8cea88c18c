r"""Plans: what the steps of one kind of batch train and touch, found out by an example run."""

__all__ = ["Plan", "make_plan"]

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from pyrovae.capture import Graph
from pyrovae.errors import InputError
from pyrovae.svi.attributes import Held, held_by
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.passes import Call, Outcome, Pass, run_in_python, stored
from pyrovae.svi.reach import reach_of
from pyrovae.svi.state import State
from pyrovae.svi.updates import Update
from pyrovae.svi.watch import Watch

# A module, the name of one of its buffers, that buffer, and its values before.
_Named = tuple[nn.Module, str, Tensor, Tensor]


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
        held: What the modules and other objects hold besides, and a graph has in it as it was.
        update: What updates the parameters.
        unseen: What of the run a graph would not see, in words, if there is anything.
        outside: The shape of a tensor with a gradient that neither Pyro nor an owner knows of.
        operations: How many operations on tensors a pass makes, its backward pass included.
        engine: The name of the back end.
        run: The pass of a back end other than Python: from the tensors of a call to its loss,
            its norm and its gradients.
        taken: The number of steps taken by that back end.
        graph: What was captured for it.
        tried: Whether it was tried to compile what was run for long as a graph.
        devices: The CUDA devices that it draws noise on.
        replays: Of so many steps taken as one, what replays them; None where nothing does.
    """

    parameters: dict[str, Tensor]
    modules: list[nn.Module]
    buffers: list[Tensor]
    generators: list[torch.Generator]
    stored: "dict[str, weakref.ref[Tensor]]"
    idle: Sequence[Tensor]
    update: Update
    held: Sequence[Held] = ()
    operations: int = 0
    unseen: str | None = None
    outside: tuple[int, ...] | None = None
    engine: str = "eager"
    run: Pass | None = None
    taken: int = 0
    graph: Graph | None = None
    tried: bool = False
    replays: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        of_modules = {id(p) for module in self.modules for p in module._parameters.values()}
        self._loose = [p for p in self.parameters.values() if id(p) not in of_modules]
        # By identity, which stays one's own only while it is alive.
        self._watched = self._own()
        self.devices = {p.device for p in self.parameters.values() if p.device.type == "cuda"}
        self._state = self._now()

    def _own(self) -> list[Tensor]:
        """Also the parameters that are not trained now, and may be later."""
        own = (p for module in self.modules for p in module._parameters.values())
        return [*self._loose, *(p for p in own if p is not None)]

    def _now(self) -> Any:
        modules = [(m.training, *map(id, m._modules.values())) for m in self.modules]
        return modules, [
            (id(p), p.dtype, p.device, p.requires_grad, _order(p), bool(p._backward_hooks))
            for p in self._own()
        ]

    def is_current(self) -> bool:
        """Whether modules and parameters are in the state that the plan was made for."""
        if self._state != self._now() or any(map(self.update.goes_on, self.idle)):
            return False
        return self.run is None or self.changed is None  # Python sees what is held now

    def differs_in_what_is_held(self) -> bool:
        """Whether nothing keeps it from being current but that."""
        return self._state == self._now() and self.changed is not None

    def go_on_as(self, other: "Plan") -> None:
        """Takes the back end of another, whose graph is the same.

        What is not as it was for the other is nothing that the graph depends on.
        """
        self.run, self.engine, self.graph = other.run, other.engine, other.graph
        self.taken, self.tried = other.taken, other.tried
        self.held = [held for held in other.held if held.is_as_it_was]

    @property
    def changed(self) -> str | None:
        """The name of an attribute or a buffer that is no longer what a graph has of it."""
        return next((held.name for held in self.held if not held.is_as_it_was), None)

    def is_alive(self) -> bool:
        """Whether Pyro's store still keeps what it did."""
        kept = stored()
        return all(name in kept and kept[name] is of() for name, of in self.stored.items())


def make_plan(
    estimate: Estimate,
    call: Call,
    owners: Sequence[nn.Module],
    update: Update,
    readers: Iterable[object] = (),
) -> Plan:
    """Finds out what a call trains and touches, by a run that leaves no trace.

    Parameters that the run is the first to ask for are made, as they would be by a step. So is
    what a module sets at its first call, and notes by a flag that it has set.

    Raises:
        InputError: If the estimate has no gradient, or parameters of it are hidden from one.
    """
    modules: list[nn.Module] = []
    named: list[_Named] = []
    flags: dict[nn.Module, dict[str, bool]] = {}
    reached, held = reach_of(*readers)
    tensors = (*call.tensors, *(p for owner in owners for p in owner.parameters()))
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    state = State(devices, of_python=True)
    watch = Watch()
    draws_in_python = False
    surrogates: list[Tensor] = []

    def noted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        value, surrogate = estimate(*args, **kwargs)
        surrogates.append(surrogate)
        return value, surrogate

    try:
        with _watched((*owners, *reached), modules, named, flags, held), watch:
            found = run_in_python(noted, call.again(), owners, update, calls_hooks=False)
        draws_in_python = state.has_drawn_in_python()
    finally:
        # A flag is Python's, and is not put back: nor is what the module would not set again.
        ready = [module for module, before in flags.items() if _flags(module) != before]
        watch.undo(but=[t for m in ready for t in (*m.parameters(), *m.buffers(recurse=False))])
        state.restore()
        reassigned = _put_back(entry for entry in named if entry[0] not in ready)

    if found.idle and any(map(_is_checkpointed, surrogates)):
        raise InputError(
            "A torch.utils.checkpoint with use_reentrant=True hides its parameters from a step.",
            "Give it use_reentrant=False.",
        )
    known = [*stored().values(), *found.parameters.values(), *found.idle]
    known += [p for owner in owners for p in owner.parameters()]
    outside = [
        leaf
        for surrogate in surrogates
        for leaf in _leaves(surrogate)
        if not any(leaf is one for one in known) and not watch.makes(leaf)
    ]
    now = (module._buffers.get(name) for module, name, _, _ in named)
    own = [buffer for buffer in now if buffer is not None]
    changed = [t for t, _ in watch.changed if not any(map(t.is_set_to, own))]
    return Plan(
        parameters=found.parameters,
        modules=modules,
        buffers=own + changed,
        generators=[generator for generator, _ in watch.generators],
        stored={name: weakref.ref(p) for name, p in stored().items()},
        idle=found.idle,
        update=update,
        held=[one for one in held if one.is_as_it_was],
        operations=watch.operations,
        outside=tuple(outside[0].shape) if outside else None,
        unseen=_unseen(
            found,
            reassigned,
            update,
            draws_in_python=draws_in_python,
            writes_to_arguments=any(map(watch.writes_to, call.tensors)),
        ),
    )


def _unseen(
    found: Outcome,
    reassigned: str | None,
    update: Update,
    *,
    draws_in_python: bool,
    writes_to_arguments: bool,
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
    if any(map(update.goes_by_rows, found.parameters.values())):
        return "the optimizer goes by the rows that a plate draws"
    hooked = [name for name, p in found.parameters.items() if p._backward_hooks]
    return f"the parameter {hooked[0]!r} has a hook" if hooked else None


def _is_checkpointed(result: Tensor) -> bool:
    """Whether a reentrant checkpoint stands in the graph of a result.

    Such a one finds the gradients of what it has run in a backward pass of its own, into `.grad`,
    and `autograd.grad` knows nothing of them.
    """
    return any(node.name() == "CheckpointFunctionBackward" for node in _nodes(result))


def _leaves(result: Tensor) -> list[Tensor]:
    """The tensors that a backward pass from a result would give a `.grad`."""
    return [node.variable for node in _nodes(result) if hasattr(node, "variable")]


def _nodes(result: Tensor) -> Iterator[Any]:
    """The operations in the graph of a result."""
    seen, left = set(), [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        left += [following for following, _ in node.next_functions]


def _put_back(named: Iterable[_Named]) -> str | None:
    """Gives modules their buffers back as they were, and names one of those that were replaced."""
    found = None
    for module, name, buffer, before in named:
        with torch.no_grad():
            # Also what no operation says that it writes to, as batch normalisation may not.
            buffer.copy_(before)
        if module._buffers.get(name) is not buffer:
            module._buffers[name] = buffer
            found = name
    return found


def _order(parameter: Tensor) -> Any:
    """How a parameter lies in memory, one that is still to be made nowhere."""
    return None if is_lazy(parameter) else (parameter.shape, parameter.stride())


@contextmanager
def _watched(
    owners: Sequence[nn.Module],
    modules: list[nn.Module],
    named: list[_Named],
    flags: dict[nn.Module, dict[str, bool]],
    held: list[Held],
) -> Iterator[None]:
    """Notes the owners' modules, those that run in a block, and what they were before it."""
    seen: set[int] = set()

    def note(module: nn.Module, args: Any) -> None:
        if id(module) not in seen:
            seen.add(id(module))
            modules.append(module)
            own = ((n, b) for n, b in module.named_buffers(recurse=False) if not is_lazy(b))
            named.extend((module, name, b, b.detach().clone()) for name, b in own)
            flags[module] = _flags(module)
            held.extend(held_by(module))

    for owner in owners:
        for module in owner.modules():
            note(module, None)
    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _flags(module: nn.Module) -> dict[str, bool]:
    """What a module has noted of itself as true or false, besides its mode."""
    own = vars(module).items()
    return {name: value for name, value in own if isinstance(value, bool) and name != "training"}

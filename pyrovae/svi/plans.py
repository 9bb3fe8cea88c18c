r"""Plans: what the steps of one kind of batch train and touch, found out by an example run."""

__all__ = ["Plan", "make_plan"]

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyrovae.capture import Graph
from pyrovae.errors import InputError
from pyrovae.svi.attributes import Held
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.modules import ModuleWatch
from pyrovae.svi.passes import Call, Outcome, Pass, run_in_python, stored
from pyrovae.svi.reach import reach_of
from pyrovae.svi.state import State
from pyrovae.svi.updates import Update
from pyrovae.svi.watch import Watch
from pyrovae.tape import is_checkpointed, leaves_of


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
    reached, held = reach_of(*readers)
    tensors = (*call.tensors, *(p for owner in owners for p in owner.parameters()))
    state = State({t.device for t in tensors if t.device.type == "cuda"}, of_python=True)
    ran, watch = ModuleWatch((*owners, *reached)), Watch()
    draws_in_python = False
    surrogates: list[Tensor] = []

    def noted(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        value, surrogate = estimate(*args, **kwargs)
        surrogates.append(surrogate)
        return value, surrogate

    try:
        with ran, watch:
            found = run_in_python(noted, call.again(), owners, update, calls_hooks=False)
        draws_in_python = state.has_drawn_in_python()
    finally:
        watch.undo(but=ran.of_set_up)
        state.restore()
        ran.undo()

    if found.idle and any(map(is_checkpointed, surrogates)):
        raise InputError(
            "A torch.utils.checkpoint with use_reentrant=True hides its parameters from a step.",
            "Give it use_reentrant=False.",
        )
    known = [*stored().values(), *found.parameters.values(), *found.idle]
    known += [p for owner in owners for p in owner.parameters()]
    leaves = (leaf for surrogate in surrogates for leaf in leaves_of(surrogate))
    outside = (leaf for leaf in leaves if not any(leaf is one for one in known))
    buffers = ran.buffers
    changed = [t for t, _ in watch.changed if not any(map(t.is_set_to, buffers))]
    return Plan(
        parameters=found.parameters,
        modules=ran.modules,
        buffers=buffers + changed,
        generators=[generator for generator, _ in watch.generators],
        stored={name: weakref.ref(p) for name, p in stored().items()},
        idle=found.idle,
        update=update,
        held=[one for one in (*held, *ran.held) if one.is_as_it_was],
        operations=watch.operations,
        outside=next((tuple(leaf.shape) for leaf in outside if not watch.makes(leaf)), None),
        unseen=_unseen(
            found,
            ran.replaced,
            update,
            draws_in_python=draws_in_python,
            writes_to_arguments=any(map(watch.writes_to, call.tensors)),
        ),
    )


def _unseen(
    found: Outcome,
    replaced: str | None,
    update: Update,
    *,
    draws_in_python: bool,
    writes_to_arguments: bool,
) -> str | None:
    """What of a run a graph would not see."""
    if replaced is not None:
        return f"the buffer {replaced!r} is replaced rather than changed in place"
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


def _order(parameter: Tensor) -> Any:
    """How a parameter lies in memory, one that is still to be made nowhere."""
    return None if is_lazy(parameter) else (parameter.shape, parameter.stride())

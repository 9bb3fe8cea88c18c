r"""One optimisation step at a time, by the fastest back end that is faithful to the program.

**Back ends.** `eager` runs the program in Python at every step. `graph` runs the operations
that one run of it made, without Python or Pyro. `inductor` compiles these with Inductor.
All draw the same noise.

**Faithfulness.** A graph is what the program did once. At steps 1, 2, 4, 8, … the step is run in
Python as well, on the same noise, and both are compared: a program that depends on Python state,
on `.numpy()` or on its own randomness is found out, and runs in Python from then on.
"""

__all__ = ["ENGINES", "StepResult", "Stepper", "default_engine"]

import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyrovae.capture import OPTIONS, CaptureError, capture, compile_graph, has_compiler
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.guard import REMEDY, find_gradient
from pyrovae.svi.plans import Call, Outcome, Pass, Plan, make_pass, make_plan, run_in_python
from pyrovae.svi.precision import in_precision
from pyrovae.svi.updates import Optimizer, Update

ENGINES = ("eager", "graph", "inductor", "auto")
# Beyond so many kinds of arguments, capturing costs more than it saves.
MOST_PLANS = 8
TRIAL_STEPS = 5
# How far a captured step may be from the same step in Python, relative to the largest entry.
# Kernels that add in another order differ by rounding, a wrong capture by much more.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
BF16_TOLERANCE = 0.1


class StepResult(NamedTuple):
    """What a step found before it updated the parameters.

    Attributes:
        loss: The loss.
        grad_norm: The norm of its gradient, before any clipping.
    """

    loss: Tensor
    grad_norm: Tensor


def default_engine(device: torch.device) -> str:
    """The back end where none is asked for: compiled if a compiler is at hand, on the CPU."""
    if device.type == "cpu" and has_compiler():
        return "inductor"
    return "graph"


class Stepper:
    """Loss, gradient, guard, update.

    Args:
        estimate: From the arguments of a step to a loss and its surrogate.
        optimizer: What updates the parameters.
        owners: Modules whose parameters are trained besides the parameter sites.
        engine: The back end, one of `ENGINES`; the default of the device if None. `auto` tries
            all of them on the first arguments and keeps the fastest.
        precision: That of the networks, `float32` or `bf16`; see `pyrovae.svi.precision`.
        clip_norm: The norm that gradients are scaled down to, where they exceed it.
        find_cause: Called with the arguments of a step that was not finite, its noise rewound,
            and with the parameters, to say why.

    Raises:
        InputError: If there is no such engine or precision.
    """

    def __init__(
        self,
        estimate: Estimate,
        optimizer: Optimizer,
        *,
        owners: Sequence[nn.Module] = (),
        engine: str | None = None,
        precision: str = "float32",
        clip_norm: float | None = None,
        find_cause: Callable[..., NonFiniteError | None] | None = None,
    ) -> None:
        if engine is not None and engine not in ENGINES:
            raise InputError(f"There is no engine {engine!r}.", f"Take one of {list(ENGINES)}.")
        self.estimate = in_precision(precision, estimate)
        self.engine = engine
        self.precision = precision
        self.clip_norm = clip_norm
        self.update = Update(optimizer)
        self._owners = owners
        self._find_cause = find_cause
        self._plans: dict[Any, list[Plan]] = {}
        self._warned: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> StepResult:
        """Takes one step.

        Raises:
            InputError: If there is nothing to train.
            NonFiniteError: If the loss or a gradient is not finite. The parameters, the
                buffers and the optimizer are as they were before the step.
        """
        call = Call(args, kwargs)
        plan = self._plan_for(call)
        before = _State(plan.devices, plan.buffers)
        try:
            found = self._run(plan, call, before)
        except (ValueError, RuntimeError) as error:
            # Distributions refuse NaN in words of their own, when they check or when they draw.
            cause = self._diagnose(plan.parameters, [], call, before)
            if cause is None:
                raise
            raise cause from error
        if not (math.isfinite(found.loss.item()) and math.isfinite(found.grad_norm.item())):
            cause = self._diagnose(found.parameters, found.gradients, call, before)
            raise cause or NonFiniteError("The training loss is not finite.", REMEDY)

        self.update(list(found.parameters.values()), self._clipped(found))
        plan.taken += 1

        return StepResult(found.loss, found.grad_norm)

    def prepare(self, *args: Any, engine: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Makes ready for steps of such arguments, leaving no trace of it.

        Args:
            args: The arguments of a step.
            engine: The back end for them, if not the stepper's.
            kwargs: The arguments of a step.

        Returns:
            What the bits of a step depend on: the back end, its options, the precision, the
            number of threads, and the version of torch.
        """
        plan = self._plan_for(Call(args, kwargs), engine)
        return {
            "name": plan.engine,
            "options": OPTIONS if plan.engine == "inductor" else {},
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    @property
    def engines(self) -> list[str]:
        """The back ends in use, one for each plan."""
        return [plan.engine for plans in self._plans.values() for plan in plans]

    # ── The pass ──

    def _run(self, plan: Plan, call: Call, before: "_State") -> Outcome:
        """The pass of a step, by the back end of its plan."""
        if plan.run is None:
            return self._in_python(call)

        with torch.no_grad():
            loss, norm, *gradients = plan.run(*call.tensors)
        found = Outcome(plan.parameters, loss, norm, gradients)
        # At steps 1, 2, 4, 8, ...
        step = plan.taken + 1
        if step & (step - 1) == 0:
            return self._compare(plan, call, before, found)
        return found

    def _in_python(self, call: Call) -> Outcome:
        """The pass in Python; its structure was validated when the plan was made."""
        with pyro.validation_enabled(False):
            return run_in_python(self.estimate, call, self._owners)

    def _clipped(self, found: Outcome) -> Sequence[Tensor]:
        if self.clip_norm is None:
            return found.gradients
        share = (self.clip_norm / (found.grad_norm + 1e-6)).clamp(max=1.0)
        return [gradient * share for gradient in found.gradients]

    def _compare(self, plan: Plan, call: Call, before: "_State", found: Outcome) -> Outcome:
        """What the back end found, if Python finds the same on the same noise; or else that."""
        after = _State(plan.devices, plan.buffers)
        before.restore()
        expected = self._in_python(call)
        difference = _difference(found, expected, self.precision)
        if difference is None:
            after.restore()
            return found

        self._warn(
            f"At step {plan.taken + 1} the {plan.engine} of the program and the program itself "
            f"disagree about {difference}, so it is run in Python from here on: it depends on "
            "something that a graph does not see, such as Python state, NumPy or .tolist()."
        )
        plan.run, plan.engine = None, "eager"
        return expected

    def _diagnose(
        self,
        parameters: dict[str, Tensor],
        gradients: Sequence[Tensor],
        call: Call,
        before: "_State",
    ) -> NonFiniteError | None:
        """Why a step was not finite, by running it again; it leaves things as before the step."""
        before.restore()
        try:
            cause = None
            if self._find_cause is not None:
                args, kwargs = call.arguments(call.tensors)
                cause = self._find_cause(args, kwargs, parameters)
            return cause or find_gradient(dict(zip(parameters, gradients, strict=False)))
        finally:
            before.restore()

    # ── Plans ──

    def _plan_for(self, call: Call, engine: str | None = None) -> Plan:
        """The plan of a call, made if there is none."""
        plans = self._plans.setdefault(call.kind, [])
        for plan in plans:
            if plan.is_current():
                if plan.is_alive():
                    return plan
                plans.remove(plan)
                break

        plan = self._make_plan(call)
        self._choose(plan, call, engine or self.engine)
        plans.append(plan)
        return plan

    def _make_plan(self, call: Call) -> Plan:
        """Runs the program once; where that fails on NaN it says why."""
        state = _State()
        try:
            return make_plan(self.estimate, call, self._owners)
        except (ValueError, RuntimeError) as error:
            named = [named for owner in self._owners for named in owner.named_parameters()]
            cause = self._diagnose(dict(named), [], call, state)
            if cause is None:
                raise
            raise cause from error

    def _choose(self, plan: Plan, call: Call, engine: str | None) -> None:
        """Gives a plan the back end that is asked for, or else the best that works."""
        device = next(iter(plan.parameters.values())).device
        wanted = engine or default_engine(device)
        if wanted == "eager":
            return
        if call.kind is None:
            self._warn("An argument that is no tensor cannot be hashed: steps run in Python.")
            return
        if sum(map(len, self._plans.values())) >= MOST_PLANS:
            self._warn(
                f"More than {MOST_PLANS} kinds of arguments: further ones are run in Python. Pad "
                "batches and sequences to a few shapes."
            )
            return

        passes = self._passes(plan, call, ("graph", "inductor") if wanted == "auto" else (wanted,))
        name = self._fastest(plan, call, passes) if wanted == "auto" else list(passes)[-1]
        if name != "eager":
            plan.run, plan.engine = passes[name], name

    def _passes(self, plan: Plan, call: Call, wanted: Sequence[str]) -> dict[str, Pass]:
        """The passes that work, of Python and of those that are wanted."""
        in_python = make_pass(self.estimate, call, list(plan.parameters.values()))
        found: dict[str, Pass] = {"eager": in_python}
        state = _State(plan.devices, plan.buffers)
        try:
            with pyro.validation_enabled(False):
                graph = capture(in_python, call.tensors)
        except CaptureError as error:
            self._warn(f"The program cannot be captured and is run in Python: {error}")
            return found
        finally:
            state.restore()

        if "inductor" not in wanted or len(wanted) > 1:
            found["graph"] = graph
        if "inductor" in wanted:
            try:
                found["inductor"] = compile_graph(graph, call.tensors)
            except CaptureError as error:
                self._warn(f"Inductor cannot compile, so the graph is run as it is: {error}")
                found["graph"] = graph
        return found

    def _fastest(self, plan: Plan, call: Call, passes: dict[str, Pass]) -> str:
        """The name of the pass with the smallest median time, by interleaved trials."""
        times: dict[str, list[float]] = {name: [] for name in passes}
        state = _State(plan.devices, plan.buffers)
        try:
            for _ in range(TRIAL_STEPS + 1):
                for name, run in passes.items():
                    start = time.perf_counter()
                    with torch.no_grad(), pyro.validation_enabled(False):
                        run(*call.tensors)
                    times[name].append(time.perf_counter() - start)
        finally:
            state.restore()
        return min(times, key=lambda name: statistics.median(times[name][1:]))

    def _warn(self, message: str) -> None:
        """Warns, once for each message."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=_level_of_the_caller())


def _level_of_the_caller() -> int:
    """How many frames up the first is that is not of this package: whom a warning is for."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("pyrovae."):
        level, frame = level + 1, frame.f_back
    return level


class _State:
    """What a pass changes besides its results: torch's generators, and buffers."""

    def __init__(
        self, devices: Iterable[torch.device] = (), buffers: Iterable[Tensor] = ()
    ) -> None:
        self._generators = [torch.default_generator, *map(_cuda_generator, devices)]
        self._noise = [generator.get_state() for generator in self._generators]
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self) -> None:
        for generator, state in zip(self._generators, self._noise, strict=True):
            generator.set_state(state)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)


def _cuda_generator(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0]


def _difference(found: Outcome, expected: Outcome, precision: str) -> str | None:
    """Where two outcomes differ by more than rounding, in words."""
    # The first run of an automatic guide meets its parameters in another order.
    gradients = dict(zip(expected.parameters, expected.gradients, strict=True))
    if found.parameters.keys() != gradients.keys():
        return "the parameters that are trained"
    tolerance = TOLERANCE.get(expected.loss.dtype, BF16_TOLERANCE)
    tolerance = BF16_TOLERANCE if precision == "bf16" else tolerance
    if _differ(found.loss, expected.loss, tolerance * (1.0 + expected.loss.abs())):
        return "the loss"
    largest = torch.stack([gradient.abs().amax() for gradient in expected.gradients]).amax()
    for name, gradient in zip(found.parameters, found.gradients, strict=True):
        if _differ(gradient, gradients[name], tolerance * largest):
            return f"the gradient of {name!r}"
    return None


def _differ(a: Tensor, b: Tensor, rounding: Tensor) -> bool:
    """Whether two tensors differ by more than rounding. What neither can tell does not count."""
    if not torch.isfinite(a).all() and not torch.isfinite(b).all():
        return False
    return not bool(((a - b).abs() <= rounding).all())

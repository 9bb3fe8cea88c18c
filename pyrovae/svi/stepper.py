r"""One optimisation step at a time, by a back end that is faithful to the program.

`backends` names the back ends, `faithfulness` says how a wrong capture is found out, `sentinel`
how a loss that is not finite is.
"""

__all__ = ["StepResult", "Stepper"]

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyrovae.capture import OPTIONS, CaptureError
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.handlers import unvalidated
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.exchange import Exchange
from pyrovae.svi.faithfulness import Difference, difference, is_checked
from pyrovae.svi.guard import REMEDY, find_gradient
from pyrovae.svi.once import Once
from pyrovae.svi.passes import (
    Call,
    Outcome,
    nothing_to_train,
    precise_norm,
    run_in_python,
    stored,
)
from pyrovae.svi.planner import Planner
from pyrovae.svi.plans import Plan, make_plan
from pyrovae.svi.precision import arithmetic, check_device, in_precision
from pyrovae.svi.replays import Replay, can_be_replayed, replay_of
from pyrovae.svi.sentinel import Sentinel, Suspect
from pyrovae.svi.state import Copies, State, put_back
from pyrovae.svi.updates import Optimizer, Update

# How many steps late a GPU is asked whether all was finite.
LATE_STEPS = 64


class StepResult(NamedTuple):
    """What a step found before it updated the parameters.

    Attributes:
        loss: The loss.
        grad_norm: The norm of its gradient, before any clipping.
    """

    loss: Tensor
    grad_norm: Tensor


class Stepper:
    """Loss, gradient, guard, update.

    Args:
        estimate: From the arguments of a step to a loss and its surrogate.
        optimizer: What updates the parameters.
        owners: Modules whose parameters are trained besides the parameter sites.
        readers: Functions and objects that a step calls, which may read what a script changes.
        engine: The back end, one of `backends.ENGINES`; `auto` tries all of them on the first
            arguments and keeps the fastest. If None, a graph, and on a CPU with a compiler
            compiled from the 2,000th step of a kind on.
        precision: That of matrix products, `float32`, `tf32` or `bf16`; see
            `pyrovae.svi.precision`.
        clip_norm: The norm that gradients are scaled down to, where they exceed it.
        find_cause: Called with the arguments of a step that was not finite, its noise rewound,
            and with the parameters, to say why.
        check_every: After how many steps it is asked whether they were finite; if None at once,
            and on a GPU, or where several are replayed as one, after 64.
        steps_per_replay: Whether, and how many, steps taken `together` are replayed as one by the
            engine `cuda-graph`.
        exchange: What sums a step's results over the processes that take it together, if there
            are several.

    Raises:
        InputError: If there is no such engine or precision.
    """

    def __init__(
        self,
        estimate: Estimate,
        optimizer: Optimizer,
        *,
        owners: Sequence[nn.Module] = (),
        readers: Sequence[object] = (),
        engine: str | None = None,
        precision: str = "float32",
        clip_norm: float | None = None,
        find_cause: Callable[..., NonFiniteError | None] | None = None,
        check_every: int | None = None,
        steps_per_replay: int = 1,
        exchange: Exchange | None = None,
    ) -> None:
        self.estimate = in_precision(precision, estimate)
        self.precision = precision
        self.clip_norm = clip_norm
        self.steps_per_replay = steps_per_replay
        self.update = Update(optimizer, rates_on_device=steps_per_replay > 1)
        self._owners = owners
        self._readers = readers
        self._find_cause = find_cause
        self._check_every = check_every or (LATE_STEPS if steps_per_replay > 1 else None)
        self.exchange = exchange
        self._sentinel: Sentinel | None = None
        # How many steps were begun.
        self.begun = 0
        # The parameters in Pyro's store that the step at hand was the first to ask for.
        self._made: list[str] = []
        self._warn = Once()
        self._planner = Planner(self.estimate, engine=engine, warn=self._warn)

    def __call__(self, *args: Any, **kwargs: Any) -> StepResult:
        """Takes one step.

        Raises:
            InputError: If there is nothing to train, or not on a device for the precision.
            NonFiniteError: If the loss or a gradient is not finite, or was at a step that was
                not asked about yet: `steps_ago` says which. The parameters, the buffers and the
                optimizer are as they were before that step.
        """
        if torch.is_inference_mode_enabled():
            raise InputError(
                "A step needs gradients, and torch.inference_mode() has none.",
                "Take it outside of that, or use evaluate_loss.",
            )
        self._made = []
        self.begun += 1
        self.update.follow_rates()
        try:
            with arithmetic(self.precision):
                return self._step(Call(args, kwargs))
        except NonFiniteError:
            self._forget()
            raise

    def together(self, given: Sequence[tuple[Any, ...]]) -> StepResult:
        """Takes several steps one after another.

        Where they can be, they are replayed as one: by the engine `cuda-graph`, if they are
        `steps_per_replay` of one kind, and none of them is to be compared with Python.

        Args:
            given: The arguments of each.

        Returns:
            What they found, each with shape (k,).

        Raises:
            As a step. `begun` says how many there were.
        """
        calls = [Call(args, {}) for args in given]
        if len(calls) == self.steps_per_replay > 1:
            with arithmetic(self.precision):
                plan = self._planner.known(calls[0])
                replay = None if plan is None else self._replay_of(plan, calls)
                if plan is not None and replay is not None:
                    return self._replayed(plan, calls, replay)
        found = [self(*args) for args in given]
        return StepResult(*map(torch.stack, zip(*found, strict=True)))

    def _step(self, call: Call) -> StepResult:
        plan = self._plan_for(call)
        checked = plan.run is not None and is_checked(plan.taken + 1)
        before = State(plan.devices, plan.buffers, plan.generators, of_python=checked)
        try:
            found = self._run(plan, call, before)
        except (ValueError, RuntimeError) as error:
            if self.exchange is not None:
                self.exchange.fail()
            # Distributions refuse NaN in words of their own, when they check or when they draw.
            cause = self._diagnose(plan.parameters, call, before)
            if cause is None:
                raise
            raise cause from error
        if not found.parameters:
            self._warn("No parameter has a gradient in this step, so it trains nothing.")
        if self.exchange is not None:
            found = self.exchange(found)

        parameters = list(found.parameters.values())
        if self._may_wait(plan) and self.update.can_be_frozen(parameters, found.gradients):
            sentinel = self._watch(found.loss.device)
            sentinel.remember([call], before, found.parameters)
            self._finish(found, before.buffers)
            if sentinel.is_due:
                self.check()
        else:
            self.check()
            if not math.isfinite(found.grad_norm.item()):
                found = found._replace(grad_norm=precise_norm(found.gradients))
            if not (math.isfinite(found.loss.item()) and math.isfinite(found.grad_norm.item())):
                raise self._diagnose(found.parameters, call, before) or self._not_finite()
            self.update(parameters, self._clipped(found))
        self.update.meet(found.idle if plan.run is None else plan.idle)
        plan.taken += 1

        return StepResult(found.loss, found.grad_norm)

    def _finish(self, found: Outcome, before: Copies) -> None:
        """What a step whose verdict is left on the device does after its pass."""
        frozen = self._watch(found.loss.device).judge(found)
        put_back(before, frozen > 0)
        self.update(list(found.parameters.values()), self._clipped(found), frozen)

    def check(self) -> None:
        """Asks about the steps that were not asked about yet; to be done before a checkpoint.

        Raises:
            NonFiniteError: If one of them was not finite.
        """
        found = self._sentinel.read() if self._sentinel else None
        if found is not None:
            suspect, number, ago = found
            with arithmetic(self.precision):
                before = self._state_before(suspect, number)
                cause = self._diagnose(suspect.parameters, suspect.calls[number], before)
            error = cause or self._not_finite()
            error.steps_ago = ago
            raise error

    def _may_wait(self, plan: Plan) -> bool:
        """Whether the verdict on a step can be left on the device for a while."""
        every = self._check_every or (LATE_STEPS if plan.devices else 1)
        return every > 1

    def _watch(self, device: torch.device) -> Sentinel:
        if self._sentinel is None:
            self._sentinel = Sentinel(self._check_every or LATE_STEPS, device)
        return self._sentinel

    def _state_before(self, suspect: Suspect, number: int) -> State:
        """The state before one of the steps of a replay, whose noise is what the others left."""

        def draw() -> None:
            for call in suspect.calls[:number]:
                with suppress(ValueError, RuntimeError):
                    self._in_python(call.again())

        return suspect.before.after(draw) if number else suspect.before

    def prepare(self, *args: Any, engine: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Makes ready for steps of such arguments, leaving no trace of it.

        Args:
            args: The arguments of a step.
            engine: The back end for them, if not the stepper's.
            kwargs: The arguments of a step.

        Returns:
            What the bits of a step depend on: the back end, its options, the precision, the
            number of threads, and the version of torch.

        Raises:
            InputError: If such steps would train nothing, or not on a device for the precision.
        """
        with arithmetic(self.precision):
            plan = self._plan_for(Call(args, kwargs), engine)
        if not plan.parameters:
            raise nothing_to_train()
        return {
            "name": plan.engine,
            "options": OPTIONS if plan.engine == "inductor" else {},
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    @property
    def engine(self) -> str | None:
        """The back end that was asked for."""
        return self._planner.engine

    @property
    def engines(self) -> list[str]:
        """The back ends in use, one for each kind of call."""
        return self._planner.engines

    @property
    def is_distrusted(self) -> bool:
        """Whether a graph of the program was found to be other than it."""
        return self._planner.is_distrusted

    def distrust(self) -> None:
        """Runs all further steps in Python, whatever their kind."""
        self._planner.distrust()

    def _plan_for(self, call: Call, engine: str | None = None) -> Plan:
        plan = self._planner.plan_for(call, self._make_plan, engine)
        if plan.parameters:
            check_device(self.precision, plan.devices)
        return plan

    # ── Several steps as one ──

    def _replay_of(self, plan: Plan, calls: Sequence[Call]) -> Replay | None:
        """What replays steps as one; None where they have to be taken one by one."""
        if self.exchange is not None or not can_be_replayed(plan, calls, self.update):
            return None
        sentinel = self._watch(next(iter(plan.parameters.values())).device)
        try:
            return replay_of(plan, calls, self.update, sentinel, self._finish)
        except CaptureError as error:
            self._warn(f"{len(calls)} steps cannot be recorded as one: {error}")
            return None

    def _replayed(self, plan: Plan, calls: Sequence[Call], replay: Replay) -> StepResult:
        before = State(plan.devices, plan.buffers, plan.generators)
        self.begun += len(calls)
        self.update.follow_rates()
        loss, grad_norm = replay(calls)
        sentinel = self._watch(loss.device)
        sentinel.remember(calls, before, plan.parameters)
        plan.taken += len(calls)
        if sentinel.is_due:
            self.check()
        return StepResult(loss, grad_norm)

    # ── The pass ──

    def _run(self, plan: Plan, call: Call, before: State) -> Outcome:
        """The pass of a step, by the back end of its plan."""
        if plan.run is None:
            return self._in_python(call)

        try:
            found = self._captured(plan, call)
        except RuntimeError as error:
            before.restore()
            expected = self._in_python(call)
            self._warn(
                f"The {plan.engine} of the program fails where the program itself does not, so it "
                f"is run in Python from here on: {error}"
            )
            self.distrust()
            return expected
        checked = is_checked(plan.taken + 1)
        return self._compare(plan, call, before, found) if checked else found

    def _captured(self, plan: Plan, call: Call) -> Outcome:
        """The pass as a graph, compiled or not."""
        assert plan.run is not None
        with torch.no_grad():
            loss, norm, *gradients = plan.run(*call.tensors)
        return Outcome(plan.parameters, loss, norm, gradients)

    def _in_python(self, call: Call) -> Outcome:
        """The pass in Python; its structure was validated when the plan was made."""
        with unvalidated():
            return run_in_python(self.estimate, call, self._owners, self.update)

    def _clipped(self, found: Outcome) -> Sequence[Tensor]:
        if self.clip_norm is None:
            return found.gradients
        share = (self.clip_norm / (found.grad_norm + 1e-6)).clamp(max=1.0)
        return [gradient * share for gradient in found.gradients]

    def _compare(self, plan: Plan, call: Call, before: State, found: Outcome) -> Outcome:
        """What the back end found, if Python finds the same on the same noise; or else that."""
        # The gradients of a recording are written to by the next run of it.
        found = found._replace(gradients=[gradient.clone() for gradient in found.gradients])
        after = State(plan.devices, plan.buffers, plan.generators, of_python=True)
        before.restore()
        expected = self._in_python(call.again())
        in_python = State(plan.devices, plan.buffers, plan.generators, of_python=True)
        differs = difference(found, expected, self.precision)
        if differs is None and not after.leaves_noise_as(in_python):
            differs = Difference("the noise that is left for the next step")
        if differs is None:
            after.restore()
            return found
        if differs.may_be_a_kink and self._agree_elsewhere(plan, call, after):
            after.restore()
            return found

        in_python.restore()
        self._warn(
            f"At step {plan.taken + 1} the {plan.engine} of the program and the program itself "
            f"disagree about {differs.about}, so it is run in Python from here on: it depends on "
            "something that a graph does not see, such as Python state, NumPy or .tolist()."
        )
        self.distrust()
        return expected

    def _agree_elsewhere(self, plan: Plan, call: Call, state: State) -> bool:
        """Whether back end and Python agree on the noise of another state."""
        state.restore()
        found = self._captured(plan, call)
        state.restore()
        return difference(found, self._in_python(call.again()), self.precision) is None

    def _diagnose(
        self, parameters: dict[str, Tensor], call: Call, before: State
    ) -> NonFiniteError | None:
        """Why a step was not finite, by running it again; it leaves things as before the step."""
        before.restore()
        try:
            cause = None
            if self._find_cause is not None:
                args, kwargs = call.arguments(call.again().tensors)
                cause = self._find_cause(args, kwargs, parameters)
                before.restore()
            return cause or self._find_gradient(call)
        finally:
            before.restore()

    def _find_gradient(self, call: Call) -> NonFiniteError | None:
        try:
            found = self._in_python(call.again())
        except (ValueError, RuntimeError):
            return None
        return find_gradient(dict(zip(found.parameters, found.gradients, strict=True)))

    def _not_finite(self) -> NonFiniteError:
        if self.exchange is not None:
            cause = "The step has failed, or its loss is not finite, in another process."
            return NonFiniteError(cause, REMEDY)
        return NonFiniteError("The training loss is not finite.", REMEDY)

    def _make_plan(self, call: Call) -> Plan:
        """Runs the program once; where that fails on NaN it says why."""
        buffers = [buffer for owner in self._owners for buffer in owner.buffers()]
        state = State(buffers=buffers)
        kept = stored()
        before = set(kept)
        try:
            plan = make_plan(self.estimate, call, self._owners, self.update, self._readers)
        except (ValueError, RuntimeError) as error:
            named = {n: p for owner in self._owners for n, p in owner.named_parameters()}
            named |= {name: kept[name] for name in kept.keys() - before}
            cause = self._diagnose(named, call, state)
            if cause is None:
                raise
            raise cause from error
        finally:
            self._made = [name for name in kept if name not in before]
        if plan.outside is not None:
            self._warn(
                f"A tensor of shape {plan.outside} has a gradient, and is no parameter of Pyro's: "
                "it is not trained, nor is its .grad filled as pyro.infer.SVI would. Name its "
                "module by pyro.module, or detach it."
            )
        return plan

    def _forget(self) -> None:
        """Takes parameters out of Pyro's store again that a step was the first to make, wrong."""
        store = pyro.get_param_store()
        for name in self._made:
            if name in store and not torch.isfinite(store[name]).all():
                del store[name]

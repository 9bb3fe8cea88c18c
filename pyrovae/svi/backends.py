r"""Back ends: the passes of a plan, and which of them to take.

`eager` runs the program in Python at every step. `graph` runs the operations that one run of it
made, without Python or Pyro. `inductor` compiles these with Inductor, and `cuda-graph` has a GPU
replay them as one. All draw the same noise.
"""

__all__ = ["ENGINES", "Recorded", "choose", "default_engine", "restored"]

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyrovae.capture import CaptureError, Graph, capture, compile_graph, has_compiler
from pyrovae.handlers import unvalidated
from pyrovae.recording import Recording
from pyrovae.svi.estimators import Estimate
from pyrovae.svi.passes import Call, Pass, make_pass
from pyrovae.svi.plans import Plan
from pyrovae.svi.state import State

logger = logging.getLogger(__name__)

ENGINES = ("eager", "graph", "inductor", "cuda-graph", "auto")
_FAILURES = {
    "inductor": "Inductor cannot compile",
    "cuda-graph": "The steps cannot be recorded as a CUDA graph",
}
TRIAL_STEPS = 5
# Capture and Inductor take about 1 and 25 milliseconds for an operation. A pass of more operations
# than these is one that repeats a part very often, and whose time goes there.
MOST_CAPTURED = 50_000
MOST_COMPILED = 15_000


def default_engine(device: torch.device) -> str:
    """The back end of a long training: compiled on a CPU with a C++ compiler, else a graph."""
    if device.type == "cpu" and has_compiler():
        return "inductor"
    return "graph"


def choose(
    plan: Plan,
    call: Call,
    estimate: Estimate,
    engine: str,
    warn: Callable[[str], None],
    others: Sequence[Plan] = (),
) -> None:
    """Gives a plan the back end that is asked for, or else the best that works.

    Args:
        plan: The plan, whose `engine` and `run` are set.
        call: Arguments to capture it on.
        estimate: What the program is to compute.
        engine: One of `ENGINES`.
        warn: Called with the reason where another back end is taken.
        others: Plans of which no more was changed than what modules hold; one that has the same
            graph goes on in this one.
    """
    start = time.perf_counter()
    wanted = _to_try(plan) if engine == "auto" else (engine,)
    passes = _passes(plan, call, estimate, wanted, warn, others)
    if not passes:
        return
    name = _fastest(plan, call, passes) if engine == "auto" else list(passes)[-1]
    if name != "eager":
        plan.run, plan.engine = passes[name], name
    logger.info("engine %s, ready in %.1f s", plan.engine, time.perf_counter() - start)


def _passes(
    plan: Plan,
    call: Call,
    estimate: Estimate,
    wanted: Sequence[str],
    warn: Callable[[str], None],
    others: Sequence[Plan],
) -> dict[str, Pass]:
    """The passes that work, of Python and of those that are wanted; none for a plan that goes on
    with those of another.
    """
    in_python = make_pass(estimate, call, list(plan.parameters.values()))
    found: dict[str, Pass] = {"eager": in_python}
    if plan.operations > MOST_CAPTURED:
        warn(
            f"A step makes {plan.operations:,} operations, too many to be captured, so the "
            "program is run in Python."
        )
        return found
    try:
        with restored(plan), unvalidated(), _without_onednn():
            graph = capture(in_python, call.tensors)
    except CaptureError as error:
        warn(f"The program cannot be captured and is run in Python: {error}")
        return found

    plan.graph = graph
    for other in others:
        if other.graph is not None and graph.does_as(other.graph):
            plan.go_on_as(other)
            return {}
    for name in wanted:
        if name == "inductor" and plan.operations > MOST_COMPILED:
            warn(
                f"A step makes {plan.operations:,} operations, which Inductor would compile for "
                "long, so the graph is run as it is."
            )
            found["graph"] = graph
            continue
        try:
            with restored(plan):
                found[name] = _make(name, graph, call.tensors)
        except CaptureError as error:
            warn(f"{_FAILURES[name]}, so the graph is run as it is: {error}")
            found["graph"] = graph
    return found


def _to_try(plan: Plan) -> tuple[str, ...]:
    """The back ends besides Python that there are where a plan is run."""
    return ("graph", "inductor", "cuda-graph") if plan.devices else ("graph", "inductor")


def _make(name: str, graph: Graph, inputs: Sequence[Tensor]) -> Pass:
    """What runs a graph as a back end does.

    Raises:
        CaptureError: If it does not.
    """
    if name == "inductor":
        return compile_graph(graph, inputs)
    return Recorded(graph, inputs) if name == "cuda-graph" else graph


class Recorded:
    """A recorded pass, whose loss and norm the next one does not write to as to its gradients.

    Args:
        graph: The pass as a graph.
        inputs: Inputs to record it on.

    Raises:
        CaptureError: As of a `Recording`.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        self.graph = graph
        self._recording = Recording(graph, inputs)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The loss, the norm of its gradient, and the gradients."""
        loss, norm, *gradients = self._recording(*tensors)
        return [loss.clone(), norm.clone(), *gradients]


@contextmanager
def restored(plan: Plan) -> Iterator[None]:
    """Takes back what passes in a block draw and change."""
    state = State(plan.devices, plan.buffers, plan.generators, of_python=True)
    try:
        yield
    finally:
        state.restore()


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Has layers made of torch's own operations, where these may be kernels of oneDNN.

    That for an LSTM leaves out what its gradient needs where gradients are off, as they are
    when a graph is run that has its backward pass in it. `torch.backends.mkldnn.flags` would set
    more than this, and warn.
    """
    was_enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was_enabled)


def _fastest(plan: Plan, call: Call, passes: dict[str, Pass]) -> str:
    """The name of the pass with the smallest median time, by interleaved trials."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    with restored(plan):
        for _ in range(TRIAL_STEPS + 1):
            for name, run in passes.items():
                times[name].append(_seconds(plan, call, run))
    return min(times, key=lambda name: statistics.median(times[name][1:]))


def _seconds(plan: Plan, call: Call, run: Pass) -> float:
    """What a pass takes; for ever where it fails."""
    _wait_for(plan)
    start = time.perf_counter()
    try:
        with torch.no_grad(), unvalidated():
            run(*call.again().tensors)
    except RuntimeError:
        return math.inf
    _wait_for(plan)
    return time.perf_counter() - start


def _wait_for(plan: Plan) -> None:
    """Waits until the devices of a plan have done what they were given to do."""
    for device in plan.devices:
        torch.cuda.synchronize(device)

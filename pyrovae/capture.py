r"""Capture: a function of tensors, Pyro's handlers and all, as a graph of tensor operations.

The function runs once under `make_fx`. What is left is every operation it made, the backward
pass and the draws of noise included; the handlers are gone. The parameters, buffers and
schedules that it read by reference become inputs of the graph, so that a later change of
their values is seen.
"""

__all__ = ["OPTIONS", "CaptureError", "Graph", "capture", "compile_graph", "has_compiler"]

import copy
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from pyrovae.errors import first_line
from pyrovae.noise import keep_order

# Noise drawn by the same kernels as eagerly, so that a step can be checked against an eager
# one. Inductor's preferred layout of convolutions is slower on the CPU than the one it is given.
OPTIONS: dict[str, Any] = {
    "fallback_random": True,
    "layout_optimization": False,
    "compile_threads": 1,
}


class CaptureError(Exception):
    """A function cannot be captured, or a graph not be compiled: the message says why."""


@dataclass
class Graph:
    """A captured function.

    Attributes:
        module: The graph, over the function's inputs and then what it closed over.
        closed_over: The tensors that the function read by reference.
    """

    module: fx.GraphModule
    closed_over: list[Tensor]

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Runs the graph, operation by operation."""
        return self.module(*inputs, *self.closed_over)

    def does_as(self, other: "Graph") -> bool:
        """Whether another does the same to the same tensors."""
        if self.module.code != other.module.code:
            return False
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        closed_over = inputs[len(inputs) - len(self.closed_over) :]
        triples = zip(closed_over, self.closed_over, other.closed_over, strict=True)
        return all(
            mine is theirs or _is_equal(node, mine, theirs) for node, mine, theirs in triples
        )


def capture(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Graph:
    """Captures a function as it runs on these inputs.

    Branches on Python values are taken once and for all, as are the shapes.

    Raises:
        CaptureError: If it asks for the value of a tensor.
    """
    # A fake tensor says of every value what it is like. Where no mode for these is at hand make_fx
    # makes one for each of them, and takes twice as long.
    mode = FakeTensorMode(allow_fallback_kernels=True)
    roots: list[Any] = []

    def traced(*given: Tensor) -> Sequence[Tensor]:
        proxies: Any = get_proxy_mode()
        roots.append(proxies.tracer.root)
        return function(*given)

    try:
        with warnings.catch_warnings(action="ignore"), tracing(TracingContext(mode)):
            module: fx.GraphModule = make_fx(traced)(*map(_alias, inputs))
    except Exception as error:
        raise CaptureError(_reason(error)) from error
    finally:
        # The tracer is part of cycles, and would hold what it has met until these are collected:
        # the weights of a program that has long been dropped.
        for root in roots:
            vars(root).clear()
    # Pyro counts the rows of every plate, on the CPU, and nothing reads them. Draws stay, as those
    # that follow would be other ones without them.
    module.graph.eliminate_dead_code()
    return _lift(module)


def _alias(tensor: Tensor) -> Tensor:
    """The same values as another object: inputs are told apart by what object they are.

    The next call may bring two tensors where this one has brought one twice, or another in
    place of one that the function reads by reference besides.
    """
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach()


def _lift(module: fx.GraphModule) -> Graph:
    """Makes inputs of the tensors that a graph holds as attributes."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1:]
    inputs: dict[int, fx.Node] = {}
    closed_over: list[Tensor] = []
    held = [node for node in graph.nodes if node.op == "get_attr"]
    for node in held:
        tensor = getattr(module, str(node.target))
        if id(tensor) not in inputs:
            name = f"closed_over_{len(closed_over)}"
            where = graph.inserting_after(last[0]) if last else graph.inserting_before()
            with where:
                last = [graph.placeholder(name)]
            last[0].meta.update(node.meta)
            inputs[id(tensor)] = last[0]
            closed_over.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    for name in {str(node.target) for node in held}:
        delattr(module, name)
    module.recompile()

    return Graph(module, closed_over)


def _is_equal(node: fx.Node, value: Tensor, other: Tensor) -> bool:
    """Whether an input is a number of the program's text, which each run makes anew, and equal."""
    is_made = all(u.target is torch.ops.aten.lift_fresh_copy.default for u in node.users)
    return is_made and value.dtype == other.dtype and torch.equal(value, other)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which Inductor needs on the CPU."""
    from torch._inductor import config

    candidates = config.cpp.cxx
    names = candidates if isinstance(candidates, list | tuple) else [candidates]
    return any(name and shutil.which(name) for name in names)


def compile_graph(graph: Graph, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compiles a graph with Inductor, whose cache on disk outlives the process.

    Returns:
        A function of the inputs, to be called without gradients: the backward pass is in the
        graph already.

    Raises:
        CaptureError: If it cannot be compiled.
    """
    # Some versions of Inductor import what torch itself deprecates.
    with warnings.catch_warnings(action="ignore"):
        from torch._inductor.compile_fx import compile_fx

    module = copy.deepcopy(graph.module)
    try:
        draw = keep_order(module)
        with warnings.catch_warnings(action="ignore"), torch.no_grad(), torch.random.fork_rng():
            everything: list[Any] = [*inputs, *(t.detach() for t in graph.closed_over), *draw()]
            compiled: Any = compile_fx(module, everything, config_patches=OPTIONS)
    except Exception as error:
        raise CaptureError(_reason(error)) from error

    return lambda *tensors: compiled(*tensors, *graph.closed_over, *draw())


def _reason(error: BaseException) -> str:
    if "_local_scalar_dense" in str(error):
        return "it asks for the value of a tensor, by .item(), int(), float() or a branch."
    return first_line(error)

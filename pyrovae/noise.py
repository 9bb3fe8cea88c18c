r"""The draws of a graph, kept in their order.

Two draws from one generator that do not depend on each other may change places in a compiler's
eyes. Each would still have its distribution, but the numbers of a seed would be others than
the program's own. So the draws that depend on no value are made ahead of the graph, one after
the other, and the ones that follow a draw which does are tied to it, if they are given a tensor
at all: `torch.randperm` and `torch.randint` are not. An exchange of streams (`shared_noise`) keeps
its place among the draws ahead, and cannot follow one that depends on a value.
"""

__all__ = ["keep_order"]

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
# Draws that make their own tensor, and those into a tensor that they are the same as.
_INTO: dict[Any, Any] = {
    _aten.rand.default: _aten.uniform_.default,
    _aten.rand_like.default: _aten.uniform_.default,
    _aten.randn.default: _aten.normal_.default,
    _aten.randn_like.default: _aten.normal_.default,
}


def keep_order(module: fx.GraphModule) -> Callable[[], Sequence[Tensor]]:
    """Fixes the order of a graph's draws, by changing the graph.

    Args:
        module: The graph, over its inputs. It gets further inputs: the draws made ahead.

    Returns:
        A function that makes the draws to be passed after the other inputs.

    Raises:
        ValueError: If noise that processes share would come after noise that depends on a value.
    """
    graph = module.graph
    for node in filter(_is_draw, list(graph.nodes)):
        _rewrite(graph, node)

    draws = [node for node in graph.nodes if _is_draw(node)]
    free = _independent(graph)
    number = next((n for n, node in enumerate(draws) if node not in free), len(draws))
    if not all(map(_gives, draws[number:])):
        raise ValueError("noise that processes share follows noise that depends on a value.")
    ahead = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    made = [(_gives(node), _copy(ahead, node, copies)) for node in draws[:number]]
    ahead.output([copy for gives, copy in made if gives])
    _pass_in(graph, draws[:number])

    for earlier, later in zip(draws[number:], draws[number + 1 :], strict=False):
        _tie(graph, earlier, later)
    module.recompile()

    return fx.GraphModule({}, ahead).forward


def _is_draw(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags


def _gives(node: fx.Node) -> bool:
    """Whether a draw gives something, as an exchange of streams does not."""
    return node.meta.get("val") is not None


def _rewrite(graph: fx.Graph, node: fx.Node) -> None:
    """Makes a draw one into an empty tensor, as the kernels do it anyway.

    So it can be tied; and of Bernoulli draws a compiler has a rule with other numbers.
    """
    if node.target is not _aten.bernoulli.default and node.target not in _INTO:
        return
    value: Tensor = node.meta["val"]
    size = (list(value.shape), list(value.stride()))
    kind = {"dtype": value.dtype, "device": value.device}
    with graph.inserting_before(node):
        empty = graph.call_function(_aten.empty_strided.default, size, kind)
        if node.target in _INTO:
            drawn = graph.call_function(_INTO[node.target], (empty,))
        else:
            drawn = graph.call_function(_aten.bernoulli_.Tensor, (empty, node.args[0]))
    for made in (empty, drawn):
        made.meta.update(node.meta)
    node.replace_all_uses_with(drawn)
    graph.erase_node(node)


def _independent(graph: fx.Graph) -> set[fx.Node]:
    """The draws that depend on no input: those into a tensor of their own, and into none."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_draw(node) and all(_is_fresh(given) for given in node.all_input_nodes):
            found.add(node)
    return found


def _is_fresh(node: fx.Node) -> bool:
    """Whether a node is an empty tensor that is made for one use."""
    makers = (_aten.empty.memory_format, _aten.empty_strided.default)
    return node.target in makers and len(node.users) == 1


def _copy(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """Copies a node, and what it depends on, into another graph."""
    if node not in copies:
        for given in node.all_input_nodes:
            _copy(graph, given, copies)
        copies[node] = graph.node_copy(node, lambda given: copies[given])
    return copies[node]


def _pass_in(graph: fx.Graph, draws: Sequence[fx.Node]) -> None:
    """Makes inputs of draws, and removes the exchanges of streams between them."""
    last = [node for node in graph.nodes if node.op == "placeholder"][-1:]
    for draw in draws:
        if not _gives(draw):
            graph.erase_node(draw)
    for number, draw in enumerate(filter(_gives, draws)):
        with graph.inserting_after(last[0]) if last else graph.inserting_before():
            last = [graph.placeholder(f"noise_{number}")]
        last[0].meta.update(draw.meta)
        draw.replace_all_uses_with(last[0])
        graph.erase_node(draw)


def _tie(graph: fx.Graph, earlier: fx.Node, later: fx.Node) -> None:
    """Lets a draw depend on the one before it, by adding nothing to what it is given."""
    given = later.args[0] if later.args else None
    if not isinstance(given, fx.Node) or not isinstance(given.meta.get("val"), Tensor):
        return
    with graph.inserting_before(later):
        drawn = earlier
        if not isinstance(earlier.meta["val"], Tensor):  # of several results the first
            drawn = graph.call_function(operator.getitem, (earlier, 0))
        corner = graph.call_function(_aten.reshape.default, (drawn, [-1]))
        corner = graph.call_function(_aten.select.int, (corner, 0, 0))
        # Draws are never NaN, which no compiler knows; a product with zero it may leave out.
        nothing = graph.call_function(_aten.isnan.default, (corner,))
        kind = {"dtype": given.meta["val"].dtype}
        nothing = graph.call_function(_aten._to_copy.default, (nothing,), kind)
        tied = graph.call_function(_aten.add.Tensor, (given, nothing))
    tied.meta.update(given.meta)
    later.args = (tied, *later.args[1:])

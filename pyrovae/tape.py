"""What autograd has recorded of a result."""

__all__ = ["is_checkpointed", "leaves_of"]

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def leaves_of(result: Tensor) -> list[Tensor]:
    """The tensors that a backward pass from a result would give a `.grad`."""
    return [node.variable for node in _nodes(result) if hasattr(node, "variable")]


def is_checkpointed(result: Tensor) -> bool:
    """Whether a reentrant checkpoint stands in the graph of a result.

    Such a one finds the gradients of what it has run in a backward pass of its own, into `.grad`,
    and `autograd.grad` knows nothing of them.
    """
    return any(node.name() == "CheckpointFunctionBackward" for node in _nodes(result))


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

r"""Functions of many blocks whose inner results are made again for the gradients, not kept."""

__all__ = ["in_blocks"]

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from pyrovae.errors import InputError

Score = Callable[[Tensor], Tensor]


def in_blocks(function: Score, blocks: Sequence[Tensor]) -> list[Tensor]:
    """A function of every block, in memory that does not grow with their number.

    In the backward pass each block is computed once more. `torch.utils.checkpoint` does so too,
    but keeps the autograd graph of each block, without its values. Of thousands of blocks that
    is much by itself, and what is small and kept comes to lie between what is large and freed,
    where the next block then does not fit: memory grows as if everything were kept.

    Args:
        function: A function of a block of values (n, ...), row by row, without noise, whose
            result may also depend on other tensors.
        blocks: The blocks, of one shape but for their lengths.

    Raises:
        InputError: In a backward pass of which a gradient is to be taken.
    """
    if not torch.is_grad_enabled():
        return [function(block) for block in blocks]
    reads = _reads(function, blocks[0][:1])
    if reads is None:
        score: Any = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
        return [score(block) for block in blocks]

    return [_Recomputed.apply(function, block, *reads) for block in blocks]


class _Recomputed(torch.autograd.Function):
    """A function of a block, and of what else it reads, that keeps nothing but these."""

    @staticmethod
    def forward(ctx: Any, function: Score, block: Tensor, *reads: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(block, *reads)
        ctx.reads = reads  # kept as the objects that they are, which the function will read again
        device = block.device.type
        ctx.autocast = partial(
            torch.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )
        return function(block)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only where gradients are to have gradients
            raise InputError(
                "A mixture of so many log-densities has no gradients of gradients.",
                "Give it fewer values or components at a time.",
            )
        needed = ctx.needs_input_grad[1:]
        leaves = [
            tensor.detach().requires_grad_(is_needed)
            for tensor, is_needed in zip(ctx.saved_tensors, needed, strict=True)
        ]
        # What is read may itself depend on what is read: each is a leaf here.
        places = dict(zip(map(id, ctx.reads), leaves[1:], strict=True))
        with torch.enable_grad(), ctx.autocast(), _Exchanged(places):
            result = ctx.function(leaves[0])
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(result, wanted, gradient, allow_unused=True))
        return None, *(next(found) if is_needed else None for is_needed in needed)


class _Exchanged(TorchFunctionMode):
    """Gives operations other tensors in place of some, which are named by identity."""

    def __init__(self, places: dict[int, Tensor]) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(
            Tensor, lambda tensor: self._places.get(id(tensor), tensor), (args, kwargs or {})
        )
        return func(*args, **kwargs)


class _Recorder(TorchFunctionMode):
    """Keeps the tensors that operations are given and what they make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) not in self.made:
                self.given.setdefault(id(leaf), leaf)
        found = func(*args, **kwargs)
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and id(leaf) not in self.given:
                self.made[id(leaf)] = leaf
        return found

    def learned(self) -> list[Tensor]:
        """What was given, and has a gradient."""
        return [tensor for tensor in self.given.values() if tensor.requires_grad]


def _reads(function: Score, value: Tensor) -> list[Tensor] | None:
    """The tensors from outside that a function's result depends on, its argument apart.

    Returns:
        None if there are others than could be seen, or others every time.
    """
    with torch.enable_grad(), _Recorder() as recorder:
        result = function(value.detach())
    with torch.enable_grad(), _Recorder() as again:
        function(value.detach())
    reads = recorder.learned()
    if {id(tensor) for tensor in reads} != {id(tensor) for tensor in again.learned()}:
        return None

    known = {get_gradient_edge(tensor) for tensor in reads}
    waiting, met = [get_gradient_edge(result)] if result.requires_grad else [], set()
    while waiting:
        edge = waiting.pop()
        if edge in known or edge.node in met:
            continue
        if hasattr(edge.node, "variable"):  # a leaf
            return None
        met.add(edge.node)
        before = edge.node.next_functions
        waiting += [GradientEdge(node, nr) for node, nr in before if node is not None]
    return reads

"""What an operation on tensors does besides giving a result, as its schema says."""

__all__ = ["is_draw", "written"]

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def is_draw(func: Any) -> bool:
    """Whether an operation draws from a generator, and gives what it has drawn."""
    return torch.Tag.nondeterministic_seeded in func.tags and bool(func._schema.returns)


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among its arguments that an operation writes to."""
    places, names = _writes(func)
    given = [args[place] for place in places if place < len(args)]
    given += [kwargs[name] for name in names if name in kwargs]
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


@cache
def _writes(func: Any) -> tuple[frozenset[int], frozenset[str]]:
    """The arguments that an operation writes to, by their places and by their names."""
    found = [
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return frozenset(place for place, _ in found), frozenset(name for _, name in found)

"""What a run of a program touches besides its results, seen from its operations on tensors."""

__all__ = ["Watch"]

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae.operations import written


class Watch(TorchDispatchMode):
    """Watches the operations of a block, those of autograd included, and can undo their traces.

    Attributes:
        operations: How many there are.
        changed: The tensors from before the block that it writes to, or parts of them, each
            with its values before.
        generators: The generators besides torch's own that it draws from, each with its state
            before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.changed: list[tuple[Tensor, Tensor]] = []
        self.generators: list[tuple[torch.Generator, Tensor]] = []
        self._made: set[Any] = set()
        self._kept: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        for tensor in written(func, args, kwargs):
            self._keep(tensor)
        generator = kwargs.get("generator")
        if generator is not None and generator not in [g for g, _ in self.generators]:
            self.generators.append((generator, generator.get_state()))

        found = func(*args, **kwargs)
        read = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {_storage(t) for t in tree_leaves(found) if isinstance(t, Tensor)}
        self._made |= made - read
        return found

    def _keep(self, tensor: Tensor) -> None:
        """Keeps the values of a tensor that is about to change, if it is older than the block."""
        part = _storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()
        if part[0] not in self._made and part not in self._kept:
            self._kept.add(part)
            self.changed.append((tensor.detach(), tensor.detach().clone()))

    def makes(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is newer than the block."""
        return _storage(tensor) in self._made

    def writes_to(self, tensor: Tensor) -> bool:
        """Whether a tensor is among those that were written to."""
        return any(_storage(tensor) == _storage(changed) for changed, _ in self.changed)

    def undo(self, but: Iterable[Tensor] = ()) -> None:
        """Puts everything back to what it was before the block.

        Args:
            but: Tensors that stay as they are.
        """
        for generator, state in self.generators:
            generator.set_state(state)
        kept = set(map(_storage, but))
        with torch.no_grad():
            # Parts may overlap: the last that was written first.
            for tensor, before in reversed(self.changed):
                if _storage(tensor) not in kept:
                    tensor.copy_(before)


def _storage(tensor: Tensor) -> int | None:
    """What tensors have in common that share their memory; None where there is none."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):  # sparse
        return None

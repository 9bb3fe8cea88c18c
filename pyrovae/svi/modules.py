"""The modules that run in a block, and what becomes of their buffers."""

__all__ = ["ModuleWatch"]

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from pyrovae.svi.attributes import Held, held_by


class ModuleWatch:
    """Watches which modules run in a block, and can put their buffers back.

    Not those of a module that is set up in it, which would not set them up again.

    Args:
        owners: Modules that are counted among them, whether they run or not.

    Attributes:
        modules: The modules.
        held: What they hold, as it was before they ran.
        replaced: The name of a buffer that the block replaced rather than changed, or None.
    """

    def __init__(self, owners: Iterable[nn.Module]) -> None:
        self.modules: list[nn.Module] = []
        self.held: list[Held] = []
        self.replaced: str | None = None
        self._seen: set[int] = set()
        self._flags: dict[nn.Module, dict[str, bool]] = {}
        # A module, the name of one of its buffers, that buffer, and its values before.
        self._buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        for owner in owners:
            for module in owner.modules():
                self._note(module, None)

    def __enter__(self) -> Self:
        self._handle = register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _note(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        self.modules.append(module)
        for name, buffer in module.named_buffers(recurse=False):
            if not is_lazy(buffer):
                self._buffers.append((module, name, buffer, buffer.detach().clone()))
        self._flags[module] = _flags(module)
        self.held.extend(held_by(module))

    @property
    def of_set_up(self) -> list[Tensor]:
        """The parameters and buffers of modules that were set up in the block.

        They have noted so by a flag, which is Python's and is not put back.
        """
        return [t for m in self._set_up for t in (*m.parameters(), *m.buffers(recurse=False))]

    @property
    def _set_up(self) -> Sequence[nn.Module]:
        return [module for module, before in self._flags.items() if _flags(module) != before]

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers that the modules have now."""
        now = (module._buffers.get(name) for module, name, _, _ in self._buffers)
        return [buffer for buffer in now if buffer is not None]

    def undo(self) -> None:
        """Gives the modules their buffers back as they were."""
        set_up = self._set_up
        for module, name, buffer, before in self._buffers:
            if module in set_up:
                continue
            with torch.no_grad():
                # Also what no operation says that it writes to, as batch normalisation may not.
                buffer.copy_(before)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
                self.replaced = name


def _flags(module: nn.Module) -> dict[str, bool]:
    """What a module has noted of itself as true or false, besides its mode."""
    own = vars(module).items()
    return {name: value for name, value in own if isinstance(value, bool) and name != "training"}

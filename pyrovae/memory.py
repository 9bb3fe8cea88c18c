"""The memory at hand, and what a computation takes of it."""

__all__ = ["available", "peak_of"]

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available(device: torch.device) -> int | None:
    """The bytes that tensors on a device can still take; None where nothing tells.

    On Linux what the kernel reckons can be had without swapping, or less where a control group,
    as of a container, sets a limit.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [_of_machine(), *_of_groups()]
    return min((number for number in found if number is not None), default=None)


def peak_of(function: Callable[[], Any]) -> int:
    """The bytes of the tensors that a call makes, as many of them as are alive at one time.

    What an operation takes for itself alone is not seen.
    """
    with _Meter() as meter:
        function()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Counts the bytes that are alive of what is made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and _key(tensor) not in given | self._alive.keys():
                storage = tensor.untyped_storage()
                self._alive[_key(tensor)] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, _key(tensor), None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return found


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _of_machine() -> int | None:
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        entries = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        return int(entries["MemAvailable"][0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _of_groups() -> list[int | None]:
    """What is left to the control group of this process, and to those that it is in."""
    try:
        entry = (PROC / "self" / "cgroup").read_text().splitlines()[-1]
    except (OSError, IndexError):
        return []
    own = GROUPS / entry.rpartition(":")[2].lstrip("/")
    return [_of_group(group) for group in (own, *own.parents) if group.is_relative_to(GROUPS)]


def _of_group(group: Path) -> int | None:
    try:
        limit = int((group / "memory.max").read_text())
        taken = int((group / "memory.current").read_text())
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - taken + int(entries["inactive_file"]))
    except (OSError, KeyError, ValueError):
        return None

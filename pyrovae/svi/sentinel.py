r"""The watch for a step that is not finite, without waiting for the device.

To read a number from a GPU is to wait for all that it has been given to do. So the verdict on a
step stays on the device, as a flag that once raised stays raised and that every later update
obeys: parameters, optimizer and buffers are frozen. It is read every so many steps, and the step
that raised it is then run again to say why.
"""

__all__ = ["Sentinel"]

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.svi.passes import Call, Outcome
from pyrovae.svi.state import State

# The batches that wait for a verdict stay alive: they are not to fill a device.
MOST_BYTES = 2**28


class Suspect(NamedTuple):
    """What it takes to run a step again."""

    step: int
    call: Call
    before: State
    parameters: dict[str, Tensor]


class Sentinel:
    """Watches over steps.

    Args:
        every: After how many steps the flag is read.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._recent: deque[Suspect] = deque(maxlen=every)
        self._bytes = 0
        self._first: Tensor | None = None
        self._step = 0

    def watch(self, call: Call, before: State, found: Outcome) -> Tensor:
        """Takes note of a step, before its update.

        Returns:
            One if this step or an earlier one was not finite, or else zero, on the device and as
            torch's fused optimizers want it.
        """
        self._step += 1
        self._bytes += sum(tensor.nbytes for tensor in call.tensors)
        self._recent.append(Suspect(self._step, call, before, found.parameters))
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=found.loss.device)
        finite = torch.isfinite(found.loss) & torch.isfinite(found.grad_norm)
        fresh = ~finite & (self._first == 0)
        self._first = torch.where(fresh, self._step, self._first)
        frozen = (self._first > 0).float()
        before.keep_buffers(frozen > 0)
        return frozen

    @property
    def is_due(self) -> bool:
        """Whether it is time to read the flag: enough steps, or batches kept, have come."""
        return len(self._recent) >= self.every or self._bytes > MOST_BYTES

    def read(self) -> tuple[Suspect, int] | None:
        """The first step that was not finite, and how many steps ago; it waits for the device."""
        first = 0 if self._first is None else int(self._first)
        self._bytes = 0
        if first == 0:
            self._recent.clear()
            return None
        suspect = next(suspect for suspect in self._recent if suspect.step == first)
        ago = self._step - first
        self._first = None
        self._recent.clear()
        return suspect, ago

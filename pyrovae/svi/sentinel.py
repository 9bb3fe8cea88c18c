r"""The watch for a step that is not finite, without waiting for the device.

To read a number from a GPU is to wait for all that it has been given to do. So the verdict on a
step stays on the device, as a flag that once raised stays raised and that every later update
obeys: parameters, optimizer and buffers are frozen. It is read every so many steps, and the step
that raised it is then run again to say why.
"""

__all__ = ["Sentinel", "Suspect"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.svi.passes import Call, Outcome
from pyrovae.svi.state import State

# The batches that wait for a verdict stay alive: they are not to fill a device.
MOST_BYTES = 2**28


class Suspect(NamedTuple):
    """A step, or several that were taken as one, and what it takes to run one of them again.

    Attributes:
        step: The number of the first.
        calls: Their arguments.
        before: What noise and buffers were before the first.
        parameters: What has a gradient.
    """

    step: int
    calls: Sequence[Call]
    before: State
    parameters: dict[str, Tensor]


class Sentinel:
    """Watches over steps.

    Args:
        every: After how many steps the flag is read.
        device: Where their losses are.
    """

    def __init__(self, every: int, device: torch.device) -> None:
        self.every = every
        self._recent: list[Suspect] = []
        self._bytes = 0
        self._asked = 0
        self._step = 0
        # The same number, and the first that was not finite, in places that a recorded step
        # finds again.
        self._now = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)

    def remember(
        self, calls: Sequence[Call], before: State, parameters: dict[str, Tensor]
    ) -> None:
        """Takes note of steps, each of which is to be judged."""
        self._recent.append(Suspect(self._step + 1, calls, before, parameters))
        self._step += len(calls)
        self._bytes += sum(tensor.nbytes for call in calls for tensor in call.tensors)

    def judge(self, found: Outcome) -> Tensor:
        """Judges the next step, on the device alone.

        Returns:
            One if this step or an earlier one was not finite, or else zero, as torch's fused
            optimizers want it.
        """
        self._now += 1
        finite = torch.isfinite(found.loss) & torch.isfinite(found.grad_norm)
        fresh = ~finite & (self._first == 0)
        self._first.copy_(torch.where(fresh, self._now, self._first))
        return (self._first > 0).float()

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Lets the steps of a block change nothing, as after one that was not finite."""
        now, first = self._now.clone(), self._first.clone()
        self._first.fill_(1)
        try:
            yield
        finally:
            self._now.copy_(now)
            self._first.copy_(first)

    @property
    def is_due(self) -> bool:
        """Whether it is time to read the flag: enough steps, or batches kept, have come."""
        return self._step - self._asked >= self.every or self._bytes > MOST_BYTES

    def read(self) -> tuple[Suspect, int, int] | None:
        """What was not finite, which step of it, and how many ago; it waits for the device."""
        first, recent = int(self._first), self._recent
        # Should a step have been broken off between being noted and being judged.
        self._now.fill_(self._step)
        self._recent, self._bytes, self._asked = [], 0, self._step
        if first == 0:
            return None
        self._first.zero_()
        found = next(s for s in recent if s.step <= first < s.step + len(s.calls))
        return found, first - found.step, self._step - first

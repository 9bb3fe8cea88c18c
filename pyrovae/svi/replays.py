r"""Several steps as one CUDA graph: noise, passes, clipping and updates, launched all at once.

What a host does between two steps, a small step on a large GPU waits for. So a few steps can be
recorded one behind the other, on arguments that lie there for all of them; whether all was
finite, and the learning rates, are read on the device.
"""

__all__ = ["Replay"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrovae.capture import CaptureError
from pyrovae.recording import addresses, device_of, record
from pyrovae.svi.backends import Recorded, restored
from pyrovae.svi.passes import Call, Outcome
from pyrovae.svi.plans import Plan
from pyrovae.svi.sentinel import Sentinel
from pyrovae.svi.state import Copies, copies
from pyrovae.svi.updates import Update

# What becomes of a step once its pass is over, given what its buffers were before.
Finish = Callable[[Outcome, Copies], None]


class Replay:
    """So many steps of one kind, recorded.

    Args:
        plan: The plan of the steps, which is run by `cuda-graph`.
        calls: Arguments to record them on.
        update: What updates the parameters.
        sentinel: What judges the steps.
        finish: What is done behind the pass of each.

    Raises:
        CaptureError: If something in a step waits for the device.
    """

    def __init__(
        self,
        plan: Plan,
        calls: Sequence[Call],
        *,
        update: Update,
        sentinel: Sentinel,
        finish: Finish,
    ) -> None:
        assert isinstance(plan.run, Recorded)
        graph = self._graph = plan.run.graph
        if not all(tensor.is_contiguous() for call in calls for tensor in call.tensors):
            raise CaptureError("the entries of an argument are in another order in memory.")
        self._plan = plan
        self._update = update
        self._rooms = [torch.stack(tensors) for tensors in _by_argument(calls)]
        self._addresses = addresses(self._memory)

        def run() -> Tensor:
            found = []
            for number in range(len(calls)):
                before = copies(plan.buffers)
                loss, norm, *gradients = graph(*(room[number] for room in self._rooms))
                found.append(torch.stack([loss, norm]))
                finish(Outcome(plan.parameters, loss, norm, gradients), before)
            return torch.stack(found, 1)

        with restored(plan), sentinel.raised():
            self._replay, self._results = record(run, device_of(graph))

    @property
    def _memory(self) -> list[Tensor]:
        parameters = list(self._plan.parameters.values())
        return [*self._graph.closed_over, *self._plan.buffers, *self._update.memory(parameters)]

    @property
    def is_current(self) -> bool:
        """Whether all that is read and written still lies where it did."""
        return addresses(self._memory) == self._addresses

    def __call__(self, calls: Sequence[Call]) -> Tensor:
        """Takes the steps.

        Returns:
            Their losses and the norms of their gradients, with shape (2, k).
        """
        for room, tensors in zip(self._rooms, _by_argument(calls), strict=True):
            torch.stack(tensors, out=room)
        self._replay()
        return self._results.clone()


def _by_argument(calls: Sequence[Call]) -> list[tuple[Tensor, ...]]:
    """What each tensor argument is in every call."""
    return list(zip(*(call.tensors for call in calls), strict=True))

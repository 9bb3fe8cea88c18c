r"""Several steps as one CUDA graph: noise, passes, clipping and updates, launched all at once.

What a host does between two steps, a small step on a large GPU waits for. So a few steps can be
recorded one behind the other, on arguments that lie there for all of them; whether all was
finite, and the learning rates, are read on the device.
"""

__all__ = ["Replay", "can_be_replayed", "replay_of"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrovae.capture import CaptureError
from pyrovae.recording import addresses, device_of, record
from pyrovae.svi.backends import Recorded, restored
from pyrovae.svi.faithfulness import is_checked
from pyrovae.svi.passes import Call, Outcome
from pyrovae.svi.plans import Plan
from pyrovae.svi.sentinel import Sentinel
from pyrovae.svi.state import Copies, copies
from pyrovae.svi.updates import Update

# What becomes of a step once its pass is over, given what its buffers were before.
Finish = Callable[[Outcome, Copies], None]


def can_be_replayed(plan: Plan, calls: Sequence[Call], update: Update) -> bool:
    """Whether steps of a plan may be taken as one, none of them to be compared with Python."""
    return (
        isinstance(plan.run, Recorded)
        and all(call.kind == calls[0].kind for call in calls)
        and not any(is_checked(plan.taken + number + 1) for number in range(len(calls)))
        and update.can_be_frozen(list(plan.parameters.values()))
    )


def replay_of(
    plan: Plan, calls: Sequence[Call], update: Update, sentinel: Sentinel, finish: Finish
) -> "Replay | None":
    """What replays so many steps of a plan, recorded where it is not yet, or no longer valid.

    Returns:
        None where it was found before that they cannot be.

    Raises:
        CaptureError: As of a `Replay`.
    """
    count = len(calls)
    found = plan.replays.get(count)
    if count not in plan.replays or (found is not None and not found.is_current):
        plan.replays[count] = None
        plan.replays[count] = Replay(plan, calls, update, sentinel, finish)
    return plan.replays[count]


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
        update: Update,
        sentinel: Sentinel,
        finish: Finish,
    ) -> None:
        assert isinstance(plan.run, Recorded)
        graph = self._graph = plan.run.graph
        if not all(tensor.is_contiguous() for call in calls for tensor in call.tensors):
            raise CaptureError("the entries of an argument are in another order in memory.")
        # Not the plan itself, which this is a part of.
        self._buffers, self._parameters = plan.buffers, list(plan.parameters.values())
        self._update = update
        self._rooms = [torch.stack(tensors) for tensors in _by_argument(calls)]
        self._addresses = addresses(self._memory)
        self._settings = update.settings(self._parameters)

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
        updated = self._update.memory(self._parameters)
        return [*self._graph.closed_over, *self._buffers, *updated]

    @property
    def is_current(self) -> bool:
        """Whether all that is read and written lies where it did, and updates are the same."""
        settings = self._update.settings(self._parameters)
        return settings == self._settings and addresses(self._memory) == self._addresses

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

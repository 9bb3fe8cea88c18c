r"""Ranks: the processes that train one program together, as `torchrun` starts them.

Each takes its share of every batch. What they find is summed, so that all of them make the same
update; the first alone writes. With one process nothing here does anything.
"""

__all__ = ["ALONE", "Ranks", "joined", "launch", "restarts"]

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from pyrovae.errors import RankError
from pyrovae.interrupts import SIGNALS

# What `torchrun` tells a process of the others.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# For how long a process that is told to end waits for the others: `torchrun` kills it after 30.
GRACE_SECONDS = 20.0
MOST_BYTES = 2000


@dataclass(eq=False)
class Ranks:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: The number of this one, from 0 on.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1
    _waits_since: float | None = field(default=None, init=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def key(self) -> tuple[int | str, ...]:
        """What keys this process's own noise, behind what the noise is for."""
        return () if self.size == 1 else ("rank", self.rank)

    @property
    def said(self) -> str:
        """Which process this is, where there are several."""
        return "" if self.size == 1 else f", process {self.rank + 1} of {self.size}"

    def rows(self, rows: Tensor) -> Tensor:
        """This process's share of the rows of a batch, which may be none.

        Example:
            >>> Ranks(1, 3).rows(torch.arange(5))
            tensor([1, 4])
        """
        return rows[self.rank :: self.size]

    def share(self, count: int) -> float:
        """What part of so many rows this process's share is.

        Example:
            >>> [Ranks(rank, 3).share(5) for rank in range(3)]
            [0.4, 0.4, 0.2]
        """
        return len(range(self.rank, count, self.size)) / count

    # ── What all of them do together, and none may leave out ──

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in its place."""
        if self.size > 1:
            self._wait_for(dist.all_reduce(tensor, async_op=True))
        return tensor

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the values that the first has, in their places."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    values = self._sent_by(0, tensor)
                    if not self.is_first:
                        tensor.copy_(values)

    def of_each(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """The values that the tensors have in every process, by its number."""
        if self.size == 1:
            return [list(tensors)]
        return [[self._sent_by(rank, t) for t in tensors] for rank in range(self.size)]

    def _sent_by(self, rank: int, tensor: Tensor) -> Tensor:
        """The values that a tensor has in one of the processes."""
        # As bytes in their order: gloo takes neither every type nor every layout.
        values = tensor.detach().clone(memory_format=torch.contiguous_format)
        sent = values.reshape(-1).view(torch.uint8)
        self._wait_for(dist.broadcast(sent, src=rank, async_op=True))
        return values

    def text_of_first(self, text: str) -> str:
        """The text that the first process has, of up to 2,000 bytes."""
        padded = text.encode()[:MOST_BYTES].ljust(MOST_BYTES, b"\0")
        found = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
        self.copy_from_first([found])
        return bytes(found.tolist()).rstrip(b"\0").decode(errors="ignore")

    def wait(self) -> None:
        """Waits until every process has come here."""
        if self.size > 1:
            self._wait_for(dist.barrier(async_op=True))

    def ask(self, *values: int) -> Callable[[], tuple[int, ...]]:
        """Asks all processes for numbers; what it returns waits for the largest of each."""
        if self.size == 1:
            return lambda: values
        largest = torch.tensor(values)
        asked = dist.all_reduce(largest, op=dist.ReduceOp.MAX, async_op=True)

        def answer() -> tuple[int, ...]:
            self._wait_for(asked)
            return tuple(largest.tolist())

        return answer

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Runs a block in the first process, and then in the others: what it makes, they find."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def _wait_for(self, work: "dist.Work | None") -> None:
        """Waits for the others.

        Raises:
            RankError: If one of them is gone.
        """
        assert work is not None
        self._waits_since = time.monotonic()
        try:
            work.wait()
        except RuntimeError as error:
            raise RankError(
                f"Another process of the training is gone{self.said}.",
                "What that one printed says why; go on from the last checkpoint.",
            ) from error
        finally:
            self._waits_since = None

    @contextmanager
    def never_stuck(self) -> Iterator[None]:
        """Ends the process some seconds after a signal that finds it waiting for the others.

        It waits outside of Python, where no handler of a signal is called, and one of the
        others may not answer any more.
        """
        if self.size == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            # To close it is not enough: workers that load data were forked with a copy of it.
            writer.shutdown(socket.SHUT_WR)
            writer.close()
            watch.join()
            reader.close()

    def _watch(self, signals: socket.socket) -> None:
        """Ends the process where a wait has gone on for too long after a signal."""
        told, told_at = None, 0.0
        signals.settimeout(0.2)
        while True:
            with suppress(TimeoutError):
                received = signals.recv(1)
                if not received:
                    return
                if received[0] in SIGNALS and told is None:
                    told, told_at = received[0], time.monotonic()
            since = self._waits_since
            if told is not None and since is not None:
                if time.monotonic() - max(told_at, since) > GRACE_SECONDS:
                    os._exit(128 + told)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that this one was started with, or that its group has been joined with.

    Raises:
        RankError: If they cannot be reached.
    """
    if not dist.is_available():
        yield ALONE
    elif dist.is_initialized():
        with _watched() as ranks:
            yield ranks
    elif all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1:
        try:
            _meet()
        except (RuntimeError, ValueError) as error:
            raise RankError(
                f"The other processes of the training cannot be reached ({error}).",
                "Start all of them by torchrun.",
            ) from error
        try:
            with _watched() as ranks:
                yield ranks
        finally:
            dist.destroy_process_group()
    else:
        yield ALONE


# How often the processes have met.
_meetings = itertools.count()


def _meet() -> None:
    """Makes a group of the processes, under names that no group before it had.

    `torchrun` keeps what they wrote to find each other, which of an earlier group leads nowhere.
    """
    store, rank, size = _meeting_place()
    name = f"pyrovae {restarts()} {next(_meetings)}"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(name, store),  # pyright: ignore[reportPrivateImportUsage]
        rank=rank,
        world_size=size,
    )


@cache
def _meeting_place() -> tuple[Any, int, int]:
    """A store that all processes reach, and which of how many this one is."""
    return next(iter(rendezvous("env://")))


@contextmanager
def _watched() -> Iterator[Ranks]:
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    with ranks.never_stuck():
        yield ranks


def launch() -> str | None:
    """What tells a start by `torchrun` from any other: the same after it has started anew."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name is None else f"{name}-{os.getppid()}"


def restarts() -> int:
    """How often `torchrun` has started the processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))

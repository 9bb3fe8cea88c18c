"""Stages: samples of the same noise, taken as training goes on, so that one sees them form."""

__all__ = ["Stages", "samples"]

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pyrovae import generation
from pyrovae.data import Examples
from pyrovae.programs import Program
from pyrovae.run_folder import STAGES, write

# How many samples a stage has, and how many of their values at most, unless one has more.
SAMPLES, VALUES = 8, 2**20
# What part of a training's time they may take: the samples of some programs are slow.
SHARE = 0.05


def samples(program: Program, examples: Examples) -> Tensor:
    """Samples of a program as it is now, (N, x) in the data's own units."""
    count = max(1, min(SAMPLES, VALUES // math.prod(examples.x_shape)))
    found = generation.sample(program, examples.head(count), count)

    return examples.preprocessing.invert(found.x).cpu().contiguous()


@dataclass
class Stages:
    """The samples of a run in training, at ever rarer epochs.

    All of them are of one noise, so that where the prior is fixed they are of the same latents.
    They change nothing in the training, whose noise is keyed by its steps.

    Attributes:
        path: The folder of the run that keeps them, or None to take none.
        found: The samples by epoch, (N, x) in the data's own units.
        seconds: What the last stage took.
        taken_at: When that was.
    """

    path: Path | None
    found: dict[int, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    taken_at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, path: Path | None, epochs: int | None = None) -> "Stages":
        """Those that a run has kept, up to an epoch; none where they are damaged."""
        try:
            content = load((path / STAGES).read_bytes()) if path is not None else {}
            found = {int(epoch): x for epoch, x in content.items()}
        except (OSError, SafetensorError, ValueError):
            found = {}
        last = max(found, default=0) if epochs is None else epochs
        return cls(path, {epoch: found[epoch] for epoch in sorted(found) if epoch <= last})

    def is_due(self, epoch: int) -> bool:
        """Whether an epoch is one of 1, 2, 3, 4, 6, 8, 12, 16, 24 ..., and there is time.

        Example:
            >>> [epoch for epoch in range(1, 20) if Stages(Path()).is_due(epoch)]
            [1, 2, 3, 4, 6, 8, 12, 16]
        """
        due = any(epoch == first * (epoch & -epoch) for first in (1, 3))
        return due and self.seconds <= SHARE * (time.monotonic() - self.taken_at)

    def take(self, epoch: int, program: Program, examples: Examples) -> None:
        """Takes the samples of an epoch, if it is its turn.

        Raises:
            CheckpointError: If they cannot be written.
        """
        if self.path is None or not self.is_due(epoch):
            return
        start = time.monotonic()
        try:
            self.found[epoch] = samples(program, examples)
        except Exception:  # what cannot be sampled can be trained: it is the report that says so
            self.path = None
            return
        write(self.path / STAGES, save({str(e): x for e, x in self.found.items()}))
        self.taken_at = time.monotonic()
        self.seconds = self.taken_at - start

    def with_last(self, epoch: int, x: Tensor) -> tuple[list[int], Tensor]:
        """The epochs and the samples (E, N, x) of all stages before one, and its own.

        Example:
            >>> stages = Stages(None, {1: torch.zeros(3, 4), 2: torch.zeros(3, 4)})
            >>> epochs, samples = stages.with_last(2, torch.ones(3, 4))
            >>> epochs, samples.shape
            ([1, 2], torch.Size([2, 3, 4]))
        """
        before = {e: s for e, s in self.found.items() if e < epoch and s.shape == x.shape}
        return [*before, epoch], torch.stack([*before.values(), x])

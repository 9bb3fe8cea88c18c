"""Going on with a run, or from one: what it was, and what of it fits what is asked for now."""

__all__ = ["Earlier", "Matched", "place_of", "start_from"]

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyrovae import checkpoint
from pyrovae.checkpoint import Checkpoint
from pyrovae.errors import InputError, shorten
from pyrovae.programs import Program, as_module
from pyrovae.run_folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    check_identity,
    compared,
    differences,
    find,
    is_new,
    read_config,
    read_lines,
)
from pyrovae.weights import make_parameters

# What it was begun by and with, whatever goes on with it.
KEPT = ("command", "folder", "files", "init_from", "engine")


def place_of(run_dir: str | os.PathLike[str] | None, *, resume: bool) -> Path | None:
    """The path of a run's folder, new or to be gone on with; it is not made here.

    Raises:
        InputError: If something else is there, or nothing is said of where.
    """
    if run_dir is None:
        if resume:
            raise InputError("There is no folder to resume from.", "Give run_dir.")
        return None
    if not isinstance(run_dir, str | os.PathLike):
        raise InputError(f"run_dir is {shorten(run_dir)}.", "Give the path of a folder.")
    path = Path(run_dir)
    if is_new(path) or (resume and (path / CONFIG).is_file()):
        return path
    raise InputError(
        f"{path} exists already.",
        "Choose another --run-dir, remove it, or go on with the run in it: pyrovae resume.",
    )


@dataclass(frozen=True)
class Earlier:
    """A run as it was left.

    Attributes:
        config: What it was told.
        checkpoint: The newest of its checkpoints that is whole.
        metrics: One record for each epoch.
        marks: What tells its checkpoints from later ones.
    """

    config: dict[str, Any]
    checkpoint: Checkpoint
    metrics: list[dict[str, Any]]
    marks: list[tuple[str, int, int]]

    @classmethod
    def at(cls, path: Path) -> "Earlier | None":
        """The run in a folder; None where it has not come to save itself.

        Raises:
            InputError: If its configuration is another than the one that was trained.
            CheckpointError: If every checkpoint is damaged.
        """
        if not (path / CONFIG).is_file() or not checkpoint.exists(path / CHECKPOINTS):
            return None
        marks = checkpoint.marks(path / CHECKPOINTS)
        config, newest = read_config(path), checkpoint.load_newest(path / CHECKPOINTS)
        check_identity(path, config, newest.state)
        return cls(config, newest, read_lines(path / METRICS), marks)

    @staticmethod
    def check_unchanged(path: Path | None, before: "Earlier | None") -> None:
        """Refuses a run that was trained on between being read and being held.

        Raises:
            InputError: If it was.
        """
        now = [] if path is None else checkpoint.marks(path / CHECKPOINTS)
        if now != ([] if before is None else before.marks):
            raise InputError(
                f"Another process has trained {path} in the meantime.", "Start again."
            )

    @property
    def epochs(self) -> int:
        """How many epochs it has taken."""
        return self.checkpoint.state.get("epoch", 0)

    def check_goes_on(self, epochs: int) -> None:
        """Refuses a run that has nothing left to do.

        Raises:
            InputError: If it has taken so many epochs, or has stopped before them.
        """
        state = self.checkpoint.state
        if not state.get("finished"):
            return
        if state["stopped"]:
            raise InputError(
                f"The run has stopped early, after {self.epochs} epochs.",
                "Train another one from its weights: --init-from.",
            )
        if self.epochs >= epochs:
            raise InputError(
                f"The run is over: it has taken {self.epochs} epochs.",
                "Give more of them, --epochs, or see it: pyrovae evaluate, pyrovae report.",
            )

    def merged(self, told: dict[str, Any]) -> dict[str, Any]:
        """What the run is told now, as far as it may change.

        Raises:
            InputError: If it is another run, naming what differs; or if it has already taken
                more epochs than it is to take, or ran on other threads or another torch.
        """
        if found := differences(_told(self.config), _told(told)):
            raise InputError(
                f"The run cannot be resumed with another configuration: {'; '.join(found)}.",
                "Give what it was trained with, or train another run.",
            )
        before, now = self.config.get("processes", 1), told.get("processes", 1)
        if before != now:
            warnings.warn(
                f"The run was trained on {before} processes and goes on on {now}: in the same "
                "order, by batches of the same size, but not to the same bits.",
                stacklevel=3,
            )
        engine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        used = self.config.get("engine")
        if used and (found := differences(used, engine)):
            raise InputError(
                f"The run would not go on to the same bits: {'; '.join(found)}.",
                "Resume it with what it was trained with: see its environment.json.",
            )
        epochs = told["training"]["epochs"]
        if epochs < self.epochs:
            raise InputError(
                f"The run has taken {self.epochs} epochs, and is to take {epochs}.",
                "Give as many epochs, or more.",
            )
        kept = {key: self.config[key] for key in KEPT if key in self.config}
        return {**told, **kept}


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """What says which run it is, with an option that is left out where it says nothing new."""
    found = compared(config)
    return {**found, "training": {"steps_per_replay": 1, **found["training"]}}


class Matched(NamedTuple):
    """What became of a program's tensors, by their names.

    Attributes:
        taken: Those that the run has, of the same shape.
        left: Those that are as they were.
    """

    taken: list[str]
    left: list[str]


def start_from(program: Program, run: str | os.PathLike[str]) -> Matched:
    """Gives a program the weights of a run where names and shapes match.

    So another prior is put on a trained decoder, or a program is trained on with other data:
    give the program to `fit` afterwards.

    Args:
        program: The program, changed in place.
        run: The run directory, its name under `runs`, or `latest`.

    Raises:
        InputError: If it is no run, nothing of it matches, or parameters of the program are made
            by its first run, and it cannot be run on zeros of the shape of that run's data.
        CheckpointError: If no checkpoint is whole.
    """
    path = find(run)
    config = read_config(path)
    weights = checkpoint.load_newest(path / CHECKPOINTS).weights
    module = as_module(program)
    make_parameters(program, tuple(config["data"]["x_shape"]))
    own = module.state_dict(keep_vars=True)
    taken = [k for k, v in own.items() if k in weights and weights[k].shape == v.shape]
    if not taken:
        raise InputError(
            f"No weight of {path} has the name and the shape of one of the program.",
            "Start from a run of a program with parts of the same names and sizes.",
        )
    module.load_state_dict({k: weights[k] for k in taken}, strict=False)
    # What a module shares with another goes by a name of each: a VampPrior's encoder, say.
    given = {id(own[k]) for k in taken}
    return Matched(taken, [k for k, v in own.items() if id(v) not in given])

"""TensorBoard: the numbers, samples and graph of a run in training, in the files that it reads."""

__all__ = ["TensorBoard"]

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
from PIL import Image

from pyrovae.errors import InputError
from pyrovae.extras import require
from pyrovae.handlers import fill_improper
from pyrovae.plots import png
from pyrovae.programs import evaluating, labels
from pyrovae.runs import Run

if TYPE_CHECKING:
    from graphviz import Digraph
    from torch.utils.tensorboard import SummaryWriter

# Where in a run's folder the files are.
FOLDER = "tensorboard"
# The records of an epoch that are no curves.
TIMES = frozenset({"epoch", "step", "seconds"})


class TensorBoard:
    """Writes what TensorBoard shows of a run: `fit(..., on_epoch=TensorBoard())`.

    At each step number that ends an epoch there are the epoch's numbers, in nats per example, and
    samples of one noise, so that one sees them form; and once the graphs of model and guide, as
    `pyro.render_model` draws them (as text where Graphviz's program `dot` is not installed) and
    the run's configuration. A run that is resumed takes back what was written after its
    checkpoint.

    Args:
        folder: Where to write; `tensorboard` in the run's folder if None.
        samples: How many samples to show, 0 for none.

    Raises:
        InputError: If tensorboard is not installed, `samples` is negative or, at the first epoch,
            neither a folder nor a run's folder is there.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, samples: int = 16) -> None:
        if samples < 0:
            raise InputError(f"samples is {samples}.", "Give 0 or more.")
        self.folder = folder
        self.samples = samples
        self._make = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        require("graphviz", "tensorboard")
        self._writer: SummaryWriter | None = None

    def __call__(self, run: Run) -> None:
        """Writes what the last epoch of a run has brought."""
        record = run.metrics[-1]
        step = record["step"]
        if self._writer is None:
            self._writer = self._begin(run, step)
        for name in record.keys() - TIMES:
            self._writer.add_scalar(name, record[name], step)
        if self.samples and run.structure.draws_examples:
            picture = png(run.sample(self.samples).figure)
            self._writer.add_image("samples", _pixels(picture), step, dataformats="HWC")
        self._writer.flush()

    def _begin(self, run: Run, step: int) -> "SummaryWriter":
        """The files of a run, with what is said of it once."""
        if self.folder is None and run.path is None:
            raise InputError(
                "TensorBoard has no folder to write to.", "Give it one, or give fit a run_dir."
            )
        writer = self._make(str(self.folder or Path(str(run.path), FOLDER)), purge_step=step)
        for name in ("model", "guide"):
            _add_graph(writer, name, _graph(run, name))
        writer.add_text("configuration", _listed(run.config))
        return writer


def _graph(run: Run, name: str) -> "Digraph":
    """The graph of a model or guide, its latents and data under their plate."""
    program, batch = getattr(run.program, name), run.measured.head(2)
    with evaluating(run.program), fill_improper(batch.x):
        return pyro.render_model(
            program, (batch.x,), labels(program, batch), render_distributions=True
        )


def _add_graph(writer: "SummaryWriter", name: str, graph: "Digraph") -> None:
    from graphviz import ExecutableNotFound

    try:
        picture = graph.pipe("png")
    except ExecutableNotFound:
        writer.add_text(name, f"```\n{graph.source}\n```")
        return
    writer.add_image(name, _pixels(picture), dataformats="HWC")


def _pixels(picture: bytes) -> np.ndarray:
    """An image (H, W, 3) of bytes."""
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


def _listed(tree: Any, depth: int = 0) -> str:
    """A tree of plain values as a list of Markdown."""
    indent = "  " * depth
    return "\n".join(
        f"{indent}- {key}:\n{_listed(value, depth + 1)}"
        if isinstance(value, dict)
        else f"{indent}- {key}: `{value}`"
        for key, value in tree.items()
    )

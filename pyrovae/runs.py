"""Runs: a trained program with its data, its numbers and its pictures; in a folder or not."""

__all__ = ["WORDS", "Run", "columns_of"]

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import (
    encoding,
    evaluation,
    generation,
    hub,
    model_card,
    onnx,
    plots,
    pretrained,
    report,
    run_folder,
    stages,
)
from pyrovae.checks import as_number, whole
from pyrovae.data import (
    Batch,
    Examples,
    Preprocessing,
    load_examples,
)
from pyrovae.data.given import Given, Source
from pyrovae.data.tables import Column
from pyrovae.data.tables import from_config as from_columns
from pyrovae.encoding import Encoded
from pyrovae.errors import InputError
from pyrovae.evaluation import Evaluation
from pyrovae.generation import Generated
from pyrovae.inspection import inspect_program
from pyrovae.parts import from_config
from pyrovae.plots import Picture
from pyrovae.programs import Program, as_module, device_of, dtype_of
from pyrovae.run_folder import (
    EVALUATION,
    REPORT,
    read_json,
)
from pyrovae.stages import Stages
from pyrovae.structure import Structure
from pyrovae.supports import check_support

# How many examples a report looks at: enough for stable numbers and a full scatter plot.
REPORT_EXAMPLES = 1000
# Splits in the order in which they are measured, and the words for them.
WORDS = {"test": "test", "valid": "validation", "train": "training"}


@dataclass
class Run:
    """A trained program and everything that can be asked of it.

    Attributes:
        program: The trained program.
        splits: Its examples under train and, where they were given, valid and test.
        metrics: One record for each epoch.
        config: What the run was told, as plain data.
        environment: The versions and the hardware that trained it, and the date.
        path: The run directory, or None for a run that writes nothing.
        evaluation: What was measured last, of the run's own data.
        others: What the data are called that it is measured on, where they are not its own.
    """

    program: Program
    splits: Mapping[str, Examples] = field(repr=False)
    metrics: list[dict[str, Any]] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    environment: dict[str, str] = field(repr=False)
    path: Path | None = None
    evaluation: Evaluation | None = field(default=None, repr=False)
    others: str | None = None

    def on(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> "Run":
        """This run with other data to be measured and shown on, preprocessed as its own were.

        Args:
            source: The name of a data set, or the path of a file of arrays, of counts or of a
                table, or of a folder of images: its test set, or all of it where it has none. Or
                an array or a tensor, in the units of the run's own; or a `Dataset` of them, with
                labels for a program that takes some.
            data_dir: Where named sets lie.

        Raises:
            InputError: If they cannot be read, are of another shape, or have missing entries that
                the program does not take.
        """
        expected = tuple(self.config["data"]["x_shape"])
        examples = load_examples(
            source,
            self.preprocessing,
            data_dir=data_dir,
            missing=self.config["data"].get("missing", False),
            images=_images_of(expected, self.config["data"].get("images") or {}),
            columns=columns_of(self.config["data"]),
            sequences=len(expected) == 2,
        )
        if examples.x_shape != expected:
            raise InputError(
                f"The data {_called(source)!r} are of shape {examples.x_shape}, and those of the "
                f"run of shape {expected}.",
                "Give data of the run's own shape.",
            )
        examples = examples.to(device_of(self.program)).in_type(dtype_of(self.program))
        if examples.missing:
            check_support(self.program, examples.in_order(examples.block))
        splits = {**self.splits, "test": examples}
        others = _called(source)
        return replace(self, splits=splits, evaluation=None, path=None, others=others)

    # ── Numbers ──

    def evaluate(
        self,
        examples: Given | None = None,
        *,
        num_samples: int = 1000,
        limit: int | None = None,
        seed: int = 0,
    ) -> Evaluation:
        """Measures the program; see `pyrovae.evaluate`.

        Without examples it measures the test set, or the validation set where there is no test
        set, and keeps the numbers for the report (and as `evaluation.json` in the directory).
        """
        found = evaluation.evaluate(
            self.program,
            self.measured if examples is None else examples,
            num_samples=num_samples,
            limit=limit,
            seed=seed,
        )
        if examples is None:
            self.evaluation = found
            self.write(EVALUATION, json.dumps(found.summary(), indent=1) + "\n")
        return found

    @property
    def structure(self) -> Structure:
        """What one run of the program shows of it."""
        return inspect_program(self.program, self.measured.head(3))

    @property
    def measured_split(self) -> str:
        """The split that numbers and pictures are of: test, or else valid, or else train.

        Raises:
            InputError: If the data are not at hand.
        """
        found = next((split for split in WORDS if split in self.splits), None)
        if found is None:
            raise InputError(
                "The run's data are not at hand: they were arrays in Python, or not passed on.",
                "Give them again, pyrovae.load(run, data=...), or others, run.on(data).",
            )
        return found

    @property
    def measured(self) -> Examples:
        """The examples that numbers and pictures are of."""
        return self.splits[self.measured_split]

    @property
    def preprocessing(self) -> Preprocessing:
        """How the data become the program's x."""
        if self.splits:
            return next(iter(self.splits.values())).preprocessing
        return from_config(self.config["data"]["preprocessing"])

    def encode(self, split: str | None = None) -> Encoded:
        """The posterior means of every example of a split, in its order.

        Args:
            split: train, valid or test; that which numbers are of if None.

        Raises:
            InputError: If there is no such split, or it is data: those go into `run.on(data)`.
        """
        if not isinstance(split, str | None):
            raise InputError(
                f"A split is told by its name, and this is a {type(split).__name__}.",
                f"Take one of {', '.join(self.splits)}, or run.on(data).encode() for other data.",
            )
        examples = self.splits.get(split) if split else self.measured
        if examples is None:
            raise InputError(
                f"The run has no {split} set.", f"Take one of {', '.join(self.splits)}."
            )
        found = encoding.encode(self.program, examples.in_order(examples.block))
        return found._replace(names=examples.names)

    # ── Pictures, in the data's own units ──

    def sample(self, count: int = 16, *, draw: bool = False, seed: int = 0) -> Picture:
        """New examples from the prior; see `pyrovae.sample`."""
        count = _whole("count", count)
        template = self.measured.head(count) if self.splits else self._template
        found = generation.sample(self.program, template, count, draw=draw, seed=seed)
        laid_out = _in_rows(found, _columns(count))
        return self._picture(laid_out, f"Samples from the prior, {_shown(found)}")

    def reconstruct(self, count: int = 10) -> Picture:
        """The first test examples above their reconstructions."""
        count = _whole("count", count)
        batch = self.measured.head(count)
        found = generation.reconstruct(self.program, batch)
        both = found._replace(x=torch.stack([batch.x, found.x]))
        return self._picture(
            both,
            f"{WORDS[self.measured_split].capitalize()} examples above their reconstructions, "
            f"{_shown(found)}",
            rows=["original", "reconstruction"],
            labels={
                "shown": np.repeat(["original", "reconstruction"], len(found.x)),
                "example": np.tile(np.arange(len(found.x)), 2),
            },
        )

    def interpolate(self, start: int = 0, end: int = 1, *, steps: int = 10) -> Picture:
        """From one test example to another along a straight line in latent space."""
        steps = _whole("steps", steps)
        batch = self.measured.head(max(start, end, 0) + 1)
        found = generation.interpolate(
            self.program, _row(batch, start), _row(batch, end), steps=steps
        )
        return self._picture(found, f"From example {start} to example {end}, {_shown(found)}")

    def traverse(
        self, example: int = 0, *, site: str | None = None, dims: list[int] | None = None
    ) -> Picture:
        """Single latent dimensions moved from -2.5 to 2.5; without `dims` the most informative."""
        batch = _row(self.measured.head(max(example, 0) + 1), example)
        site = site or self._main_site
        dims = self._informative(site, 10) if dims is None else dims
        found = generation.traverse(self.program, batch, site=site, dims=dims)
        steps = found.x.shape[1]
        return self._picture(
            found,
            f"Latents {site} from -2.5 to 2.5, one a row, {_shown(found)}",
            rows=[f"{site}[{dim}]" for dim in dims],
            labels={
                "site": [site] * len(dims) * steps,
                "dimension": np.repeat(dims, steps),
                "value": np.tile(np.linspace(-2.5, 2.5, steps), len(dims)),
            },
        )

    def manifold(self, *, site: str | None = None, side: int = 20) -> Picture:
        """The decoder over a two-dimensional latent; see `pyrovae.manifold`."""
        found = generation.manifold(
            self.program, self._template, site=site or self._main_site, side=side
        )
        return self._picture(found, f"The plane of the two latents, {_shown(found)}")

    # ── The report ──

    def report(self) -> Path:
        """Writes `report.html` into the run directory and returns its path.

        Of a program without a bound on log p(x) it has no evaluation.

        Raises:
            InputError: If the run has no directory.
        """
        if self.path is None:
            raise InputError(
                "This run has no directory to write a report into.",
                "Give fit a run_dir, or show single pictures: run.sample(16).",
            )
        if self.evaluation is None and self.structure.has_bound:
            # Not kept as evaluation.json, which may hold the numbers of more samples.
            self.evaluation = evaluation.evaluate(
                self.program, self.measured, limit=REPORT_EXAMPLES
            )
        return report.write_report(
            self.path / REPORT,
            config=self.config,
            environment=self.environment,
            splits=self.splits,
            measured=WORDS[self.measured_split],
            metrics=self.metrics,
            evaluation=self.evaluation,
            pictures=self._pictures(),
        )

    # ── For others ──

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Writes a folder that `pyrovae.from_pretrained` makes this run of again, without data.

        It holds the configuration, the weights as safetensors, the user's own files that the
        program is made of, and a model card, `README.md`, with the numbers of the last
        evaluation. Of a table the configuration holds the names of columns and of categories;
        where files lie is left out.

        Raises:
            InputError: If the folder is there and not empty, the preprocessing cannot be
                described, or a file of the program has changed and there is no copy of it.
            CheckpointError: If it cannot be written.
        """
        config = {
            **pretrained.without_places(self.config),
            "environment": self.environment,
            "evaluation": self._numbers,
        }
        card = model_card.write_card(config, program=repr(as_module(self.program)))
        path = Path(folder).expanduser()
        return pretrained.write(path, self.program, config, card, run=self.path)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub: the extra `hub`.

        Args:
            repository: Its name there, `user/name`.
            private: Whether others cannot see it, if it is new.

        Returns:
            Its address.

        Raises:
            InputError: As `save_pretrained`; or if the library is missing, or the hub cannot be
                reached or refuses.
        """
        with TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / "pretrained")
            return hub.upload(folder, repository, private=private)

    def export_onnx(self, folder: str | os.PathLike[str]) -> Path:
        r"""Writes ONNX files of encoder and decoder, for any number of examples: the extra `onnx`.

        `encoder.onnx` maps x to the mean, and where there is one the scale, of $q(z \mid x)$;
        `decoder.onnx` maps z to the mean of $p(x \mid z)$. Both are of the program's x, which is
        the data after their preprocessing: `metadata.json` beside them says which.

        Raises:
            InputError: If the libraries are missing, or the program cannot be exported.
            CheckpointError: If they cannot be written.
        """
        about = {
            "program": self.config["program"].get("part", type(self.program).__name__),
            "environment": self.environment,
            "columns": self.config["data"].get("columns"),
        }
        if self.splits:
            x = self.measured.head(3).x
        else:
            x = generation.sample(self.program, self._template, 3, draw=True).x
        return onnx.export(
            self.program,
            x,
            Path(folder).expanduser(),
            preprocessing=self.config["data"]["preprocessing"],
            about=about,
        )

    # ── What the methods share ──

    @property
    def _numbers(self) -> dict[str, Any] | None:
        """The last evaluation, in plain numbers, and what it is of."""
        if self.evaluation is not None:
            found = self.evaluation.summary()
        elif self.path is not None:
            found = read_json(self.path / EVALUATION)
        else:
            return self.config.get("evaluation")
        split = next((WORDS[split] for split in WORDS if split in self.splits), None)
        of = {"split": split} if self.others is None else {"of": Path(self.others).name}
        return {**found, **of} if found else None

    @property
    def _template(self) -> Batch:
        """One row that stands for the shapes of the data."""
        if self.splits:
            return self.measured.head(1)
        shape, like = (1, *self.config["data"]["x_shape"]), self.program
        return Batch(torch.zeros(shape, dtype=dtype_of(like), device=device_of(like)))

    @property
    def _main_site(self) -> str:
        means = encoding.posterior_means(self.program, self.measured.head(1))
        return "z" if "z" in means else next(iter(means), "z")

    def _informative(self, site: str, count: int) -> list[int]:
        """The dimensions whose posterior means vary most over examples."""
        means = encoding.posterior_means(self.program, self.measured.head(500))
        return (
            encoding.latent(means, site)
            .var(0, correction=0)
            .argsort(descending=True)[:count]
            .tolist()
        )

    def _pictures(self) -> dict[str, Picture]:
        """What a report shows."""
        if self.structure.observes_part:
            return {}
        pictures = {"Reconstructions": self.reconstruct()}
        improper = self.structure.improper
        if not improper:
            pictures["Samples"] = self.sample(60)
            pictures["Samples as training went"] = self._forming()
        means = encoding.posterior_means(self.program, self.measured.head(1))
        main = means.get(self._main_site)
        if main is not None and main.dim() == 2:
            pictures["Latent traversals"] = self.traverse()
            # The plane is laid out by the prior.
            if main.shape[-1] == 2 and not improper:
                pictures["Latent plane"] = self.manifold()
        return pictures

    def _forming(self) -> Picture:
        """Samples of one noise at several epochs, the last with the weights as they are."""
        examples = self.splits.get("train", self.measured)
        epoch = self.config.get("best_epoch", len(self.metrics))
        epochs, x = Stages.of(self.path).with_last(epoch, stages.samples(self.program, examples))
        figure = plots.grid(_drawable(x.transpose(0, 1)), columns=[str(e) for e in epochs])
        return Picture(x, figure, "Samples of the same noise, after so many epochs")

    def _picture(
        self,
        found: Generated,
        caption: str,
        *,
        rows: list[str] | None = None,
        labels: Mapping[str, "Sequence[Any] | np.ndarray"] | None = None,
    ) -> Picture:
        x = self.preprocessing.invert(found.x).cpu()
        figure = plots.grid(_drawable(x), rows=rows)
        return Picture(x, figure, caption, columns_of(self.config["data"]), labels)

    def forget(self) -> None:
        """Takes away what was measured of weights that are about to change.

        Raises:
            CheckpointError: If it cannot be taken away.
        """
        self.evaluation = None
        if self.path is not None:
            run_folder.remove(self.path / EVALUATION)

    def write(self, name: str, text: str, *, append: bool = False) -> None:
        """Writes a file of the run's directory, if it has one.

        Raises:
            CheckpointError: If it cannot be written.
        """
        if self.path is not None:
            run_folder.write(self.path / name, text, append=append)


def _called(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else "array"


def columns_of(config: Mapping[str, Any]) -> tuple[Column, ...] | None:
    """The columns of a run's table, from what is recorded of its data."""
    return from_columns(config["columns"]) if config.get("columns") else None


def _images_of(shape: tuple[int, ...], own: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be made of other images, so that they are of the shape of a run's own."""
    if len(shape) != 3:
        return {}
    return {**own, "size": shape[1:], "grey": shape[0] == 1}


# ── Pictures of batches ──────────────────────────────────────────────────────────────────────


def _row(batch: Batch, index: int) -> Batch:
    """One example of a batch, as a batch.

    Raises:
        InputError: If there is no such example.
    """
    if not 0 <= index < len(batch.x):
        raise InputError(
            f"There is no example {index}.",
            "Take an index from 0 to below the number of examples.",
        )
    rows = slice(index, index + 1)
    return Batch(batch.x[rows], None if batch.y is None else batch.y[rows])


def _whole(name: str, number: Any) -> int:
    number = as_number(number)
    if not isinstance(number, int | float):
        raise InputError(
            f"The argument {name} is a {type(number).__name__}.",
            "Give a whole number; other data are shown by run.on(data).",
        )
    return whole(name, number)


def _drawable(x: Tensor) -> Tensor:
    """A grid (R, C, x) as images of 1, 3 or 4 channels, or else as vectors."""
    event = x.shape[2:]
    if len(event) == 1 or (len(event) == 3 and event[0] in (1, 3, 4)):
        return x
    return x.unsqueeze(2) if len(event) in (0, 2) else x.flatten(2)


def _columns(count: int) -> int:
    """The widest row, up to 12, that leaves no blank; else rows of 10."""
    even = max(columns for columns in range(1, 13) if count % columns == 0)
    return even if even > 4 else min(count, 10)


def _in_rows(found: Generated, columns: int) -> Generated:
    """Examples laid out in rows; a last row that is short is filled up with blanks."""
    count = -(-len(found.x) // columns) * columns
    # Whole numbers have no NaN, which a blank is.
    x = found.x.float()
    blanks = x.new_full((count - len(x), *x.shape[1:]), math.nan)
    return found._replace(x=torch.cat([x, blanks]).unflatten(0, (-1, columns)))


def _shown(found: Generated) -> str:
    return "one draw of x each" if found.shown_by == "draw" else f"shown by the {found.shown_by}"

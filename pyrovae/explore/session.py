"""A session: what the page may ask of a run, in plain values that are JSON.

Latents go to the page and come back as `{site: [numbers]}`, so that nothing has to be remembered
of where its sliders are. Inputs are kept, the last few, to be measured after they are shown.
"""

__all__ = ["Session"]

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.data import Batch, Examples
from pyrovae.encoding import posterior_means, shared_latents
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.explore.inputs import Inputs
from pyrovae.explore.latents import Latent, look_at
from pyrovae.generation import decode
from pyrovae.handlers import unconditioned
from pyrovae.inspection import inspect_program
from pyrovae.programs import evaluating, examples_first, labels, sites, takes_labels
from pyrovae.randomness import seeded
from pyrovae.runs import WORDS, Run
from pyrovae.supports import check_support

# The importance samples of one input; fewer where each is a run of the program in Python.
SAMPLES, SLOW_SAMPLES = 500, 50
# How many inputs are kept, and how many pictures a page may ask for at once.
KEPT, AT_ONCE = 32, 64


class Session:
    """A run, looked at through its latents.

    Args:
        run: A run with its data.

    Raises:
        InputError: If its data are not at hand, it has no latents, or it draws parts of examples.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.program = run.program
        self.inputs = Inputs(run)
        self.structure = inspect_program(run.program, run.measured.head(3))
        if not self.structure.latents:
            raise InputError(
                "The program has no latent inside the plate 'data' that could be moved.",
                "Explore a run of a program that has one.",
            )
        if self.structure.observes_part:
            raise InputError(
                "The program's site 'x' is but a part of an example, so there is nothing to show.",
                "Explore a run of a program that draws whole examples.",
            )
        self.latents = look_at(run.program, run.measured, self.structure)
        template = run.measured.head(1)
        means = posterior_means(run.program, template)
        self._dtypes = {name: means[name].dtype for name in self.latents}
        self._kept: OrderedDict[str, Batch] = OrderedDict()
        self._number = 0
        self._template = template

    # ── What there is ──

    def describe(self) -> dict[str, Any]:
        """The run, its latents, and what can be done with it."""
        config = self.run.config
        program = config["program"]
        placing = self.inputs.placing
        return {
            "name": str(config["data"]["name"]),
            "run": "" if self.run.path is None else self.run.path.name,
            "program": program.get("part") or program.get("function") or program.get("class"),
            "preprocessing": self.inputs.preprocessing.summary,
            "words": WORDS[self.run.measured_split],
            "examples": len(self.run.measured),
            "shape": self.inputs.shape,
            "size": self._template.x[0].numel(),
            "columns": self.inputs.describe_columns(),
            "missing": self.run.measured.missing,
            "scale": [self.inputs.low, self.inputs.high],
            "paper": self.inputs.paper,
            "placed": placing is not None,
            "labels": self._labels,
            "draws": self.structure.draws_examples,
            "measured": self._why_not_measured,
            "sites": [self._describe_site(latent) for latent in self.latents.values()],
        }

    @property
    def _labels(self) -> list[int] | None:
        """The labels to choose from, where the program takes any."""
        y = self.run.measured.y
        asks = takes_labels(self.program.model) or takes_labels(self.program.guide)
        return sorted(set(y.tolist())) if asks and y is not None else None

    @property
    def _why_not_measured(self) -> str | None:
        """Why there are no numbers of an input, or None."""
        if not self.structure.has_bound:
            return "this program leaves no bound on log p(x)"
        return None

    def _describe_site(self, latent: Latent) -> dict[str, Any]:
        return {
            "name": latent.name,
            "order": latent.order,
            "active": latent.active,
            "kl": None if latent.kl is None else latent.kl.tolist(),
            "low": latent.low.tolist(),
            "high": latent.high.tolist(),
            "start": latent.means.mean(0).tolist(),
            "direct": latent.direct,
        }

    def thumbnails(self, start: Any, count: Any) -> dict[str, Any]:
        """Some examples in their order, as pictures.

        Raises:
            InputError: If there are none.
        """
        size = len(self.run.measured)
        start, count = _whole(start, 0, size - 1), _whole(count, 1, AT_ONCE)
        rows = torch.arange(start, min(start + count, size))
        (batch,) = self.run.measured.chosen(rows, len(rows))
        return {"start": start, "pictures": [self.inputs.shown(x) for x in batch.x]}

    def plane(self, site: Any, dims: Any) -> dict[str, Any]:
        """The posterior means of the examples in two dimensions of a site, with their labels.

        Raises:
            InputError: If there is no such site or dimension.
        """
        latent = self._site(site)
        most = latent.means.shape[1] - 1
        if not isinstance(dims, list) or len(dims) != 2:
            raise InputError("A plane has two dimensions.", "Name two.")
        points = latent.means[:, [_whole(dim, 0, most) for dim in dims]]
        y = self.run.measured.y
        return {
            "points": points.tolist(),
            "labels": None if y is None else y[: len(points)].tolist(),
        }

    # ── From x to z ──

    def encode_example(self, index: Any) -> dict[str, Any]:
        """One of the examples; see `encode`."""
        return self.encode(self.inputs.example(index))

    def encode_file(self, content: bytes, label: Any = None) -> dict[str, Any]:
        """An image file; see `encode`, and `Inputs.file`."""
        return self.encode(self._labelled(self.inputs.file(content), label))

    def encode_drawing(self, content: bytes, label: Any = None) -> dict[str, Any]:
        """A drawing; see `encode`, and `Inputs.drawing`."""
        return self.encode(self._labelled(self.inputs.drawing(content), label))

    def encode_numbers(self, values: Any, label: Any = None) -> dict[str, Any]:
        """One observation as numbers; see `encode`, and `Inputs.numbers`."""
        return self.encode(self._labelled(self.inputs.numbers(values), label))

    def encode(self, batch: Batch) -> dict[str, Any]:
        """The posterior means of one input, the input as the program sees it, and its decoding.

        Raises:
            InputError: If it lies outside the support of the likelihood.
        """
        check_support(self.program, [batch])
        means = posterior_means(self.program, batch)
        latents = {name: means[name].flatten(1)[0].tolist() for name in self.latents}
        return {
            "input": self._keep(batch),
            "shown": self.inputs.shown(batch.x[0]),
            "latents": latents,
            "label": None if batch.y is None else int(batch.y[0]),
            **self.decode(latents, None if batch.y is None else int(batch.y[0])),
        }

    def measure(self, name: Any) -> dict[str, Any]:
        """The numbers of an input that was encoded, in nats.

        Raises:
            InputError: If it is no longer kept, or there is no bound on log p(x).
        """
        if not isinstance(name, str) or name not in self._kept:
            raise InputError("This input is no longer kept.", "Give it again.")
        samples = SAMPLES if self.structure.vectorizes else SLOW_SAMPLES
        examples = Examples(*self._kept[name], missing=self.run.measured.missing)
        found = evaluate(self.program, examples, num_samples=samples)
        numbers = {
            "elbo": found.elbo.item(),
            "log_likelihood": found.log_likelihood.item(),
            "kl": found.kl.item(),
            "log_evidence": found.log_evidence.item(),
            "error": found.log_evidence_error.item(),
        }
        return {
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "trusted": found.pareto_k.item() <= 0.7,
            "samples": samples,
        }

    # ── From z to x ──

    def decode(self, latents: Any, label: Any = None) -> dict[str, Any]:
        """The mean of the likelihood at given latents; those left out are drawn from the model.

        Raises:
            InputError: If there is no such site, or it has another number of dimensions.
        """
        (picture,), shown_by = self._decode(self._read(latents), label)
        return {"picture": picture, "by": shown_by}

    def interpolate(self, start: Any, end: Any, steps: Any, label: Any = None) -> dict[str, Any]:
        """A straight line between two points in latent space, its ends included.

        Raises:
            InputError: If a point is none, or there are too many steps.
        """
        first, last = self._read(start), self._read(end)
        if first.keys() != last.keys():
            raise InputError("The two points are not of the same latents.", "Give both whole.")
        shares = torch.linspace(0, 1, _whole(steps, 2, AT_ONCE))[:, None]
        line = {name: torch.lerp(first[name], last[name], shares) for name in first}
        pictures, shown_by = self._decode(line, label)
        return {"pictures": pictures, "by": shown_by}

    def draw(self, count: Any, seed: Any, label: Any = None) -> dict[str, Any]:
        """Latents from the prior, each with the mean of its likelihood.

        Raises:
            InputError: If the prior is improper, or there are too many.
        """
        count, seed = _whole(count, 1, AT_ONCE), _whole(seed, 0, 2**31)
        if self.structure.improper:
            raise InputError(
                f"The latent {self.structure.improper[0]!r} cannot be drawn: its prior is "
                "improper.",
                "Start from an example.",
            )
        rows = self._rows(count, label)
        with evaluating(self.program), seeded(seed, "sample", device=rows.x.device):
            shared = shared_latents(self.program, rows)
            model = poutine.condition(unconditioned(self.program.model), data=shared)
            trace = poutine.trace(model).get_trace(rows.x, **labels(self.program.model, rows))
        drawn = sites(trace, observed=False)
        latents = {
            name: examples_first(drawn[name]["value"], drawn[name]).flatten(1).cpu().float()
            for name in self.latents
        }
        pictures, shown_by = self._decode(latents, label)
        return {
            "pictures": pictures,
            "by": shown_by,
            "latents": [{n: v[row].tolist() for n, v in latents.items()} for row in range(count)],
        }

    # ── What they share ──

    def _decode(self, latents: Mapping[str, Tensor], label: Any) -> tuple[list[Any], str]:
        """Pictures of latents (N, D), laid out in a row for each example."""
        rows = self._rows(len(next(iter(latents.values()))), label)
        whole = {name: self._laid_out(name, value) for name, value in latents.items()}
        found = decode(self.program, whole, rows)
        return [self.inputs.shown(x) for x in found.x], found.shown_by

    def _laid_out(self, name: str, values: Tensor) -> Tensor:
        """Rows of numbers as a site has them."""
        latent, dtype = self.latents[name], self._dtypes[name]
        values = values.unflatten(1, latent.shape) if latent.shape else values[:, 0]
        values = values if dtype.is_floating_point else values.round()
        return values.to(self._template.x.device, dtype)

    def _read(self, latents: Any) -> dict[str, Tensor]:
        """Latents (1, D) of each site from what a page sent."""
        if not isinstance(latents, dict) or not latents:
            raise InputError("There are no latents.", "Give {site: [numbers]}.")
        found = {}
        for name, values in latents.items():
            size = self._site(name).means.shape[1]
            if not isinstance(values, list) or len(values) != size:
                raise InputError(f"The site {name!r} has {size} dimensions.", "Give as many.")
            if not all(_is_finite(value) for value in values):
                raise InputError(f"Not all values of {name!r} are finite.", "Give numbers alone.")
            found[name] = torch.tensor([values], dtype=torch.float32)
        return found

    def _site(self, name: Any) -> Latent:
        if not isinstance(name, str) or name not in self.latents:
            raise InputError(
                f"There is no latent site {name!r}.", f"Take one of {', '.join(self.latents)}."
            )
        return self.latents[name]

    def _rows(self, count: int, label: Any) -> Batch:
        """As many rows as asked, for the shapes and the labels of what is to be decoded."""
        one = self._labelled(self._template, label)
        y = None if one.y is None else one.y.expand(count)
        return Batch(one.x.expand(count, *one.x.shape[1:]), y)

    def _labelled(self, batch: Batch, label: Any) -> Batch:
        """One row with a label, that of the first example if None."""
        y = self._template.y
        if label is not None and y is not None and self._labels is not None:
            if label not in self._labels:
                raise InputError(f"There is no label {label!r}.", f"Take one of {self._labels}.")
            y = torch.full_like(y, label)
        return Batch(batch.x, y)

    def _keep(self, batch: Batch) -> str:
        self._number += 1
        name = str(self._number)
        self._kept[name] = batch
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return name


def _whole(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{value!r} is not asked for.", f"Give a whole number, {low} to {high}.")
    return value


def _is_finite(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < torch.finfo(torch.float32).max
    )

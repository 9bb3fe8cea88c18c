r"""Many draws of the same kind: `draw_terms`, captured where it is called often.

An evaluation draws thousands of times for batches of one shape. After the first draw the
operations of the program are captured and compiled as those of a training step are; the
numbers and the noise are the same, to rounding. A program that reads its data in Python would be
compiled with those of the first batch in it: so the draws for the first, second, fourth, eighth
batch, and so on, are compared with the program's own.
"""

__all__ = ["Draws"]

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.capture import CaptureError, capture, compile_graph, has_compiler
from pyrovae.data import Batch
from pyrovae.handlers import unvalidated
from pyrovae.programs import Program
from pyrovae.structure import Structure
from pyrovae.terms import Terms, draw_terms

# So many draws of one shape are worth the seconds that compiling takes.
OFTEN = 150
# How far compiled terms may be from those of the program, in nats: rounding, of sums over x.
ROUNDING = 1e-4

_Pass = Callable[..., Sequence[Tensor]]


class Draws:
    """Draws the terms of a program's bound, again and again.

    Args:
        program: The program, within `evaluating`, its parameters fixed.
        structure: What `inspect_program` found.
        number: About how many draws of one shape will be asked for.
    """

    def __init__(self, program: Program, structure: Structure, number: int) -> None:
        self.program = program
        self.structure = structure
        self._worth_it = number >= OFTEN and structure.vectorizes and has_compiler()
        self._found: dict[Any, _Compiled | None] = {}

    def __call__(self, batch: Batch, num_particles: int) -> Terms:
        """The same as `draw_terms(program, batch, num_particles, structure)`."""
        if not self._worth_it:
            return draw_terms(self.program, batch, num_particles, self.structure)

        y = None if batch.y is None else (batch.y.shape, batch.y.dtype)
        kind = (batch.x.shape, batch.x.dtype, y, num_particles)
        if kind not in self._found:
            # One kind of many, the last batch of a data set, is not worth it.
            usable = batch.x.device.type == "cpu" and not self._found
            self._found[kind] = self._compile(batch, num_particles) if usable else None
        compiled = self._found[kind]
        if compiled is None:
            return draw_terms(self.program, batch, num_particles, self.structure)
        if not compiled.is_due(batch):
            return compiled(batch)
        found, expected = self._both(compiled, batch, num_particles)
        if _agree(found, expected):
            return found
        self._found[kind] = None
        warnings.warn(
            "Draws are made in Python: compiled, they are others for further examples than the "
            "first ones, as of a program that reads its data by .tolist() or NumPy.",
            stacklevel=2,
        )
        return expected

    def _both(
        self, compiled: "_Compiled", batch: Batch, num_particles: int
    ) -> tuple[Terms, Terms]:
        """The draw of a batch, compiled and by the program, on the same noise."""
        state = torch.get_rng_state()
        found = compiled(batch)
        torch.set_rng_state(state)
        return found, draw_terms(self.program, batch, num_particles, self.structure)

    def _compile(self, batch: Batch, num_particles: int) -> "_Compiled | None":
        """The compiled draw of such batches, if it is the program's own."""
        with torch.random.fork_rng(devices=[]):
            state = torch.get_rng_state()
            expected = draw_terms(self.program, batch, num_particles, self.structure)
            compiled = _Compiled(expected)

            def draw(*tensors: Tensor) -> list[Tensor]:
                x, *rest = tensors
                given = Batch(x, rest[0] if rest else None)
                return _flat(draw_terms(self.program, given, num_particles, self.structure))

            try:
                with unvalidated():
                    graph = capture(draw, _tensors(batch))
                compiled.run = compile_graph(graph, _tensors(batch))
            except CaptureError as error:
                warnings.warn(f"Draws are made in Python: {error}", stacklevel=2)
                return None
            torch.set_rng_state(state)
            compiled.is_due(batch)
            return compiled if _agree(compiled(batch), expected) else None


class _Compiled:
    """A compiled draw, and how to put its results together again."""

    def __init__(self, example: Terms) -> None:
        self.run: _Pass | None = None
        self._kl_names = list(example.kl_per_dim)
        self._mean_names = list(example.latent_means)
        self._batches = 0
        self._last: list[Tensor] = []

    def is_due(self, batch: Batch) -> bool:
        """Whether a batch is another than the last one, and to be compared."""
        given = _tensors(batch)
        if self._batches and all(map(torch.equal, given, self._last)):
            return False
        self._batches, self._last = self._batches + 1, given
        return self._batches & (self._batches - 1) == 0

    def __call__(self, batch: Batch) -> Terms:
        assert self.run is not None
        log_likelihood, log_prior, log_posterior, global_kl, *rest = self.run(*_tensors(batch))
        number = len(self._kl_names)
        return Terms(
            log_likelihood=log_likelihood,
            log_prior=log_prior,
            log_posterior=log_posterior,
            kl_per_dim=dict(zip(self._kl_names, rest[:number], strict=True)),
            latent_means=dict(zip(self._mean_names, rest[number:], strict=True)),
            global_kl=global_kl,
        )


def _tensors(batch: Batch) -> list[Tensor]:
    return [batch.x] if batch.y is None else [batch.x, batch.y]


def _flat(terms: Terms) -> list[Tensor]:
    return [
        terms.log_likelihood,
        terms.log_prior,
        terms.log_posterior,
        terms.global_kl,
        *terms.kl_per_dim.values(),
        *terms.latent_means.values(),
    ]


def _agree(found: Terms, expected: Terms) -> bool:
    return all(
        bool(((a - b).abs() <= ROUNDING * (1 + b.abs())).all())
        for a, b in zip(_flat(found), _flat(expected), strict=True)
    )

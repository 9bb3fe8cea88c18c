"""Distributions of symbols drawn one after the other."""

__all__ = ["Autoregressive", "Scorer"]

from collections.abc import Callable
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

Draw = Callable[[Tensor], Tensor]


class Scorer(Protocol):
    """A network that knows an order of the elements of a value, and scores them in it."""

    def logits(self, value: Tensor, context: Tensor) -> Tensor:
        r"""The logits of every $p(x_i \mid x_{<i}, c)$ at once.

        Args:
            value: The symbols, with shape $(*, x)$.
            context: What they are given, with shape $(*, c)$.

        Returns:
            Shape $(*, x, S)$ for S symbols; the logits of an element are no function of itself
            nor of those after it.
        """
        ...

    def generate(self, context: Tensor, draw: Draw) -> Tensor:
        r"""A value, with shape $(*, x)$, made in order.

        Args:
            context: What it is given, with shape $(*, c)$.
            draw: Chooses symbols by logits with shape $(*, S)$.
        """
        ...


class Autoregressive(dist.TorchDistribution):
    r"""The probability $p(x \mid c) = \prod_i \mathrm{Categorical}(x_i \mid x_{<i}, c)$.

    The network's work is done by `log_prob`, in one pass over a value, and by `sample`, element
    by element. It has no mean.

    Args:
        scorer: The network.
        context: What the value is given, with shape $(*, c)$.
        batch_shape: The shape $(*)$.
        event_shape: The shape of one value: whole numbers 0 .. symbols - 1, of any type. Draws
            have the type of the context.
        symbols: The number S of symbols.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        scorer: Scorer,
        context: Tensor,
        batch_shape: Size,
        event_shape: tuple[int, ...],
        symbols: int,
        validate_args: bool | None = None,
    ) -> None:
        self.scorer = scorer
        self.context = context
        self.symbols = symbols
        super().__init__(Size(batch_shape), Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:  # pyright: ignore
        """Whole numbers 0 .. symbols - 1."""
        symbol = constraints.integer_interval(0, self.symbols - 1)
        return constraints.independent(symbol, len(self.event_shape))

    def expand(
        self, batch_shape: Size, _instance: "Autoregressive | None" = None
    ) -> "Autoregressive":
        """The same distribution over a larger batch."""
        expanded = Autoregressive(
            self.scorer,
            self._context(Size(batch_shape)),
            batch_shape,
            self.event_shape,
            self.symbols,
            validate_args=False,
        )
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)

        batch_shape = torch.broadcast_shapes(
            value.shape[: value.dim() - len(self.event_shape)], self.batch_shape
        )
        value = value.expand(batch_shape + self.event_shape)
        log_p = self.scorer.logits(value, self._context(batch_shape)).log_softmax(-1)
        log_p = log_p.gather(-1, value.long().unsqueeze(-1))

        return log_p.flatten(len(batch_shape)).sum(-1)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws the elements in the network's order, each given those before it."""
        shape = self._extended_shape(sample_shape)
        context = self._context(shape[: len(shape) - len(self.event_shape)])
        with torch.no_grad():
            return self.scorer.generate(context, _draw).to(self.context.dtype)

    def _context(self, batch_shape: Size) -> Tensor:
        return self.context.expand(batch_shape + self.context.shape[len(self.batch_shape) :])


def _draw(logits: Tensor) -> Tensor:
    return dist.Categorical(logits=logits, validate_args=False).sample()

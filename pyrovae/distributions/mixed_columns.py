"""The rows of a table whose columns are of several kinds."""

__all__ = ["Codes", "MixedColumns"]

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints


class Codes(dist.Categorical):
    r"""A categorical of the codes $0, \ldots, K - 1$ as a table holds them: real numbers.

    The order of codes means nothing, and a mean of them neither. What stands for one, wherever a
    distribution is shown by its mean, is the most probable code.

    Example:
        >>> Codes(logits=torch.tensor([0.0, 2.0, 1.0])).mean
        tensor(1.)
    """

    @property
    def mean(self) -> Tensor:
        """The most probable code."""
        return self.mode.to(self.logits.dtype)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws, in the precision of the parameters."""
        return super().sample(sample_shape).to(self.logits.dtype)


class MixedColumns(dist.TorchDistribution):
    r"""Rows of independent columns of several kinds: $p(x) = \prod_g \prod_{i \in g} p_g(x_i)$.

    Columns of one kind are one group, so that a wide table costs no more than its kinds.

    Args:
        groups: A distribution for each kind, of single numbers: batch shape $(*, n_g)$.
        order: The column that each place of the joined groups is of, with shape
            $(\sum_g n_g,)$.

    Example:
        >>> numeric, binary = dist.Normal(torch.zeros(5, 1), 1.0), dist.Bernoulli(torch.rand(5, 2))
        >>> row = MixedColumns([numeric, binary], torch.tensor([1, 0, 2]))
        >>> row.log_prob(row.sample()).shape
        torch.Size([5])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        groups: Sequence[Distribution],
        order: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.order = order
        super().__init__(groups[0].batch_shape[:-1], order.shape, validate_args=validate_args)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore
        """The support of each column."""
        return constraints.independent(_OfColumns(self), 1)

    def expand(self, batch_shape: Size, _instance: "MixedColumns | None" = None) -> "MixedColumns":
        """The same distribution over a larger batch."""
        groups = [g.expand(Size((*batch_shape, g.batch_shape[-1]))) for g in self.groups]
        expanded = MixedColumns(groups, self.order, validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability in nats, summed over columns."""
        if self._validate_args:
            self._validate_sample(value)
        parts = zip(self.groups, self.split(value), strict=True)
        return torch.cat([group.log_prob(part) for group, part in parts], -1).sum(-1)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Whole rows."""
        return self.join([group.sample(sample_shape) for group in self.groups])

    @property
    def mean(self) -> Tensor:
        """The mean of each column: of numbers and of 0 or 1; for `Codes` the most probable."""
        return self.join([group.mean for group in self.groups])

    def split(self, value: Tensor) -> tuple[Tensor, ...]:
        """The columns of each group, $(*, n_g)$, of rows."""
        sizes = [group.batch_shape[-1] for group in self.groups]
        return value.index_select(-1, self.order).split(sizes, -1)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows out of the columns of each group."""
        return torch.cat(list(parts), -1).index_select(-1, self.order.argsort())


class _OfColumns(constraints.Constraint):
    """The support of every entry of a row, each by its column."""

    def __init__(self, row: MixedColumns) -> None:
        self.row = row
        self.supports: list[Any] = [group.support for group in row.groups]
        self.is_discrete = all(support.is_discrete for support in self.supports)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        parts = zip(self.supports, self.row.split(value), strict=True)
        return self.row.join([support.check(part) for support, part in parts])

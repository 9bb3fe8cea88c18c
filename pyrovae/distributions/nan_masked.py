"""Missing entries, written as NaN, under any distribution of single numbers."""

__all__ = ["NanMasked"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from pyrovae.errors import InputError


class NanMasked(dist.TorchDistribution):
    r"""A distribution of single numbers under which a NaN stands for a missing one.

    A missing value has log-probability zero, whatever the parameters, and sends them no gradient:
    under a product of such factors $p(x) = \prod_{i \text{ observed}} p(x_i)$, the marginal of
    what was observed. Draws are whole. `pyro.distributions.NanMaskedNormal` is the same for a
    normal, but looks at the values in Python and so cannot be captured.

    Args:
        base_dist: The distribution $p(x_i)$, with event shape $()$.

    Raises:
        InputError: If its events are not single numbers.

    Example:
        >>> x = torch.tensor([0.0, torch.nan])
        >>> NanMasked(dist.Normal(0.0, 1.0)).log_prob(x)
        tensor([-0.9189,  0.0000])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, base_dist: Distribution, validate_args: bool | None = None) -> None:
        if base_dist.event_shape:
            raise InputError(
                f"The events of a {type(base_dist).__name__} are of shape "
                f"{tuple(base_dist.event_shape)}, and only single numbers can be missing.",
                "Take a likelihood that factorises over the entries of x.",
            )
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore
        """Whether draws carry gradients."""
        return self.base_dist.has_rsample

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore
        """The base's finite values, and NaN."""
        return _OrMissing(self.base_dist.support)

    def expand(self, batch_shape: Size, _instance: "NanMasked | None" = None) -> "NanMasked":
        """The same distribution over a larger batch."""
        expanded = NanMasked(self.base_dist.expand(batch_shape), validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability in nats, exactly zero of a NaN."""
        if self._validate_args:
            self._validate_sample(value)
        missing = value.isnan()
        # NaN is replaced before and not only after: 0 times its gradient would be NaN again.
        whole = torch.where(missing, _some_value(self.base_dist.support, value), value)
        return torch.where(missing, 0.0, self.base_dist.log_prob(whole))

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws of the base, none missing."""
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws of the base that carry gradients, none missing."""
        return self.base_dist.rsample(sample_shape)

    @property
    def mean(self) -> Tensor:
        """The mean of the base."""
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """The variance of the base."""
        return self.base_dist.variance


class _OrMissing(constraints.Constraint):
    """What a constraint on single numbers allows of finite values, and NaN."""

    def __init__(self, base_constraint: Any) -> None:
        self.base_constraint = base_constraint
        self.is_discrete = base_constraint.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (self.base_constraint.check(value) & value.isfinite()) | value.isnan()


def _some_value(support: Any, like: Tensor) -> Tensor:
    """A value well inside a support, where log-probabilities and their gradients are finite."""
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    zero = like.new_zeros(())
    if low is None:
        return zero if high is None else zero + high - 1
    if high is None:
        return zero + low + 1
    return zero + low if support.is_discrete else zero + (low + high) / 2

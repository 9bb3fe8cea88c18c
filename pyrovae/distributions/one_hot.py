"""Groups of one-hot codes, laid end to end in one vector."""

__all__ = ["Grouped", "OneHotGroups", "largest"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints, register_kl

from pyrovae.distributions.noise import gumbel


class Grouped(constraints.Constraint):
    """Vectors $(*, G K)$ of which each of the G groups satisfies a constraint on $(*, K)$."""

    event_dim = 1

    def __init__(self, base_constraint: constraints.Constraint, classes: int) -> None:
        self.base_constraint = base_constraint
        self.classes = classes
        super().__init__()

    @property
    def is_discrete(self) -> bool:  # pyright: ignore
        """Whether the groups are."""
        return self.base_constraint.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Whether each group does, for each vector."""
        return self.base_constraint.check(value.unflatten(-1, (-1, self.classes))).all(-1)


class OneHotGroups(dist.TorchDistribution):
    r"""G independent one-hot codes of K classes, as one vector of length $G K$.

    $$\log p(z) = \sum_{g, k} z_{g k} \log \pi_{g k}, \qquad
    \pi_g = \mathrm{softmax}(\eta_g)$$

    Args:
        logits: The logits $\eta$, with shape $(*, G, K)$; minus infinity for a class that there is
            not.
    """

    arg_constraints = {  # noqa: RUF012  # pyright: ignore
        "logits": constraints.independent(constraints.real, 2)
    }

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        # Finite, so that what has no probability counts as 0 where it is multiplied by one.
        self.logits = logits.log_softmax(-1).clamp(min=torch.finfo(logits.dtype).min)
        groups, classes = logits.shape[-2:]
        super().__init__(logits.shape[:-2], Size((groups * classes,)), validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        expanded: Any = self._get_checked_instance(type(self), _instance)
        expanded.logits = self.logits.expand(*batch_shape, *self.logits.shape[-2:])
        dist.TorchDistribution.__init__(
            expanded, Size(batch_shape), self.event_shape, validate_args=False
        )
        expanded._validate_args = self._validate_args
        return expanded

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Grouped:  # pyright: ignore
        """One-hot codes."""
        return Grouped(constraints.one_hot, self.logits.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, in nats: linear in the code, as straight-through draws need."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits.flatten(-2)).sum(-1)

    @property
    def mean(self) -> Tensor:
        r"""The probabilities $\pi$, with shape $(*, G K)$."""
        return self.logits.exp().flatten(-2)

    def entropy(self) -> Tensor:
        """The entropy, in nats: that of all codes together."""
        return -(self.logits.exp() * self.logits).sum((-2, -1))

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws."""
        # Not `torch.multinomial`, which reads values on the host.
        with torch.no_grad():
            noise = gumbel((*sample_shape, *self.logits.shape), self.logits)
            return largest(self.logits + noise).flatten(-2)


def largest(value: Tensor) -> Tensor:
    """Ones where a vector is largest, and zeros elsewhere."""
    return torch.zeros_like(value).scatter(-1, value.argmax(-1, keepdim=True), 1.0)


@register_kl(OneHotGroups, OneHotGroups)
def _kl(p: OneHotGroups, q: OneHotGroups) -> Tensor:
    return (p.logits.exp() * (p.logits - q.logits)).sum((-2, -1))

"""The categorical distribution of numbers."""

__all__ = ["Categorical"]

import pyro.distributions as dist
import torch
from torch import Size, Tensor


class Categorical(dist.Categorical):
    r"""The probabilities $p(x = k) = \mathrm{softmax}(\eta)_k$ of the numbers $0 .. K - 1$.

    torch's own is of labels: here the numbers are measured ones, draws are of the logits' dtype
    and there is a mean.

    Args:
        logits: $\eta$, with shape $(*, K)$.
    """

    @property
    def levels(self) -> Tensor:
        """The numbers."""
        return torch.arange(self._num_events, dtype=self.logits.dtype, device=self.logits.device)

    @property
    def mean(self) -> Tensor:
        r"""$\sum_k k \, p(x = k)$."""
        return (self.probs * self.levels).sum(-1)

    @property
    def variance(self) -> Tensor:
        r"""$\sum_k (k - \bar x)^2 \, p(x = k)$."""
        return (self.probs * (self.levels - self.mean.unsqueeze(-1)).square()).sum(-1)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws, as real numbers."""
        return super().sample(sample_shape).to(self.logits.dtype)

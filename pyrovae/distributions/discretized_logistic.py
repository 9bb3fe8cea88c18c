r"""The discretised logistic: levels $0 .. L - 1$ as the cells of a real line.

Level k holds the probability of $(k - \tfrac12, k + \tfrac12)$, the first and the last one also
that of the tail beyond.
"""

__all__ = ["DiscretizedLogistic", "DiscretizedLogisticMixture"]

from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all


class DiscretizedLogistic(dist.TorchDistribution):
    r"""The probabilities $\sigma(u) - \sigma(\ell)$, $(u, \ell) = (x \pm \tfrac12 - \mu) / s$.

    They are computed as $\sigma(u) \, \sigma(-\ell) \, (1 - e^{-1 / s})$, which cancels nowhere,
    without the first factor at $x = L - 1$, without the second one at 0, and without the third
    one at both.

    Args:
        loc: The location $\mu$, in levels.
        scale: The scale $s$, in levels.
        levels: The number $L$ of levels.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications (Salimans et al., 2017), arXiv:1701.05517.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self, loc: Tensor, scale: Tensor, *, levels: int = 256, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "DiscretizedLogistic":
        """The same distribution over a larger batch."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        expanded = DiscretizedLogistic(loc, scale, levels=self.levels, validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore
        """The levels."""
        return constraints.integer_interval(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        first, last = value <= 0, value >= self.levels - 1
        below = F.logsigmoid((value + 0.5 - self.loc) / self.scale)
        above = F.logsigmoid((self.loc - value + 0.5) / self.scale)
        inside = (-torch.expm1(-1 / self.scale)).log()

        return (
            torch.where(last, 0.0, below)
            + torch.where(first, 0.0, above)
            + torch.where(first | last, 0.0, inside)
        )

    @property
    def mean(self) -> Tensor:
        r"""$\sum_{k > 0} p(x \ge k)$, level by level: all at once would be $L$ times as large."""
        mean = torch.zeros_like(self.loc)
        for level in range(1, self.levels):
            mean = mean + torch.sigmoid((self.loc - level + 0.5) / self.scale)
        return mean

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """The levels in whose cells draws of the logistic lie."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            noise = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).logit()
            return (self.loc + self.scale * noise).round().clamp(0, self.levels - 1)


class DiscretizedLogisticMixture(dist.TorchDistribution):
    r"""A mixture for every pixel, its components of all channels $c$ of the pixel together.

    $$p(x) = \prod_{\text{pixels}} \sum_k \pi_k \prod_c
    \mathrm{DL}\Big(x_c \mid \mu_{kc} + \sum_{b < c} a_{kcb} \big(x_b - \tfrac{L - 1}2\big), \,
    s_{kc}\Big)$$

    With three channels that is PixelCNN++'s: green is linear in red, and blue in both. The
    pixels are laid out in one dimension of size $P$.

    Args:
        logits: The logits of $\pi$, with shape $(*, K, P)$.
        loc: $\mu$, in levels, with shape $(*, K, C, P)$.
        scale: $s$, in levels, with shape $(*, K, C, P)$.
        slopes: $a$, its pairs $(c, b)$ in the order (1, 0), (2, 0), (2, 1), ..., with shape
            $(*, K, C (C - 1) / 2, P)$.
        event_shape: The shape of x, of $C P$ numbers: $(P,)$ or $(C, H, W)$.
        levels: The number $L$ of levels.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications (Salimans et al., 2017), arXiv:1701.05517.
    """

    arg_constraints = {  # noqa: RUF012  # pyright: ignore
        "logits": constraints.real,
        "loc": constraints.real,
        "scale": constraints.positive,
        "slopes": constraints.real,
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        slopes: Tensor,
        *,
        event_shape: tuple[int, ...],
        levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = logits.log_softmax(-2)
        self.loc, self.scale, self.slopes = loc, scale, slopes
        self.levels = levels
        super().__init__(logits.shape[:-2], Size(event_shape), validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "DiscretizedLogisticMixture":
        """The same distribution over a larger batch."""
        rank = len(self.batch_shape)
        parameters = (self.logits, self.loc, self.scale, self.slopes)
        expanded = DiscretizedLogisticMixture(
            *(p.expand(Size(batch_shape) + p.shape[rank:]) for p in parameters),
            event_shape=self.event_shape,
            levels=self.levels,
            validate_args=False,
        )
        expanded._validate_args = self._validate_args
        return expanded

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:  # pyright: ignore
        """The levels."""
        level = constraints.integer_interval(0, self.levels - 1)
        return constraints.independent(level, len(self.event_shape))

    @property
    def channels(self) -> int:
        """The number $C$ of channels."""
        return self.loc.shape[-2]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        batch_shape = value.shape[: value.dim() - len(self.event_shape)]
        x = value.reshape(*batch_shape, 1, self.channels, -1)
        log_prob = self.logits
        for c in range(self.channels):
            log_prob = log_prob + self._channel(c, x[..., :c, :]).log_prob(x[..., c, :])

        return log_prob.logsumexp(-2).sum(-1)

    @property
    def mean(self) -> Tensor:
        """The mean of a single channel; of several it has no closed form.

        Raises:
            NotImplementedError: If there are several.
        """
        if self.channels > 1:
            raise NotImplementedError("The mean of channels given one another has no closed form.")
        mean = DiscretizedLogistic(self.loc, self.scale, levels=self.levels).mean.squeeze(-2)
        return (self.logits.exp() * mean).sum(-2).reshape(self.batch_shape + self.event_shape)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws: the component of every pixel, and then its channels in their order."""
        with torch.no_grad():
            one = self.expand(Size(sample_shape) + self.batch_shape)._drawn_component()
            x = one.loc[..., :0, :]
            for c in range(self.channels):
                x = torch.cat([x, one._channel(c, x).sample().unsqueeze(-2)], -2)

        return x.reshape(*one.batch_shape, *self.event_shape)

    def _drawn_component(self) -> "DiscretizedLogisticMixture":
        """Of every pixel one component, drawn by its probability."""
        k = dist.Categorical(logits=self.logits.movedim(-2, -1)).sample()

        def pick(parameter: Tensor) -> Tensor:
            index = k[..., None, None, :].expand(*k.shape[:-1], 1, *parameter.shape[-2:])
            return parameter.gather(-3, index)

        return DiscretizedLogisticMixture(
            torch.zeros_like(self.logits[..., :1, :]),
            *(pick(parameter) for parameter in (self.loc, self.scale, self.slopes)),
            event_shape=self.event_shape,
            levels=self.levels,
            validate_args=False,
        )

    def _channel(self, c: int, before: Tensor) -> DiscretizedLogistic:
        """A channel of every component, given the channels before it, with shape (*, K, P)."""
        first = c * (c - 1) // 2
        slopes = self.slopes[..., first : first + c, :]
        shift = (slopes * (before - (self.levels - 1) / 2)).sum(-2)
        return DiscretizedLogistic(
            self.loc[..., c, :] + shift,
            self.scale[..., c, :],
            levels=self.levels,
            validate_args=False,
        )

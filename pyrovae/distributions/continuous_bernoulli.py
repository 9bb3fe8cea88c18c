"""The continuous Bernoulli."""

__all__ = ["ContinuousBernoulli"]

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

# Below this |η| / 2 a Taylor series is more exact than the closed form, in float32 and float64.
SMALL = 0.1
# Below this |η| a draw is linear in η, to seven digits.
NEARLY_UNIFORM = 1e-3


class ContinuousBernoulli(dist.TorchDistribution):
    r"""The density $p(x \mid \eta) \propto e^{\eta x}$ on [0, 1], right for every logit.

    $$\log p(x) = \eta (x - \tfrac12) - \log \frac{\sinh(\eta / 2)}{\eta / 2}$$

    torch's own clamps probabilities: beyond logits of about 16 in float32, and 36 in float64,
    its density no longer integrates to one.

    Args:
        logits: The natural parameter $\eta$.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), arXiv:1907.06845.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012  # pyright: ignore
    support = constraints.unit_interval  # pyright: ignore
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        (self.logits,) = broadcast_all(logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: Size, _instance: "ContinuousBernoulli | None" = None
    ) -> "ContinuousBernoulli":
        """The same distribution over a larger batch."""
        expanded = ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * (value - 0.5) - _log_sinhc(self.logits / 2)

    @property
    def mean(self) -> Tensor:
        r"""$\tfrac12 + \tfrac12 (\coth h - 1 / h)$ with $h = \eta / 2$."""
        return 0.5 + 0.5 * _langevin(self.logits / 2)

    @property
    def variance(self) -> Tensor:
        r"""The derivative of the mean: $\tfrac14 (1 / h^2 - 1 / \sinh^2 h)$."""
        h = self.logits.abs() / 2
        is_small = h < SMALL
        safe = torch.where(is_small, SMALL, h)
        # 1 / sinh(h), in powers of exp(-h) that do not overflow.
        inverse = 2 * (-safe).exp() / -torch.expm1(-2 * safe)
        small = torch.where(is_small, h, 0.0)
        series = 1 / 3 - small**2 / 15 + 2 * small**4 / 189 - small**6 / 675
        return 0.25 * torch.where(is_small, series, safe**-2 - inverse**2)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        r"""Draws by the inverse distribution function, $\log(1 + u (e^\eta - 1)) / \eta$."""
        u = torch.rand(
            self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device
        )
        # For η > 0 the mirror image, 1 - x with -η, so that nothing overflows.
        size = self.logits.abs()
        is_nearly_uniform = size < NEARLY_UNIFORM
        safe = torch.where(is_nearly_uniform, NEARLY_UNIFORM, size)
        x = -torch.log1p(u * torch.expm1(-safe)) / safe
        x = torch.where(self.logits > 0, 1 - x, x).clamp(0, 1)
        # The closed form's derivative cancels there, and that of |η| is none at 0.
        series = u + 0.5 * self.logits * u * (1 - u)
        return torch.where(is_nearly_uniform, series, x)


def _log_sinhc(h: Tensor) -> Tensor:
    r"""$\log(\sinh(h) / h)$, an even function, without overflow or cancellation."""
    size = h.abs()
    is_small = size < SMALL
    safe = torch.where(is_small, SMALL, size)
    closed = safe + torch.log(-torch.expm1(-2 * safe)) - torch.log(2 * safe)
    # Where the series is not taken, its powers must not overflow: 0 times infinity is NaN.
    h = torch.where(is_small, h, 0.0)
    series = h**2 / 6 - h**4 / 180 + h**6 / 2835 - h**8 / 37800

    return torch.where(is_small, series, closed)


def _langevin(h: Tensor) -> Tensor:
    r"""Its derivative, $\coth(h) - 1 / h$, an odd function."""
    size = h.abs()
    is_small = size < SMALL
    safe = torch.where(is_small, SMALL, size)
    closed = h.sign() * (1 / torch.tanh(safe) - 1 / safe)
    h = torch.where(is_small, h, 0.0)
    series = h / 3 - h**3 / 45 + 2 * h**5 / 945 - h**7 / 4725

    return torch.where(is_small, series, closed)

r"""Distributions on the sphere $S^{D-1}$ of unit vectors in $R^D$, as densities of its area.

Those about an axis $\mu$ depend on $z$ through the angle $\theta$ between the two alone, and so
through the haversine $h = \sin^2(\theta / 2) = |z - \mu|^2 / 4$: 0 at $\mu$, 1 at $-\mu$. Unlike
$\cos \theta = 1 - 2 h$ it is exact in float32 where a concentrated distribution has its mass.
Under the uniform distribution $h \sim \mathrm{Beta}(\beta, \beta)$ with $\beta = (D - 1) / 2$.
"""

__all__ = [
    "LOG_CONCENTRATION_BOUNDS",
    "AboutAxis",
    "PowerSpherical",
    "SphericalUniform",
    "haversine",
    "log_area",
]

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions import register_kl

# Bounds on the log κ of parts: from all but uniform to about a hundredth of a radian.
LOG_CONCENTRATION_BOUNDS = (-7.0, 9.0)


def log_area(dim: int) -> float:
    r"""The log-area of the sphere in $R^D$, $\log 2 + \tfrac D2 \log\pi - \log\Gamma(D/2)$."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def haversine(a: Tensor, b: Tensor) -> Tensor:
    r"""The $\sin^2(\theta / 2)$ of the angle between unit vectors: $|a - b|^2 / 4$."""
    return (a - b).square().sum(-1) / 4


class SphericalUniform(dist.TorchDistribution):
    r"""The uniform distribution on the sphere, $p(z) = \Gamma(D / 2) / (2 \pi^{D/2})$.

    Args:
        center: Zeros, with shape $(*, D)$: the mean, whose shape, type and device it takes.
    """

    arg_constraints = {"center": constraints.real_vector}  # noqa: RUF012  # pyright: ignore
    support = constraints.sphere  # pyright: ignore
    has_rsample = True

    def __init__(self, center: Tensor, validate_args: bool | None = None) -> None:
        self.center = center
        super().__init__(center.shape[:-1], center.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "SphericalUniform":
        """The same distribution over a larger batch."""
        expanded = SphericalUniform(self.center.expand(*batch_shape, -1), validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats: the same everywhere."""
        if self._validate_args:
            self._validate_sample(value)
        return -self.entropy() + torch.zeros_like(value[..., 0])

    def entropy(self) -> Tensor:
        """The log-area of the sphere."""
        return self.center.new_full(self.batch_shape, log_area(self.center.shape[-1]))

    @property
    def mean(self) -> Tensor:
        """The center of the sphere."""
        return self.center

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws: directions of Gaussian vectors."""
        noise = torch.randn(
            self._extended_shape(sample_shape), dtype=self.center.dtype, device=self.center.device
        )
        return F.normalize(noise, dim=-1)


class AboutAxis(dist.TorchDistribution):
    r"""A distribution on the sphere that is symmetric about an axis.

    One of them says how its haversine is drawn, its mean, and the terms of its density.

    Args:
        loc: The axis $\mu$, of length 1, with shape $(*, D)$, $D \ge 2$.
        concentration: $\kappa > 0$, with shape $(*)$.
    """

    arg_constraints = {  # noqa: RUF012  # pyright: ignore
        "loc": constraints.sphere,
        "concentration": constraints.positive,
    }
    support = constraints.sphere  # pyright: ignore
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch_shape, -1)
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        expanded: Any = self._get_checked_instance(type(self), _instance)
        expanded.loc = self.loc.expand(*batch_shape, -1)
        expanded.concentration = self.concentration.expand(batch_shape)
        dist.TorchDistribution.__init__(
            expanded, Size(batch_shape), self.event_shape, validate_args=False
        )
        expanded._validate_args = self._validate_args
        return expanded

    @property
    def beta(self) -> float:
        r"""$\beta = (D - 1) / 2$."""
        return (self.event_shape[0] - 1) / 2

    @property
    def mean_haversine(self) -> Tensor:
        r"""$E[h]$."""
        raise NotImplementedError

    def kl_to_uniform(self) -> Tensor:
        r"""$\mathrm{KL}(p \,\|\, \text{uniform})$."""
        raise NotImplementedError

    def rsample_haversine(self, sample_shape: Size) -> Tensor:
        """Draws $h$, with gradients to the concentration."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        r"""$E[z] = (1 - 2 E[h]) \, \mu$."""
        return (1 - 2 * self.mean_haversine).unsqueeze(-1) * self.loc

    def entropy(self) -> Tensor:
        """The entropy: what the uniform distribution has more, it has less."""
        return log_area(self.event_shape[0]) - self.kl_to_uniform()

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        r"""Draws about the first axis, turned to $\mu$ by a Householder reflection.

        Of $\pm e_1$ it is the one further from $\mu$ that is reflected, so that the mirror's
        normal $\mu \pm e_1$ is never short.
        """
        h = self.rsample_haversine(sample_shape).unsqueeze(-1)
        noise = torch.randn(
            (*h.shape[:-1], self.event_shape[0] - 1), dtype=h.dtype, device=h.device
        )
        side = torch.where(self.loc[..., :1] < 0, -1.0, 1.0).to(h.dtype)
        along, across = side * (2 * h - 1), 2 * (h * (1 - h)).sqrt() * F.normalize(noise, dim=-1)
        about_first = torch.cat([along, across], dim=-1)

        normal = torch.cat([self.loc[..., :1] + side, self.loc[..., 1:]], dim=-1)
        normal = F.normalize(normal, dim=-1)
        z = about_first - 2 * (about_first * normal).sum(-1, keepdim=True) * normal
        return F.normalize(z, dim=-1)


@register_kl(AboutAxis, SphericalUniform)
def _kl_to_uniform(p: AboutAxis, q: SphericalUniform) -> Tensor:
    return p.kl_to_uniform().expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


class PowerSpherical(AboutAxis):
    r"""The power spherical distribution, $p(z) \propto (1 + \mu^\top z)^\kappa$.

    $$\log p(z) = \kappa \log(1 - h) + \log\frac{\Gamma(\kappa + 2 \beta) \, \Gamma(\beta)}
    {\Gamma(\kappa + \beta) \, \Gamma(2 \beta)} - \log \text{area}, \qquad
    h \sim \mathrm{Beta}(\beta, \kappa + \beta)$$

    Near its axis it is the von Mises-Fisher distribution of concentration $\kappa / 2$.

    Args:
        loc: The axis $\mu$, of length 1, with shape $(*, D)$, $D \ge 2$.
        concentration: $\kappa > 0$, with shape $(*)$.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020), arXiv:2006.04437.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        tiny = torch.finfo(value.dtype).tiny
        h, rest = haversine(value, self.loc), haversine(value, -self.loc).clamp(min=tiny)
        # log(1 - h) by whichever of the two ends is the nearer one.
        log_rest = torch.where(h < 0.5, torch.log1p(-h.clamp(max=0.5)), rest.log())
        log_scale = self._log_scale().to(self.concentration.dtype)
        return self.concentration * log_rest + log_scale - log_area(self.event_shape[0])

    @property
    def mean_haversine(self) -> Tensor:
        r"""$E[h] = \beta / (\kappa + 2 \beta)$."""
        return self.beta / (self.concentration + 2 * self.beta)

    def kl_to_uniform(self) -> Tensor:
        r"""$\kappa E[\log(1 - h)]$ and what the density is scaled by."""
        alpha = self.concentration.double() + self.beta
        mean_log = torch.digamma(alpha) - torch.digamma(alpha + self.beta)
        kl = self.concentration.double() * mean_log + self._log_scale()
        return kl.to(self.concentration.dtype)

    def rsample_haversine(self, sample_shape: Size) -> Tensor:
        r"""Draws $h \sim \mathrm{Beta}(\beta, \kappa + \beta)$."""
        alpha = self.concentration + self.beta
        h = dist.Beta(torch.full_like(alpha, self.beta), alpha).rsample(sample_shape)
        # The gradient of its root, which is asked for, is infinite at zero.
        return h.clamp(min=torch.finfo(h.dtype).tiny)

    def _log_scale(self) -> Tensor:
        """What the density is multiplied by."""
        # In double precision: a difference of large numbers.
        alpha = self.concentration.double() + self.beta
        uniform = math.lgamma(2 * self.beta) - math.lgamma(self.beta)
        return torch.lgamma(alpha + self.beta) - torch.lgamma(alpha) - uniform

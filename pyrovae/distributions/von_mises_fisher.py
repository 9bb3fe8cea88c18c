r"""The von Mises-Fisher distribution.

Its normaliser holds a Bessel function, and the distribution function of its angle has no closed
inverse. Both come from one quadrature of the angle's density

$$q(\theta) \propto e^{-2 \kappa \sin^2(\theta / 2)} \, \sin^{D-2} \theta, \qquad
0 \le \theta \le \pi,$$

in double precision. There is no rejection: no loop whose length depends on the draws, and no
correction of gradients.
"""

__all__ = ["VonMisesFisher"]

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Size, Tensor

from pyrovae.distributions.spherical import AboutAxis, haversine, log_area

# The panels that cover the angle's mass, and the nodes of Gauss and Legendre in each.
PANELS = 32
NODES, WEIGHTS = (array.tolist() for array in np.polynomial.legendre.leggauss(6))
# What is covered on either side of the mode, in scales of the chord |z - μ|.
COVERED = 12.0
# Steps that solve for a draw; what they leave of |Q(θ) - u| is below 1e-8, or 1e-5 in the tails.
STEPS = 8


class VonMisesFisher(AboutAxis):
    r"""The von Mises-Fisher distribution, $p(z) \propto e^{\kappa \mu^\top z}$.

    $$\log p(z) = -2 \kappa h - \log c(\kappa) - \log \text{area}, \qquad
    c(\kappa) = e^{-\kappa} \, \Gamma(\tfrac D2) \, (2 / \kappa)^{D/2-1} I_{D/2-1}(\kappa)$$

    Draws invert the distribution function $Q$ of the angle, and their gradients are those of
    the inverse, $-\partial_\kappa Q(\theta) / q(\theta)$.

    Args:
        loc: The axis $\mu$, of length 1, with shape $(*, D)$, $D \ge 2$.
        concentration: $\kappa > 0$, with shape $(*)$.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), arXiv:1804.00891.
        Implicit Reparameterization Gradients (Figurnov et al., 2018), arXiv:1805.08498.
    """

    def __init__(
        self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        super().__init__(loc, concentration, validate_args=validate_args)

        # Made once, of the concentrations as they are given: particles expand it.
        self._angle = _tabulate(self.concentration.double(), self.event_shape[0])

    def expand(self, batch_shape: Size, _instance: Any = None) -> Any:
        """The same distribution over a larger batch."""
        expanded = super().expand(batch_shape, _instance)
        rank = len(self.batch_shape)
        expanded._angle = _Angle(*(t.expand((*batch_shape, *t.shape[rank:])) for t in self._angle))
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_scale = -self._angle.log_mean.to(self.concentration.dtype)
        h = haversine(value, self.loc)
        return -2 * self.concentration * h + log_scale - log_area(self.event_shape[0])

    @property
    def mean_haversine(self) -> Tensor:
        r"""$E[h] = (1 - I_{D/2}(\kappa) / I_{D/2-1}(\kappa)) / 2$."""
        return self._angle.mean_haversine.to(self.concentration.dtype)

    def kl_to_uniform(self) -> Tensor:
        r"""$-2 \kappa E[h] - \log c(\kappa)$."""
        angle = self._angle
        kl = -2 * angle.kappa * angle.mean_haversine - angle.log_mean
        return kl.to(self.concentration.dtype)

    def rsample_haversine(self, sample_shape: Size) -> Tensor:
        r"""Draws $h = \sin^2(\theta / 2)$ at $\theta = Q^{-1}(u)$."""
        angle, dim = self._angle, self.event_shape[0]
        shape = (*sample_shape, *self.batch_shape)
        u = torch.rand(shape, dtype=torch.float64, device=self.concentration.device)
        with torch.no_grad():
            theta = _solve(angle, u, dim)
            density = _density(theta, angle.kappa, angle.log_peak, dim) / angle.total
        # One more step of Newton, which leaves the value and carries the gradient.
        theta = theta - (_cumulative(angle, theta, dim) - u) / density
        h = (theta / 2).sin().square().to(self.concentration.dtype)
        # The gradient of its root, which is asked for, is infinite at zero.
        return h.clamp(torch.finfo(h.dtype).tiny, 1)


class _Angle(NamedTuple):
    r"""The quadrature of $q(\theta)$, for a batch of concentrations.

    Attributes:
        kappa: $\kappa$.
        log_peak: The largest logarithm of the density, not normalised; a constant.
        low: The lowest angle covered; a constant.
        width: The width of a panel; a constant.
        total: The integral of the density over its peak.
        cumulative: The share of the panels up to each of their ends, with shape $(*, P + 1)$.
        mean_haversine: $E[h]$.
        log_mean: $\log E[e^{-2 \kappa h}]$ under the uniform distribution.
    """

    kappa: Tensor
    log_peak: Tensor
    low: Tensor
    width: Tensor
    total: Tensor
    cumulative: Tensor
    mean_haversine: Tensor
    log_mean: Tensor


def _tabulate(kappa: Tensor, dim: int) -> _Angle:
    with torch.no_grad():
        mode, low, width = _range(kappa, dim)
        log_peak = _log_density(mode, kappa, dim)

    ends = low[..., None] + width[..., None] * torch.arange(PANELS, device=kappa.device)
    nodes, weights = _nodes(ends, width[..., None])
    values = weights * _density(nodes, kappa[..., None, None], log_peak[..., None, None], dim)
    panels = values.sum(-1)
    total = panels.sum(-1)
    mean_haversine = ((nodes / 2).sin().square() * values).sum((-2, -1)) / total
    # The integral of sin^(D-2).
    log_uniform = math.log(math.pi) / 2 + math.lgamma((dim - 1) / 2) - math.lgamma(dim / 2)

    return _Angle(
        kappa=kappa,
        log_peak=log_peak,
        low=low,
        width=width,
        total=total,
        cumulative=F.pad(panels.cumsum(-1) / total[..., None], (1, 0)),
        mean_haversine=mean_haversine,
        log_mean=log_peak + total.log() - log_uniform,
    )


def _range(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mode of the angle, the lowest one covered, and the width of a panel."""
    cosine = 2 * kappa / (dim - 2 + ((dim - 2) ** 2 + 4 * kappa**2).sqrt())
    mode = torch.acos(cosine.clamp(max=1))
    scale = (kappa * (cosine + 1 / cosine)).rsqrt()
    # The density falls at least as fast as a Gaussian one in the chord, 2 sin(θ / 2).
    chord = 2 * (mode / 2).sin()
    low, high = (
        2 * torch.asin(((chord + side * scale) / 2).clamp(0, 1)) for side in (-COVERED, COVERED)
    )
    return mode, low, (high - low) / PANELS


def _nodes(left: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in intervals of shape (*), and their weights, each with shape (*, nodes)."""
    nodes = torch.tensor(NODES, dtype=left.dtype, device=left.device)
    weights = torch.tensor(WEIGHTS, dtype=left.dtype, device=left.device)
    half = width.unsqueeze(-1) / 2
    return left.unsqueeze(-1) + half * (1 + nodes), half * weights


def _log_density(theta: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """The log-density of an angle, not normalised."""
    log_sine = theta.sin().clamp(min=torch.finfo(theta.dtype).tiny).log()
    return -2 * kappa * (theta / 2).sin().square() + (dim - 2) * log_sine


def _density(theta: Tensor, kappa: Tensor, log_peak: Tensor, dim: int) -> Tensor:
    """The density of an angle, over its peak."""
    return (_log_density(theta, kappa, dim) - log_peak).exp()


def _panel(angle: _Angle, shape: Size, index: Tensor) -> tuple[Tensor, Tensor]:
    """The left ends of some panels, and the shares of what is to the left of them."""
    cumulative = angle.cumulative.expand(*shape, -1)
    share = cumulative.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return angle.low + index * angle.width, share


def _cumulative(angle: _Angle, theta: Tensor, dim: int) -> Tensor:
    r"""The distribution function $Q(\theta)$, with gradients to the concentration."""
    index = ((theta.detach() - angle.low) / angle.width).long().clamp(0, PANELS - 1)
    left, share = _panel(angle, theta.shape, index)
    nodes, weights = _nodes(left, theta - left)
    values = _density(nodes, angle.kappa[..., None], angle.log_peak[..., None], dim)
    return share + (weights * values).sum(-1) / angle.total


def _solve(angle: _Angle, u: Tensor, dim: int) -> Tensor:
    r"""The angle at which $Q(\theta) = u$."""
    index = (u.unsqueeze(-1) > angle.cumulative[..., 1:-1]).sum(-1)
    low, below = _panel(angle, u.shape, index)
    _, above = _panel(angle, u.shape, index + 1)
    high = low + angle.width
    theta = low + angle.width * (u - below) / (above - below)
    for _ in range(STEPS):
        excess = _cumulative(angle, theta, dim) - u
        low, high = torch.where(excess < 0, theta, low), torch.where(excess < 0, high, theta)
        density = _density(theta, angle.kappa, angle.log_peak, dim) / angle.total
        newton = theta - excess / density
        theta = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
    return theta

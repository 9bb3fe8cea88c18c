r"""Bijections of $(D,)$ that normalising flows are made of.

They are made anew for every call, and remember the last pair that they mapped with its
determinant. So a draw that is scored costs one pass in all, whichever direction is the slow one,
and nothing outlives the call. Those of Pyro read values on the host, which no graph survives, or
score nothing but their own last draw.
"""

__all__ = ["Coupling", "Flow", "InverseAutoregressive", "affine_bend", "spline_bend"]

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Transform, constraints

Within = Callable[[], AbstractContextManager[object]]

Bend = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""From elements (*, d), parameters (*, d, P), and whether to go back: elements, log-slopes."""

# The largest log-scale of an affine layer: many of them together cannot overflow.
MOST_LOG_SCALE = 2.0
# Splines bend within (-BOUND, BOUND), and are the identity outside.
BOUND = 5.0
# No bin is narrower than this share of the whole, and no slope at a knot less.
LEAST = 1e-3
# The softplus of this is 1.
ONE = 0.5413248546129181


class Flow(dist.TransformedDistribution):
    """A distribution pushed through bijections, for values without its batch dimensions too.

    Args:
        base: The distribution.
        transforms: The bijections.
        within: What they are used within.
    """

    def __init__(
        self,
        base: dist.Distribution,
        transforms: Sequence[Transform],
        within: Within = nullcontext,
        validate_args: bool | None = None,
    ) -> None:
        self.within = within
        super().__init__(base, list(transforms), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density, in nats."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        with self.within():
            # A value of the right shape is passed on as the object that it is, and recognised.
            return super().log_prob(value if value.shape == shape else value.expand(shape))

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws without a gradient."""
        with self.within():
            return super().sample(sample_shape)

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draws."""
        with self.within():
            return super().rsample(sample_shape)

    def expand(self, batch_shape: Size, _instance: "Flow | None" = None) -> "Flow":
        """The same distribution over a larger batch."""
        new = self._get_checked_instance(Flow, _instance)
        new.within = self.within
        return super().expand(batch_shape, new)


class _Remembering(Transform):
    """A bijection of vectors that remembers the last pair it mapped."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__()
        self._cached: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""$y$ and $\log |\det \partial y / \partial x|$."""
        raise NotImplementedError

    def backward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""$x$ and, again, $\log |\det \partial y / \partial x|$."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.forward(x)
        self._cached = (x, y, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        if self._cached is not None and self._cached[1] is y:
            return self._cached[0]
        x, log_det = self.backward(y)
        self._cached = (x, y, log_det)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""$\log |\det \partial y / \partial x|$, with shape $(*)$."""
        if self._cached is not None and self._cached[0] is x and self._cached[1] is y:
            return self._cached[2]
        return self.forward(x)[1]


class Coupling(_Remembering):
    r"""Bends one half of a vector, element by element, by what the other half says.

    As fast backward as forward.

    Args:
        net: From the half that stays, $(*, D - d)$, to the parameters of the bend, $(*, d, P)$.
        bend: How elements are bent.
        flip: Whether the first half is bent, rather than the second.

    References:
        Density estimation using Real NVP (Dinh et al., 2017), arXiv:1605.08803.
    """

    def __init__(self, net: Callable[[Tensor], Tensor], bend: Bend, *, flip: bool) -> None:
        super().__init__()
        self.net = net
        self.bend = bend
        self.flip = flip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""$y$ and $\log |\det \partial y / \partial x|$."""
        return self._map(x, back=False)

    def backward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""$x$ and $\log |\det \partial y / \partial x|$."""
        x, log_det = self._map(y, back=True)
        return x, -log_det

    def _map(self, value: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
        half = value.shape[-1] // 2
        first, second = value[..., :half], value[..., half:]
        stays, bent = (second, first) if self.flip else (first, second)
        moved, log_slope = self.bend(bent, self.net(stays), back)
        pair = (moved, stays) if self.flip else (stays, moved)
        return torch.cat(pair, -1), log_slope.sum(-1)


class InverseAutoregressive(_Remembering):
    r"""$y_d = g_d \, x_d + (1 - g_d) \, m_d$ with $(m_d, g_d)$ a function of $x_{<d}$.

    Forward in one pass, and backward in D of them. The gates $g$ are in (0, 1), so the
    log-determinant is the sum of their logarithms. Then the order is turned round, so that
    the next layer begins with the element that this one knew most about.

    Args:
        net: An autoregressive network from $(*, D)$ to the means and the logits of the gates,
            $(*, 2, D)$.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        arXiv:1606.04934.
    """

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""$y$ and $\log |\det \partial y / \partial x|$, in one pass."""
        mean, logit = self.net(x).unbind(-2)
        gate = logit.sigmoid()
        return (gate * x + (1 - gate) * mean).flip(-1), F.logsigmoid(logit).sum(-1)

    def backward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""$x$ and $\log |\det \partial y / \partial x|$, an element at each pass."""
        y = y.flip(-1)
        x = torch.zeros_like(y)
        for d in range(y.shape[-1]):
            mean, logit = (part[..., d] for part in self.net(x).unbind(-2))
            gate = logit.sigmoid()
            element = (y[..., d] - (1 - gate) * mean) / gate
            x = torch.cat([x[..., :d], element.unsqueeze(-1), x[..., d + 1 :]], -1)
        return x, F.logsigmoid(self.net(x).unbind(-2)[1]).sum(-1)


def affine_bend(value: Tensor, parameters: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    r"""$y = x e^s + t$, with $s$ kept within (-2, 2)."""
    shift, raw = parameters.unbind(-1)
    log_scale = MOST_LOG_SCALE * torch.tanh(raw / MOST_LOG_SCALE)
    if back:
        return (value - shift) * (-log_scale).exp(), -log_scale
    return value * log_scale.exp() + shift, log_scale


def spline_bend(value: Tensor, parameters: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    r"""A monotonic rational-quadratic spline within (-5, 5), and the identity outside.

    Of its $P = 3 K - 1$ parameters K are for widths, K for heights, and K - 1 for the slopes at
    the inner knots; where they are zero it is the identity.

    References:
        Neural Spline Flows (Durkan et al., 2019), arXiv:1906.04032.
    """
    bins = (parameters.shape[-1] + 1) // 3
    # With the bins in front whatever is done with them is done with vectors as long as the batch.
    shape = parameters.shape[:-1]
    parameters = parameters.reshape(math.prod(shape), -1).t().contiguous().reshape(-1, *shape)
    widths, heights, slopes = parameters.split([bins, bins, bins - 1])
    x_knots, y_knots = _knots(widths), _knots(heights)
    inner = LEAST + (1 - LEAST) * F.softplus(slopes + ONE)
    ends = torch.ones_like(inner[:1])
    slopes = torch.cat([ends, inner, ends])

    within = value.clamp(-BOUND, BOUND)
    bin_of = (within >= (y_knots if back else x_knots)[1:-1]).sum(0, keepdim=True)
    x, x_end = _pick(x_knots, bin_of), _pick(x_knots, bin_of + 1)
    y, y_end = _pick(y_knots, bin_of), _pick(y_knots, bin_of + 1)
    slope, slope_end = _pick(slopes, bin_of), _pick(slopes, bin_of + 1)
    width, height = x_end - x, y_end - y
    mean_slope = height / width
    bulge = slope + slope_end - 2 * mean_slope

    if back:
        share = _solve(within - y, height, mean_slope, slope, bulge)
        moved = x + share * width
    else:
        share = (within - x) / width
        rise = mean_slope * share.square() + slope * share * (1 - share)
        moved = y + height * rise / (mean_slope + bulge * share * (1 - share))

    rest = 1 - share
    rate = slope_end * share.square() + 2 * mean_slope * share * rest + slope * rest.square()
    log_slope = 2 * mean_slope.log() + rate.log() - 2 * (mean_slope + bulge * share * rest).log()
    inside = value.abs() < BOUND
    moved = torch.where(inside, moved, value)
    return moved, torch.where(inside, -log_slope if back else log_slope, 0.0)


def _solve(rise: Tensor, height: Tensor, mean: Tensor, slope: Tensor, bulge: Tensor) -> Tensor:
    """The share of a bin's width at which its spline has risen so far: a quadratic's root."""
    a = height * (mean - slope) + rise * bulge
    b = height * slope - rise * bulge
    c = -mean * rise
    # At the ends of a bin rounding may take the discriminant of a perfect square below zero.
    root = (b.square() - 4 * a * c).clamp(min=1e-30).sqrt()
    return (2 * c / (-b - root)).clamp(0, 1)


def _knots(logits: Tensor) -> Tensor:
    """From the logits (K, *) of the bins' sizes to the knots (K + 1, *) from -5 to 5."""
    sizes = LEAST + (1 - LEAST * len(logits)) * logits.softmax(0)
    inner = 2 * BOUND * sizes.cumsum(0)[:-1] - BOUND
    end = torch.full_like(inner[:1], BOUND)
    return torch.cat([-end, inner, end])


def _pick(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(0, index).squeeze(0)

r"""Priors that are normalising flows: a standard normal, pushed through learned bijections.

Training asks for the density of the guide's draws, so the way back, from $z$ to the noise, is
the one that counts. Coupling layers are as fast in either direction.
"""

__all__ = ["FlowPrior", "RealNVPPrior", "SplineFlowPrior"]

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyrovae.distributions import Coupling, Flow, affine_bend, spline_bend
from pyrovae.distributions.bijections import Within
from pyrovae.drawn import DrawnWeights, weight_ranks
from pyrovae.errors import InputError, shorten
from pyrovae.networks import MLP, near_zero


class FlowPrior(nn.Module):
    r"""The prior of $z = T_L \circ \dots \circ T_1(\epsilon)$, $\epsilon \sim \mathcal{N}(0, I)$.

    $$\log p(z) = \log \mathcal{N}(\epsilon \mid 0, I) - \sum_l \log |\det J_{T_l}|$$

    Args:
        latent_dim: The number $D$ of latent dimensions.
        transforms: Bijections of $(D,)$, such as those of `pyro.distributions.transforms` that
            can be inverted; those that are modules are trained.

    A configuration cannot name such transforms, so a run of them is loaded with the program given
    again: `pyrovae.load(run, program=...)`. Those of the presets below it can.

    Raises:
        InputError: If a transform is conditional, cannot be inverted, or is of another number of
            dimensions; it is tried on a few vectors.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), arXiv:1505.05770.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, transforms: Iterable[Any]) -> None:
        super().__init__()

        self.latent_dim = latent_dim
        self.transforms = _checked(transforms, latent_dim)
        self.trained = nn.ModuleList(t for t in self.transforms if isinstance(t, nn.Module))
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self._ranks = weight_ranks(self)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        weights = DrawnWeights(self, self._ranks)
        return _flow(self.loc, self.transforms, weights, partial(self._in_place, weights))

    @contextmanager
    def _in_place(self, weights: DrawnWeights) -> Iterator[None]:
        """Puts weights in place of others, and has the transforms forget what those mapped."""
        with weights.in_place() as are_others:
            if are_others:
                _forget(self.transforms)
            try:
                yield
            finally:
                if are_others:
                    _forget(self.transforms)


class RealNVPPrior(nn.Module):
    r"""A flow of affine coupling layers; it starts as a standard normal.

    Each layer scales and shifts one half of $z$ by what a network makes of the other half, the
    halves in turn. Log-scales are kept within (-2, 2).

    Args:
        latent_dim: The number $D \ge 2$ of latent dimensions.
        layers: The number of coupling layers.
        hidden: The width of each layer's network.

    Raises:
        InputError: If there are fewer than two dimensions, or no layer.

    References:
        Density estimation using Real NVP (Dinh et al., 2017), arXiv:1605.08803.
        On the Necessity and Effectiveness of Learning the Prior of Variational Auto-Encoder
        (Xu et al., 2019), arXiv:1905.13452.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, *, layers: int = 8, hidden: int = 128) -> None:
        super().__init__()

        self.latent_dim = latent_dim
        self.layers = layers
        self.hidden = hidden
        self.nets = _networks(latent_dim, layers, hidden, parameters=2)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self._ranks = weight_ranks(self)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        couplings = [
            Coupling(net, affine_bend, flip=bool(i % 2)) for i, net in enumerate(self.nets)
        ]
        return _flow(self.loc, couplings, DrawnWeights(self, self._ranks))


class SplineFlowPrior(nn.Module):
    r"""A flow of neural-spline coupling layers; it starts as a standard normal.

    As `RealNVPPrior`, with a monotonic rational-quadratic spline in place of scale and shift. It
    bends within (-5, 5), and is the identity outside.

    Args:
        latent_dim: The number $D \ge 2$ of latent dimensions.
        layers: The number of coupling layers.
        bins: The number of bins of each spline.
        hidden: The width of each layer's network.

    Raises:
        InputError: If there are fewer than two dimensions or bins, or no layer.

    References:
        Neural Spline Flows (Durkan et al., 2019), arXiv:1906.04032.
    """

    loc: Tensor

    def __init__(
        self, latent_dim: int, *, layers: int = 4, bins: int = 8, hidden: int = 128
    ) -> None:
        super().__init__()

        if bins < 2:
            raise InputError(f"A spline of {bins} bins cannot bend.", "Give at least 2.")

        self.latent_dim = latent_dim
        self.layers = layers
        self.bins = bins
        self.hidden = hidden
        self.nets = _networks(latent_dim, layers, hidden, parameters=3 * bins - 1)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self._ranks = weight_ranks(self)

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        couplings = [
            Coupling(net, spline_bend, flip=bool(i % 2)) for i, net in enumerate(self.nets)
        ]
        return _flow(self.loc, couplings, DrawnWeights(self, self._ranks))


def _flow(
    loc: Tensor, transforms: list[Any], weights: DrawnWeights, within: Within | None = None
) -> Flow:
    """Standard normal noise around a location, through bijections that have these weights."""
    noise = dist.Normal(loc.expand(weights.batch_shape + loc.shape), 1.0).to_event(1)
    return Flow(noise, transforms, weights.in_place if within is None else within)


def _forget(transforms: Iterable[Any]) -> None:
    """Has bijections forget the last pair that they mapped: they know it by its objects alone."""
    for transform in transforms:
        if isinstance(transform, Transform):
            transform._cached_x_y = None, None
            _forget(getattr(transform, "parts", ()))


def _checked(transforms: Iterable[Any], latent_dim: int) -> list[Any]:
    """The transforms, if each maps vectors of so many dimensions there and back."""
    if not isinstance(transforms, Iterable):
        raise InputError(
            f"The transforms are a single {type(transforms).__name__}.", "Give a list of them."
        )
    stack = list(transforms)
    for transform in stack:
        if reason := _fault(transform, latent_dim):
            raise InputError(
                f"The transform {type(transform).__name__} {reason}.",
                f"Take one of {latent_dim} dimensions that has an inverse and needs no context, "
                f"such as pyro.distributions.transforms.affine_coupling({latent_dim}).",
            )
    return stack


def _fault(transform: Any, latent_dim: int) -> str:
    """What keeps a transform from mapping vectors there and back; empty where nothing does."""
    if not isinstance(transform, Transform):
        return "is no transform by itself"
    if not isinstance(transform, nn.Module):
        return _fault_in_use(transform, latent_dim, torch.zeros(()))
    training = transform.training
    try:
        like = next(transform.parameters(), torch.zeros(()))
        return _fault_in_use(transform.eval(), latent_dim, like)
    finally:
        transform.train(training)


@torch.no_grad()
def _fault_in_use(transform: Any, latent_dim: int, like: Tensor) -> str:
    """The same, by some vectors of the dtype and on the device of a tensor."""
    z = torch.linspace(-1, 1, 3 * latent_dim).reshape(3, latent_dim).to(like)
    try:
        moved = transform(z)
        if moved.shape != z.shape:
            return f"makes vectors of {moved.shape[-1]} dimensions out of {latent_dim}"
    except Exception as error:
        return f"maps no vectors of {latent_dim} dimensions ({shorten(error)})"
    try:
        moved = moved.clone()  # as what was not drawn, nor remembered
        transform.log_abs_det_jacobian(transform.inv(moved), moved)
    except Exception as error:
        return f"cannot be inverted ({type(error).__name__}: {shorten(error)})"
    return ""


def _networks(latent_dim: int, layers: int, hidden: int, *, parameters: int) -> nn.ModuleList:
    """A network for each layer, from the half that stays to the parameters of the other."""
    if latent_dim < 2 or layers < 1:
        raise InputError(
            f"A flow of {layers} coupling layers over {latent_dim} dimensions couples nothing.",
            "Give latent_dim at least 2 and layers at least 1.",
        )
    half = latent_dim // 2
    nets = nn.ModuleList()
    for layer in range(layers):
        stays, bent = (latent_dim - half, half) if layer % 2 else (half, latent_dim - half)
        made = MLP((stays,), (bent, parameters), hidden=(hidden, hidden))
        nets.append(near_zero(made))
    return nets

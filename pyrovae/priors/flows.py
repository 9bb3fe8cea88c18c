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

from pyrovae.checks import check_whole
from pyrovae.distributions import Coupling, Flow, Stack, affine_bend, spline_bend
from pyrovae.distributions.bijections import Within
from pyrovae.drawn import DrawnWeights, weight_ranks
from pyrovae.errors import InputError
from pyrovae.networks import MLP, near_zero


class FlowPrior(nn.Module):
    r"""The prior of $z = T_L \circ \dots \circ T_1(\epsilon)$, $\epsilon \sim \mathcal{N}(0, I)$.

    $$\log p(z) = \log \mathcal{N}(\epsilon \mid 0, I) - \sum_l \log |\det J_{T_l}|$$

    What the transforms hold, and those within them, is the prior's. Modules and each
    `nn.Parameter` are trained; other tensors, such as the order of a `Permute`, are buffers:
    saved, loaded and moved with the rest. Only what a function closes over is not found.

    A draw that is scored under the distribution that it is of costs one pass: a distribution
    remembers what it has mapped, and after a step another is to be made.

    In training a `BatchNorm` goes by the mean and variance of the values that are scored, which
    are to have shape $(N, D)$ with $N > 1$, those of one particle; a loss is then no bound. In
    evaluation it goes by its running averages, and the prior is a density.

    Args:
        latent_dim: The number $D$ of latent dimensions.
        transforms: Bijections of $(D,)$, such as those of `pyro.distributions.transforms` that
            can be inverted, the `.inv` of one, and those composed of several.

    A configuration cannot name such transforms, so a run of them is loaded with the program given
    again: `pyrovae.load(run, program=...)`. Those of the presets below it can.

    Raises:
        InputError: If a transform is conditional, cannot be inverted, or is of another number of
            dimensions; it is tried on a few vectors. Or if it holds a tensor that cannot be
            saved with it: in a list, or one that needs a gradient and is no `nn.Parameter`.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015), arXiv:1505.05770.
    """

    loc: Tensor

    def __init__(self, latent_dim: int, transforms: Iterable[Any]) -> None:
        super().__init__()

        check_whole(latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self._stack = Stack(transforms, latent_dim)
        self.transforms = self._stack.transforms
        self.trained = nn.ModuleList(self._stack.modules)
        self._tensors: list[str] = []
        for i, (owner, attribute) in enumerate(self._stack.places):
            tensor = vars(owner)[attribute]
            name = f"tensor_{i}_{attribute}"
            self._tensors.append(name)
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:  # memory of its own, as a file of weights wants it
                self.register_buffer(name, tensor.clone(memory_format=torch.contiguous_format))
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self._ranks = weight_ranks(self)
        self._mapped_by: DrawnWeights | None = None

    def forward(self) -> dist.Distribution:
        """The prior, with batch shape $()$ and event shape $(D,)$."""
        weights = DrawnWeights(self, self._ranks)
        tensors = [getattr(self, name) for name in self._tensors]
        within = partial(self._in_place, weights, tensors)
        return _flow(self.loc, self.transforms, weights, within)

    @contextmanager
    def _in_place(self, weights: DrawnWeights, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Puts weights and tensors in their places; what was mapped by others is forgotten."""
        if self._mapped_by is not weights:
            self._stack.put(tensors)
            self._mapped_by = weights
        with weights.in_place():
            yield

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: no pair that was mapped, whose graph cannot be."""
        self._stack.forget()
        state: Any = super().__getstate__()
        return {**state, "_mapped_by": None}


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

        check_whole(least=2, bins=bins)

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


def _networks(latent_dim: int, layers: int, hidden: int, *, parameters: int) -> nn.ModuleList:
    """A network for each layer, from the half that stays to the parameters of the other."""
    check_whole(latent_dim=latent_dim, layers=layers, hidden=hidden)
    if latent_dim < 2:
        raise InputError(
            "Coupling layers over 1 dimension couple nothing.",
            "Give 2 or more latent dimensions, or take a GaussianMixture.",
        )
    half = latent_dim // 2
    nets = nn.ModuleList()
    for layer in range(layers):
        stays, bent = (latent_dim - half, half) if layer % 2 else (half, latent_dim - half)
        made = MLP((stays,), (bent, parameters), hidden=(hidden, hidden))
        nets.append(near_zero(made))
    return nets

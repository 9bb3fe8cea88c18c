r"""Encoders that are normalising flows, told by the observation how to bend."""

__all__ = ["IAFEncoder", "SplineFlowEncoder"]

import warnings
from functools import partial
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyrovae.checks import check_whole
from pyrovae.distributions import Coupling, Flow, InverseAutoregressive, spline_bend
from pyrovae.encoders.outputs import LOG_SCALE_BOUNDS, latent_dim_of
from pyrovae.errors import InputError
from pyrovae.networks import MLP, near_zero, smooth_clamp

# A gate that starts at 0.88 passes on most of what it is given (Kingma et al., 2016).
OPEN = 2.0
# A gate that closes altogether could not be passed backward.
GATE_BOUNDS = (-7.0, 7.0)


class IAFEncoder(nn.Module):
    r"""A Gaussian followed by inverse-autoregressive steps, $q(z \mid x)$ with correlations.

    $$\epsilon \sim \mathcal{N}(\mu(x), \mathrm{diag}(\sigma^2(x))), \qquad
    z_{(l+1), d} = g_d \, z_{(l), d} + (1 - g_d) \, m_d, \qquad
    (m_d, g_d) = f_d(z_{(l), <d}, h(x))$$

    with gates $g \in (0, 1)$, after which the order of the dimensions is turned round. The
    log-determinant of a step is $\sum_d \log g_d$. A draw and its density cost one pass;
    the density of another value is right, and costs D passes for each step.

    Args:
        net: A network mapping $(*, x)$ to $(*, 2 D + C)$: $\mu$, $\log \sigma$ and the context
            $h$. It must say its `out_shape`.
        layers: The number of steps.
        hidden: The width of each step's autoregressive network.
        context: The size C of the context.

    Raises:
        InputError: If the network fits no number of dimensions, or there is no step, or a size is
            below 1.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        arXiv:1606.04934.
    """

    # What the density of a value costs that is not its own draw.
    slow_density: ClassVar[str] = "a pass for every latent dimension"

    def __init__(
        self, net: nn.Module, *, layers: int = 2, hidden: int = 128, context: int = 32
    ) -> None:
        super().__init__()

        latent_dim = _latent_dim(net, layers, context, self.net_shape)
        check_whole(hidden=hidden)
        self.net = net
        self.layers = layers
        self.hidden = hidden
        self.context = context
        # Pyro warns of a single dimension, for which its network is right too.
        with warnings.catch_warnings(action="ignore"):
            self.nets = nn.ModuleList(
                ConditionalAutoRegressiveNN(
                    latent_dim,
                    context,
                    [max(hidden, latent_dim)],
                    permutation=torch.arange(latent_dim),  # pyright: ignore[reportArgumentType]
                    nonlinearity=nn.SiLU(),
                )
                for _ in range(layers)
            )

    @staticmethod
    def net_shape(latent_dim: int, *, context: int = 32) -> tuple[int, ...]:
        """What the network must put out for one example.

        Raises:
            InputError: If there is no context.
        """
        check_whole(context=context)
        return (2 * latent_dim + context,)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        base, context = _read(self.net(x), self.context)
        steps = [InverseAutoregressive(partial(_gates, net, context)) for net in self.nets]
        return Flow(base, steps)


class SplineFlowEncoder(nn.Module):
    r"""A Gaussian followed by neural-spline coupling layers that the observation directs.

    As fast for the density of any value as for a draw. It starts as the Gaussian. The splines
    bend within (-5, 5).

    Args:
        net: A network mapping $(*, x)$ to $(*, 2 D + C)$: $\mu$, $\log \sigma$ and a context. It
            must say its `out_shape`.
        layers: The number of coupling layers.
        bins: The number of bins of each spline.
        hidden: The width of each layer's network.
        context: The size C of the context.

    Raises:
        InputError: If the network fits no number of dimensions, or that is 1, or there is no
            layer, or there are fewer than two bins.

    References:
        Neural Spline Flows (Durkan et al., 2019), arXiv:1906.04032.
    """

    # What the density of a value costs that is not its own draw.
    slow_density: ClassVar[str] = "a pass through every coupling"

    def __init__(
        self,
        net: nn.Module,
        *,
        layers: int = 4,
        bins: int = 8,
        hidden: int = 128,
        context: int = 32,
    ) -> None:
        super().__init__()

        latent_dim = _latent_dim(net, layers, context, self.net_shape)
        check_whole(least=2, bins=bins)
        if latent_dim < 2:
            raise InputError(
                "Spline couplings over 1 dimension couple nothing.",
                "Give 2 or more latent dimensions, or take a MixtureEncoder.",
            )
        self.net = net
        self.layers = layers
        self.bins = bins
        self.hidden = hidden
        self.context = context
        half = latent_dim // 2
        self.nets = nn.ModuleList()
        for layer in range(layers):
            stays, bent = (latent_dim - half, half) if layer % 2 else (half, latent_dim - half)
            made = MLP((stays + context,), (bent, 3 * bins - 1), hidden=(hidden,))
            self.nets.append(near_zero(made))

    @staticmethod
    def net_shape(latent_dim: int, *, context: int = 32) -> tuple[int, ...]:
        """What the network must put out for one example.

        Raises:
            InputError: If there is no context.
        """
        check_whole(context=context)
        return (2 * latent_dim + context,)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior, with batch shape $(*)$ and event shape $(D,)$.

        Args:
            x: The observation, with shape $(*, x)$.
        """
        base, context = _read(self.net(x), self.context)
        couplings = [
            Coupling(partial(_bends, net, context), spline_bend, flip=bool(i % 2))
            for i, net in enumerate(self.nets)
        ]
        return Flow(base, couplings)


def _latent_dim(net: nn.Module, layers: int, context: int, net_shape: Any) -> int:
    check_whole(layers=layers, context=context)
    shape = getattr(net, "out_shape", None)
    if shape is None:
        raise InputError(
            f"A flow needs to know what a {type(net).__name__} puts out.",
            "Give it an attribute out_shape, as pyrovae.MLP has.",
        )
    return latent_dim_of(tuple(shape), partial(net_shape, context=context))


def _read(output: Tensor, context: int) -> tuple[dist.Distribution, Tensor]:
    """The Gaussian that a flow starts from, and the context that directs it."""
    latent_dim = (output.shape[-1] - context) // 2
    loc, log_scale, rest = output.split([latent_dim, latent_dim, context], -1)
    scale = smooth_clamp(log_scale, *LOG_SCALE_BOUNDS).exp()
    return dist.Normal(loc, scale).to_event(1), rest


def _gates(net: nn.Module, context: Tensor, value: Tensor) -> Tensor:
    mean, logit = net(value, _along(context, value))
    return torch.stack([mean, smooth_clamp(logit + OPEN, *GATE_BOUNDS)], -2)


def _bends(net: nn.Module, context: Tensor, stays: Tensor) -> Tensor:
    return net(torch.cat([stays, _along(context, stays)], -1))


def _along(context: Tensor, value: Tensor) -> Tensor:
    """The context, for every particle of a value."""
    return context.expand(*value.shape[:-1], context.shape[-1])

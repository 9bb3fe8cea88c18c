"""How an encoder reads what a network puts out."""

__all__ = ["LOG_SCALE_BOUNDS", "check_outputs", "latent_dim_of"]

import math
from collections.abc import Callable, Sequence

from torch import nn

from pyrovae.errors import InputError

# Bounds on log σ. In float32 they keep σ² and 1/σ² far from overflow, and they are wider than
# any posterior that data at a sensible scale can ask for.
LOG_SCALE_BOUNDS = (-7.0, 3.5)


def latent_dim_of(shape: Sequence[int], net_shape: Callable[[int], tuple[int, ...]]) -> int:
    """The number $D$ of latent dimensions for which `net_shape(D)` is `shape`.

    Args:
        shape: What a network puts out for one example.
        net_shape: What it must put out, which grows with $D$.

    Raises:
        InputError: If there is none.

    Example:
        >>> latent_dim_of((12,), lambda latent_dim: (3 * latent_dim,))
        4
    """
    latent_dim = 1
    while math.prod(net_shape(latent_dim)) < math.prod(shape):
        latent_dim += 1

    if net_shape(latent_dim) != tuple(shape):
        raise InputError(
            f"A network that puts out {tuple(shape)} fits no number of latent dimensions: "
            f"{latent_dim} would take {net_shape(latent_dim)}.",
            "Build it to put out the encoder's net_shape(latent_dim, ...).",
        )
    return latent_dim


def check_outputs(net: nn.Module, net_shape: Callable[[int], tuple[int, ...]]) -> None:
    """Refuses a network whose `out_shape`, where it has one, fits no `net_shape(D)`.

    Raises:
        InputError: If there is no such $D$.
    """
    shape = getattr(net, "out_shape", None)
    if shape is not None:
        latent_dim_of(shape, net_shape)

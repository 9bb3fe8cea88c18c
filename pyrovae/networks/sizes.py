"""The sizes that a network is given: shapes of inputs and outputs, widths of layers."""

__all__ = ["as_sizes", "check_strides"]

from collections.abc import Sequence

from pyrovae.checks import whole
from pyrovae.errors import InputError


def as_sizes(name: str, sizes: Sequence[int], *, dims: str = "") -> tuple[int, ...]:
    """Sizes as a tuple.

    Args:
        name: The argument that gives them.
        sizes: The sizes.
        dims: What their dimensions are to be; any if empty.

    Raises:
        InputError: If they are one number, of other dimensions, no whole numbers, or below 1.

    Example:
        >>> as_sizes("in_shape", [3, 17, 23], dims="C, H, W")
        (3, 17, 23)
    """
    if isinstance(sizes, int):
        raise InputError(f"{name} is {sizes}, and not a tuple.", f"Give ({sizes},).")
    made = tuple(sizes)
    if dims and len(made) != len(dims.split(",")):
        raise InputError(
            f"{name} is {made}, and this network's is to be ({dims}).",
            "Give data of these dimensions, or take an MLP, which has any.",
        )
    try:
        return tuple(whole(name, size) for size in made)
    except InputError:
        raise InputError(f"{name} is {made}.", "Give whole numbers of 1 or more.") from None


def check_strides(channels: Sequence[int], strides: Sequence[int]) -> None:
    """Refuses strides that are not one for each of the channels.

    Raises:
        InputError: If they are.
    """
    if len(channels) != len(strides):
        raise InputError(
            f"The strides are {tuple(strides)}, and the channels {tuple(channels)}.",
            "Give each of the channels a stride.",
        )

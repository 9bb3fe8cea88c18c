"""What parts ask of the numbers that they hand to a distribution."""

__all__ = ["check_box", "check_classes", "check_sphere"]

import math

from pyrovae.checks import check_whole
from pyrovae.errors import InputError


def check_box(low: float, high: float) -> None:
    """Refuses an interval that is empty or infinite.

    Raises:
        InputError: If `low` is not below `high`, or one of them is infinite.
    """
    if not -math.inf < low < high < math.inf:
        raise InputError(
            f"The box from {low} to {high} is empty, or of no density.",
            "Give a finite low that is below a finite high.",
        )


def check_sphere(dim: int) -> None:
    """Refuses the sphere in one dimension.

    Raises:
        InputError: If the number of dimensions is no whole one, or below 2.
    """
    check_whole(latent_dim=dim)
    if dim < 2:
        raise InputError(
            f"There is no sphere of directions in {dim} dimension.",
            "Give 2 or more latent dimensions.",
        )


def check_classes(dim: int, classes: int) -> None:
    """Refuses latent dimensions that are no whole number of one-hot codes.

    Raises:
        InputError: If they are not, or if there are fewer than 2 classes.
    """
    check_whole(latent_dim=dim)
    check_whole(least=2, classes=classes)
    if dim % classes:
        raise InputError(
            f"{dim} latent dimensions cannot be divided into codes of {classes} classes.",
            f"Give a multiple of {classes} latent dimensions, or another number of classes.",
        )

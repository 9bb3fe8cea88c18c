"""What parts ask of the numbers that they hand to a distribution."""

__all__ = ["check_box", "check_classes", "check_dim", "check_sphere", "check_temperature"]

import math

from pyrovae.errors import InputError


def check_dim(dim: int) -> None:
    """Refuses a latent of no dimension.

    Raises:
        InputError: If the number of dimensions is below 1.
    """
    if dim < 1:
        raise InputError(f"A latent of {dim} dimensions says nothing.", "Give 1 or more.")


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
        InputError: If the number of dimensions is below 2.
    """
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
    if classes < 2:
        raise InputError(f"A code of {classes} classes says nothing.", "Give 2 or more classes.")
    if dim < 1 or dim % classes:
        raise InputError(
            f"{dim} latent dimensions cannot be divided into codes of {classes} classes.",
            f"Give a multiple of {classes} latent dimensions, or another number of classes.",
        )


def check_temperature(temperature: float) -> None:
    """Refuses a relaxation at no temperature, or at an infinite one.

    Raises:
        InputError: If it is not above 0 and finite.
    """
    if not 0 < temperature < math.inf:
        raise InputError(
            f"The temperature {temperature} is not above 0 and finite.",
            "Give a positive number, such as 0.5.",
        )

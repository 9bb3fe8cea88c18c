"""Positive numbers that a likelihood shares between examples, such as a scale."""

__all__ = ["Positive", "check_scales"]

import math

import torch
from torch import Tensor, nn

from pyrovae.checks import check_finite
from pyrovae.errors import InputError
from pyrovae.networks import smooth_floor


class Positive(nn.Module):
    r"""One positive number, or one for each feature: fixed, or learned above a floor.

    Args:
        name: What it is, for errors.
        start: The number, or where it starts if it is learned.
        learn: Whether it is a parameter.
        low: The floor of a learned number.
        floor: The option that the floor is, for errors; None where there is no choice of it.
        shape: The shape of several.

    Raises:
        InputError: If it is infinite or not above its floor, or a learned one has a floor of 0
            or less.

    Example:
        >>> Positive("scale", 0.5, learn=True, low=1e-3)().item()
        0.5
    """

    def __init__(
        self,
        name: str,
        start: float,
        *,
        learn: bool,
        low: float,
        floor: str | None = None,
        shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()

        check_finite(above=0, **{floor or "low": low})
        if start == math.inf:
            raise InputError(f"The {name} is infinite.", f"Give a finite {name}.")
        least = low if learn else 0.0
        if not start > least:
            other = f", or a lower {floor}" if floor else ", or do not learn it"
            raise InputError(
                f"The {name} {start} is not above {least}.",
                f"Give a larger {name}{other * learn}.",
            )

        self.low = low
        self.learn = learn
        if learn:
            # The inverse of smooth_floor, so that training starts from `start` itself.
            gap = math.log(start) - math.log(low)
            first = math.log(start) + math.log(-math.expm1(-gap))
            self.log_value = nn.Parameter(torch.full(shape, first))
        else:
            log_value = torch.full(shape, math.log(start))
            self.register_buffer("log_value", log_value, persistent=False)

    def forward(self, rank: int = 0) -> Tensor:
        """The number, or numbers.

        Args:
            rank: How many dimensions of an observation share one number: one that was drawn, as
                a Bayesian decoder's, with batch dimensions, stands to the left of so many.
        """
        log_value = self.log_value
        if self.learn:
            log_value = smooth_floor(log_value, math.log(self.low))
        value = log_value.exp()
        return value.reshape(*value.shape, *[1] * rank) if value.dim() else value


def check_scales(low: float, high: float) -> None:
    """Refuses bounds that leave scales no room.

    Raises:
        InputError: If the floor is not above 0, or the ceiling not above it and finite.
    """
    if not 0 < low < high < math.inf:
        raise InputError(
            f"No scale is between the min_scale {low} and the max_scale {high}.",
            "Give a min_scale above 0, and a finite max_scale that is above it.",
        )

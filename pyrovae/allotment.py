"""What building a program out of a description may take, so that a wrong one is said in words."""

__all__ = ["Allotment"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.errors import InputError

# What any program may make while it is built, whatever its weights.
BYTES, TENSORS = 2**26, 10_000


class Allotment(TorchDispatchMode):
    """Refuses tensors that the weights of a run do not explain, before they are made.

    While it is entered, no tensor may be made that has four times the bytes of all the weights,
    and not more than a hundred for each of them.

    Args:
        weights: The weights that are to be loaded into what is built.

    Raises:
        InputError: At the first tensor that is too many or too large.

    Example:
        >>> import torch
        >>> with Allotment({"weight": torch.zeros(3)}):
        ...     torch.nn.Linear(10**12, 1)
        Traceback (most recent call last):
        pyrovae.errors.InputError: The configuration asks for a tensor of 4,000,000,000,000 ...
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()

        self.bytes = max(BYTES, 4 * sum(weight.nbytes for weight in weights.values()))
        self.left = TENSORS + 100 * len(weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs:  # what makes a tensor is told where
            size = func(*args, **{**kwargs, "device": "meta"}).nbytes
            self.left -= 1
            if size > self.bytes:
                raise _refusal(f"a tensor of {size:,} bytes")
            if self.left < 0:
                raise _refusal("too many tensors")
        return func(*args, **kwargs)


def _refusal(what: str) -> InputError:
    return InputError(
        f"The configuration asks for {what}, and the run's weights for none such.",
        "Restore the run's config.json, or give the program when the run is loaded.",
    )

r"""Networks in half the precision, probabilities in full."""

__all__ = ["PRECISIONS", "in_precision"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.errors import InputError

PRECISIONS = ("float32", "bf16")

# The layers of a network that are products of matrices, and where their bias goes.
_CHANNEL: dict[Any, int] = {
    torch.nn.functional.linear: -1,
    torch.nn.functional.conv1d: -2,
    torch.nn.functional.conv2d: -3,
    torch.nn.functional.conv3d: -4,
    torch.nn.functional.conv_transpose1d: -2,
    torch.nn.functional.conv_transpose2d: -3,
    torch.nn.functional.conv_transpose3d: -4,
}


def in_precision(precision: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose networks run in a precision.

    Under `bf16` the products in linear and convolutional layers are of bfloat16 matrices, with
    results in float32; biases, activations, draws and everything that is a probability stay in
    float32. `torch.autocast` would hand the results on in bfloat16, and log-probabilities would
    be computed in it.

    Raises:
        InputError: If there is no such precision.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise InputError(f"There is no precision {precision!r}.", f"Take one of {known}.")
    if precision == "float32":
        return function

    def run(*args: Any, **kwargs: Any) -> Any:
        with _BFloat16Products():
            return function(*args, **kwargs)

    return run


class _BFloat16Products(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _CHANNEL or len(args) < 2 or args[0].dtype != torch.float32:
            return func(*args, **kwargs)

        x, weight, *rest = args
        bias = rest.pop(0) if rest else kwargs.pop("bias", None)
        out: Tensor = func(x.bfloat16(), weight.bfloat16(), None, *rest, **kwargs).float()
        if bias is None:
            return out
        shape = [1] * out.dim()
        shape[_CHANNEL[func]] = -1
        return out + bias.view(shape)

r"""Matrix products in less than the precision of all else.

`bf16` is for the layers of networks alone: what they give and take is float32, and so is all that
is a probability. `tf32` is how a GPU multiplies matrices of float32, ten bits of each mantissa
at a time, and is for all products of a step.
"""

__all__ = ["PRECISIONS", "arithmetic", "check_device", "in_precision"]

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.errors import InputError

PRECISIONS = ("float32", "tf32", "bf16")

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
    if precision != "bf16":
        return function

    def run(*args: Any, **kwargs: Any) -> Any:
        with _BFloat16Products():
            return function(*args, **kwargs)

    return run


def check_device(precision: str, gpus: Collection[torch.device]) -> None:
    """Refuses a precision that the device of a step does not have.

    Args:
        precision: The precision.
        gpus: The GPUs that the step runs on.

    Raises:
        InputError: If there are none, and it takes one.
    """
    if precision == "tf32" and not gpus:
        raise InputError(
            "tf32 is arithmetic of a GPU, and the parameters are not on one.",
            "Take float32 or bf16, or another device.",
        )


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Multiplies matrices of float32 in a block as a precision says, and then as before."""
    if precision != "tf32":
        yield
        return
    # torch has an older setting, which Inductor reads, and whose reader fails where a newer one
    # says otherwise. To set the older sets both; one that cannot be read stays as it is set here,
    # and the newer rules.
    mkldnn: Any = torch.backends.mkldnn
    newer = [torch.backends.cuda.matmul, mkldnn.matmul]
    before = [place.fp32_precision for place in newer]
    older = None
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for place, value in zip(newer, before, strict=True):
            place.fp32_precision = value


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

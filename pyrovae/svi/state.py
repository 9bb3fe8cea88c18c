"""What a pass changes besides its results, to be wound back."""

__all__ = ["Copies", "State", "copies", "put_back"]

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import shared_noise

# Tensors, each with a copy of its values.
Copies = list[tuple[Tensor, Tensor]]


def copies(tensors: Iterable[Tensor]) -> Copies:
    """Tensors, each with a copy of the values that it has now."""
    return [(tensor, tensor.clone()) for tensor in tensors]


def put_back(kept: Copies, condition: Tensor) -> None:
    """Gives tensors their values back where a condition on the device holds."""
    for tensor, value in kept:
        tensor.copy_(torch.where(condition, value, tensor))


class State:
    """What a pass changes besides its results: the streams of noise, and buffers.

    Attributes:
        buffers: The buffers, each with its values.

    Args:
        devices: The CUDA devices that it draws noise on.
        buffers: What it changes.
        generators: What else of torch's it draws from.
        of_python: Whether Python's own and NumPy's noise are among it.
    """

    def __init__(
        self,
        devices: Iterable[torch.device] = (),
        buffers: Iterable[Tensor] = (),
        generators: Iterable[torch.Generator] = (),
        *,
        of_python: bool = False,
    ) -> None:
        self._devices, self._others = list(devices), list(generators)
        own = map(_cuda_generator, self._devices)
        self._generators = [torch.default_generator, *own, *self._others]
        self._of_python = _noise_of_python() if of_python else None
        self._noise = [generator.get_state() for generator in self._generators]
        self._shared_noise = shared_noise.state()
        self.buffers = copies(buffers)

    def has_drawn_in_python(self) -> bool:
        """Whether noise of Python's or NumPy's has been drawn since."""
        return self._of_python is not None and self._of_python != _noise_of_python()

    def leaves_noise_as(self, other: "State") -> bool:
        """Whether the streams of noise of the CPU go on as those of another state of the same."""
        pairs = zip(self._generators, self._noise, other._noise, strict=True)
        return all(
            torch.equal(own, others)
            for generator, own, others in pairs
            if generator.device.type == "cpu"
        )

    def after(self, passes: Callable[[], None]) -> "State":
        """The state with buffers as they are now, and the noise that passes leave from here on."""
        now = self._again()
        self.restore()
        passes()
        now.restore_buffers()
        return self._again()

    def _again(self) -> "State":
        """A state of the same, as all of it is now."""
        buffers = [buffer for buffer, _ in self.buffers]
        of_python = self._of_python is not None
        return State(self._devices, buffers, self._others, of_python=of_python)

    def restore(self) -> None:
        """Back to what it was."""
        for generator, state in zip(self._generators, self._noise, strict=True):
            generator.set_state(state)
        shared_noise.set_state(self._shared_noise)
        if self._of_python is not None:
            random.setstate(self._of_python[0])
            np.random.set_state(self._of_python[1])  # noqa: NPY002
        self.restore_buffers()

    def restore_buffers(self) -> None:
        """Buffers back to what they were."""
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)


def _noise_of_python() -> tuple[Any, Any]:
    """The streams that a program may draw from that torch knows nothing of."""
    of_numpy: Any = np.random.get_state()  # noqa: NPY002
    name, numbers, *rest = of_numpy
    return random.getstate(), (name, tuple(numbers.tolist()), *rest)


def _cuda_generator(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0]

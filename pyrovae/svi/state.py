"""What a pass changes besides its results, to be wound back."""

__all__ = ["State"]

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import shared_noise


class State:
    """What a pass changes besides its results: the streams of noise, and buffers.

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
        own = map(_cuda_generator, devices)
        self._generators = [torch.default_generator, *own, *generators]
        self._of_python = _noise_of_python() if of_python else None
        self._noise = [generator.get_state() for generator in self._generators]
        self._shared_noise = shared_noise.state()
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def has_drawn_in_python(self) -> bool:
        """Whether noise of Python's or NumPy's has been drawn since."""
        return self._of_python is not None and self._of_python != _noise_of_python()

    def keep_buffers(self, condition: Tensor) -> None:
        """Buffers back to what they were, where a condition on the device holds."""
        for buffer, value in self._buffers:
            buffer.copy_(torch.where(condition, value, buffer))

    def restore(self) -> None:
        """Back to what it was."""
        for generator, state in zip(self._generators, self._noise, strict=True):
            generator.set_state(state)
        shared_noise.set_state(self._shared_noise)
        if self._of_python is not None:
            random.setstate(self._of_python[0])
            np.random.set_state(self._of_python[1])  # noqa: NPY002
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)


def _noise_of_python() -> tuple[Any, Any]:
    """The streams that a program may draw from that torch knows nothing of."""
    of_numpy: Any = np.random.get_state()  # noqa: NPY002
    name, numbers, *rest = of_numpy
    return random.getstate(), (name, tuple(numbers.tolist()), *rest)


def _cuda_generator(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0]

r"""A second stream of noise, which all processes of a training share.

Processes that train one program on shares of one batch draw the latents of their own examples
from torch's generators, each by a seed of its own. A latent outside the plate `data` belongs to
no share: it is drawn from the shared stream, which all of them seed alike. An operation without
arguments exchanges the two streams; a graph captures it like any other, so that a captured
program changes streams where the program does.
"""

__all__ = ["exchange", "seed", "set_state", "state"]

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyrovae.randomness import draw_key

# By device what the generator there would go on from, were its stream the shared one.
_waiting: dict[torch.device, Tensor] = {}


def seed(*counters: int | str, device: torch.device) -> None:
    """Seeds the shared stream of the CPU and of a device by the counters."""
    key = draw_key(*counters)
    for place in {torch.device("cpu"), device}:
        _waiting[place] = torch.Generator(place).manual_seed(key).get_state()


def state() -> dict[torch.device, Tensor]:
    """What the shared stream is to go on from."""
    return dict(_waiting)


def set_state(state: dict[torch.device, Tensor]) -> None:
    """Puts the shared stream back to what `state` found."""
    _waiting.clear()
    _waiting.update(state)


def exchange() -> None:
    """Puts the stream that is not in use into torch's generators, and keeps the one that was."""
    _, operation = _registered()
    operation()


@cache
def _registered() -> tuple[torch.library.Library, Any]:
    """The operation `pyrovae::exchange_noise`, and the library that it lives as long as.

    It is tagged as a draw, and so keeps its place among them.
    """
    library = torch.library.Library("pyrovae", "FRAGMENT")
    library.define("exchange_noise() -> ()", tags=(torch.Tag.nondeterministic_seeded,))
    library.impl("exchange_noise", _exchange, "CompositeExplicitAutograd")
    return library, torch.ops.pyrovae.exchange_noise.default


def _exchange() -> None:
    for device, waiting in _waiting.items():
        generator = _generator(device)
        _waiting[device] = generator.get_state()
        generator.set_state(waiting)


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[device.index or 0]

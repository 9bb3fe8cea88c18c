"""What objects hold besides parameters, and a graph has in it as it was: numbers, words, tensors.

A script may change them between two steps, as the weight of a warm-up or a mask. What a run itself
changes, as a counter or a cache, is its own affair, and is left to the comparisons with Python.
"""

__all__ = ["Held", "held_by"]

from typing import Any, NamedTuple

from torch import Tensor, nn

_SEEN = (bool, int, float, complex, str, type(None), Tensor)


class Held(NamedTuple):
    """An attribute of an object, or a buffer of a module, and what it was.

    Attributes:
        place: What it is looked up in.
        name: Its name there.
        value: What it was.
    """

    place: dict[str, Any]
    name: str
    value: Any

    @property
    def is_as_it_was(self) -> bool:
        """Whether it is that still: a tensor the same one, whatever its values are now."""
        now = self.place.get(self.name)
        if now is self.value:
            return True
        if isinstance(now, Tensor) or type(now) is not type(self.value):
            return False
        return now == self.value


def held_by(thing: object) -> list[Held]:
    """What an object holds at present: its plain attributes, but for a module's mode, and the
    buffers of a module.
    """
    buffers = thing._buffers if isinstance(thing, nn.Module) else {}
    return [
        Held(place, name, value)
        for place in (vars(thing), buffers)
        for name, value in place.items()
        if isinstance(value, _SEEN) and name != "training"
    ]

"""What a program has besides parameters, and a graph has in it as it was: numbers, words, tensors.

A script may change them between two steps, as the weight of a warm-up or a mask. What a run itself
changes, as a counter or a cache, is its own affair, and is left to the comparisons with Python.
"""

__all__ = ["Held", "held_by", "held_under"]

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

_SEEN = (bool, int, float, complex, str, type(None), np.generic, Tensor)
# Whose classes have no attributes that a script would change.
_OTHERS = {"builtins", "torch", "pyro", "pyrovae"}


class Held(NamedTuple):
    """A number, a word or a tensor that a program can read, and what it was.

    Attributes:
        name: What it is called.
        read: What it is now.
        value: What it was.
    """

    name: str
    read: Callable[[], Any]
    value: Any

    @property
    def is_as_it_was(self) -> bool:
        """Whether it is that still: a tensor the same one, whatever its values are now."""
        now = self.read()
        if now is self.value:
            return True
        if isinstance(now, Tensor) or type(now) is not type(self.value):
            return False
        return bool(now == self.value)


def held_by(thing: object) -> list[Held]:
    """What an object holds at present: its plain attributes and those of its class, but for a
    module's mode, the buffers of a module, and how many of all there are.
    """
    own = vars(thing)
    found = held_under(own, (name for name in own if name != "training"))
    if isinstance(thing, nn.Module):
        found += held_under(thing._buffers, thing._buffers)
    for base in type(thing).__mro__:
        if base.__module__.partition(".")[0] not in _OTHERS:
            names = [n for n, value in vars(base).items() if isinstance(value, _SEEN)]
            found += [
                Held(name, partial(getattr, thing, name, None), getattr(thing, name))
                for name in names
                if not name.startswith("__") and name not in own
            ]
    return [*found, Held("attributes", partial(_extent, thing), _extent(thing))]


def held_under(place: Mapping[str, Any], names: Any) -> list[Held]:
    """What is held under some of the names of a dictionary."""
    return [
        Held(name, partial(place.get, name), place[name])
        for name in names
        if isinstance(place[name], _SEEN)
    ]


def _extent(thing: object) -> int:
    """How many attributes an object has, and of a module buffers, parameters and hooks."""
    count = len(vars(thing))
    if isinstance(thing, nn.Module):
        count += len(thing._buffers) + len(thing._parameters)
        count += len(thing._forward_pre_hooks) + len(thing._forward_hooks)
    return count

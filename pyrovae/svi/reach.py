"""What a model, a guide or a loss reads besides its arguments, as far as that can be told.

A function may be a method, an object that is called, or one in the wrapping of a handler or of
`functools.partial`; and it reads names of its own file and of the functions that it stands in.
"""

__all__ = ["Reach", "reach_of"]

from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyrovae.svi.attributes import Held, held_by, held_under

# More than this a function of a user's does not reach for.
MOST_REACHED = 200


class Reach(NamedTuple):
    """What functions reach.

    Attributes:
        modules: The modules.
        held: The numbers, words and tensors of other objects, and those under names.
    """

    modules: list[nn.Module]
    held: list[Held]


def reach_of(*functions: Any) -> Reach:
    """What functions, or objects that are called, reach at present."""
    modules: list[nn.Module] = []
    held: list[Held] = []
    waiting, seen = list(functions), dict[int, Any]()
    while waiting and len(seen) < MOST_REACHED:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing  # kept, so that its number stays its own
        if isinstance(thing, nn.Module):
            modules.append(thing)
        elif isinstance(thing, MethodType):
            waiting += [thing.__self__, thing.__func__]
        elif isinstance(thing, partial):
            waiting += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, FunctionType):
            held += [*_under_names(thing), *_in_cells(thing)]
            waiting += [*_named(thing), getattr(thing, "__wrapped__", None)]
        elif hasattr(thing, "__dict__") and not isinstance(thing, type | ModuleType | Tensor):
            held += held_by(thing)
            waiting += [value for value in vars(thing).values() if isinstance(value, nn.Module)]
            waiting.append(type(thing).__call__ if callable(thing) else None)
    return Reach(modules, held)


def _under_names(function: FunctionType) -> list[Held]:
    """What stands in a function's file under the names that it reads."""
    place = function.__globals__
    return held_under(place, [name for name in function.__code__.co_names if name in place])


def _in_cells(function: FunctionType) -> Iterator[Held]:
    """What stands in the functions that a function stands in."""
    for name, cell in _cells(function):
        yield from (
            one._replace(read=partial(getattr, cell, "cell_contents", None))
            for one in held_under({name: cell.cell_contents}, [name])
        )


def _named(function: FunctionType) -> Iterator[Any]:
    """The functions of the same file, modules and other objects that a function names."""
    place = function.__globals__
    for name in function.__code__.co_names:
        value = place.get(name)
        if not isinstance(value, FunctionType) or value.__globals__ is place:
            yield value
    yield from (cell.cell_contents for _, cell in _cells(function))


def _cells(function: FunctionType) -> Iterator[tuple[str, CellType]]:
    """The variables of other functions that a function reads, but for those without a value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cell.cell_contents  # noqa: B018
        except ValueError:
            continue
        yield name, cell

r"""The noise of a program that is no latent: the masks of a dropout, say.

A density $q(z \mid x)$ that is asked for once more has to be that by which z was drawn. So what
a guide draws outside of its sites is noted as it is drawn, and given to its next run again.
"""

__all__ = ["OwnNoise"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pyrovae.operations import is_draw, written


class _Drawn(NamedTuple):
    """What an operation drew.

    Attributes:
        call: What was called, on what kind of arguments.
        found: What it gave.
        into: What was in the tensors then that it writes to.
    """

    call: Any
    found: Any
    into: Sequence[Tensor]


class OwnNoise:
    """What a program draws by itself, outside of its sites, in the order of the draws."""

    def __init__(self) -> None:
        self._drawn: list[_Drawn] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A block whose draws are noted."""
        watch = _Watch(self._note)
        with _Sites(watch), watch:
            yield

    @contextmanager
    def given_again(self) -> Iterator[None]:
        """A block in which the program draws the same."""
        left = iter(self._drawn)

        def give(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _again(next(left, None), func, args, kwargs)

        watch = _Watch(give)
        with _Sites(watch), watch:
            yield

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = func(*args, **kwargs)
        into = [tensor.clone() for tensor in written(func, args, kwargs)]
        self._drawn.append(_Drawn(_call(func, args, kwargs), _copied(found), into))
        return found


def _again(drawn: _Drawn | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation drew before."""
    if drawn is None or drawn.call != _call(func, args, kwargs):  # another way through the program
        return func(*args, **kwargs)
    if func is torch.ops.aten.native_dropout.default:
        # Downstream of latents it may be given other numbers to leave out.
        (given, share, *_), (_, mask) = args, drawn.found
        return given * mask * (0.0 if share == 1 else 1 / (1 - share)), mask.clone()
    targets = written(func, args, kwargs)
    for target, value in zip(targets, drawn.into, strict=True):
        target.copy_(value)
    if func._schema.returns[0].alias_info is not None:
        return targets[0]
    return _copied(drawn.found)


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation and its arguments, of tensors the shapes."""
    given = tree_map(lambda a: a.shape if isinstance(a, Tensor) else a, (args, kwargs))
    return func, *given


def _copied(found: Any) -> Any:
    """Copies, which what comes after the operation may write to."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, found)


class _Watch(TorchDispatchMode):
    """Has draws made by a function in place of the operation, unless it is paused."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make
        self.paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        make = self.make if is_draw(func) and not self.paused else None
        return func(*args, **(kwargs or {})) if make is None else make(func, args, kwargs or {})


class _Sites(Messenger):
    """Pauses a watch while sites draw, or parameters are made."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def _pyro_sample(self, msg: Any) -> None:
        self.watch.paused = True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.watch.paused = False

    _pyro_param, _pyro_post_param = _pyro_sample, _pyro_post_sample

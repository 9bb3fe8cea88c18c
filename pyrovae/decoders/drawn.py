r"""Networks that work when a value is scored or drawn, and not when their likelihood is made.

Pyro scores values once a model is over. Weights that it drew, those of a Bayesian decoder, are no
longer in their places by then: they are noted while they are, and put back for the work.
"""

__all__ = ["DrawnScorer", "weight_ranks"]

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

_NOTHING: Any = object()


def weight_ranks(module: nn.Module, *, besides: str) -> dict[str, int]:
    """The number of dimensions of each weight of a module that was just made.

    Args:
        module: The module.
        besides: The name of a part of it whose work is done at once.
    """
    weights = module.named_parameters()
    return {name: w.dim() for name, w in weights if not name.startswith(f"{besides}.")}


class DrawnScorer:
    """A scorer with the weights that it has now.

    Args:
        module: A module that is a `Scorer`.
        ranks: Its `weight_ranks`. What dimensions a weight has to the left of these are of the
            batch.
    """

    def __init__(self, module: Any, ranks: Mapping[str, int]) -> None:
        self._module = module
        # Layers that were put in place of others have weights of other names.
        found = {name: _weight(module, name) for name in ranks}
        self._weights = {name: w for name, w in found.items() if w is not None}
        self._shapes = [weight.shape[: -ranks[name]] for name, weight in self._weights.items()]

    def expand(self, context: Tensor, rank: int) -> tuple[Tensor, torch.Size]:
        """What values are given, under the batch dimensions of the weights too, and all of these.

        Args:
            context: The context, with shape $(*, c)$.
            rank: How many dimensions $c$ has.
        """
        split = context.dim() - rank
        batch_shape = torch.broadcast_shapes(context.shape[:split], *self._shapes)
        return context.expand(batch_shape + context.shape[split:]), batch_shape

    def logits(self, value: Tensor, context: Tensor) -> Tensor:
        """The scorer's, by these weights."""
        with self._in_place():
            return self._module.logits(value, context)

    def generate(self, context: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """The scorer's, by these weights."""
        with self._in_place():
            return self._module.generate(context, draw)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        # An entry of __dict__ is found before a parameter or a site of that name, whatever the
        # module has of these in the meantime. Weights that are in their places stay there, so
        # that several threads may ask for what is no draw.
        before: list[tuple[dict[str, Any], str, Any]] = []
        for path, weight in self._weights.items():
            owner, name = _place(self._module, path)
            own = owner.__dict__
            if own.get(name) is not weight and owner._parameters.get(name) is not weight:
                before.append((own, name, own.get(name, _NOTHING)))
                own[name] = weight
        try:
            yield
        finally:
            for own, name, value in before:
                if value is _NOTHING:
                    del own[name]
                else:
                    own[name] = value


def _weight(module: nn.Module, name: str) -> Tensor | None:
    """A weight of a module, if it has one of that name."""
    try:
        return attrgetter(name)(module)
    except AttributeError:
        return None


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer that has a weight, and the weight's name there."""
    path, _, own = name.rpartition(".")
    return module.get_submodule(path), own

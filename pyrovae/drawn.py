r"""Networks that work when a value is scored or drawn, and not when its distribution is made.

Pyro scores values once a model is over. Weights that it drew, those of a Bayesian decoder or
prior, are no longer in their places by then: they are noted while they are, and put back for the
work.
"""

__all__ = ["DrawnWeights", "weight_ranks"]

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

_NOTHING: Any = object()


def weight_ranks(module: nn.Module, *, besides: str = "") -> dict[str, int]:
    """The number of dimensions of each weight of a module that was just made.

    Args:
        module: The module.
        besides: The name of a part of it whose work is done at once, if there is one.
    """
    weights = module.named_parameters()
    return {name: w.dim() for name, w in weights if name.split(".")[0] != besides}


class DrawnWeights:
    """The weights that a module has now.

    Args:
        module: The module.
        ranks: Its `weight_ranks`. What dimensions a weight has to the left of these are of the
            batch.

    Attributes:
        batch_shape: The batch dimensions of all weights together.
    """

    batch_shape: torch.Size

    def __init__(self, module: nn.Module, ranks: Mapping[str, int]) -> None:
        self._module = module
        # Layers that were put in place of others have weights of other names.
        found = {name: _weight(module, name) for name in ranks}
        self._weights = {name: w for name, w in found.items() if w is not None}
        self.batch_shape = torch.broadcast_shapes(
            *(weight.shape[: weight.dim() - ranks[name]] for name, weight in self._weights.items())
        )

    @contextmanager
    def in_place(self) -> Iterator[bool]:
        """Puts these weights where the module looks for them: whether it had others there."""
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
            yield bool(before)
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

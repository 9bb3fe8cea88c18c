r"""Transforms that were given: what is within them, and whether they map there and back.

Those of torch and Pyro are made once and used in every step. What they hold is not always a
module's, and what they have mapped they remember: both are found here, by their attributes.
"""

__all__ = ["Stack"]

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.utils import lazy_property

from pyrovae.errors import InputError, shorten


class Stack:
    """Bijections of $(D,)$, one after another, and those within them.

    Args:
        transforms: The bijections.
        dim: The number $D$ of dimensions.

    Attributes:
        transforms: The bijections.
        modules: The modules among what they are made of, none of them within another.
        places: Where tensors are attributes of them: the owner, and the name of the attribute.

    Raises:
        InputError: If one cannot be inverted, is of another number of dimensions, or holds a
            tensor that cannot be saved with it.
    """

    def __init__(self, transforms: Iterable[Any], dim: int) -> None:
        self.transforms = _listed(transforms)
        reached = list(_reach(self.transforms))
        # Before a trial leaves any more.
        self.places = [(owner, name) for owner, name, _ in _tensors(reached)]
        _check(self.transforms, dim)
        self.modules = [t for t in self.transforms if isinstance(t, nn.Module)]
        for part in reached:
            inner = (module for outer in self.modules for module in outer.modules())
            if isinstance(part, nn.Module) and all(part is not module for module in inner):
                self.modules.append(part)
        self._bijections = [part for part in reached if isinstance(part, Transform)]

    def put(self, tensors: Iterable[Tensor]) -> None:
        """Puts tensors in these places, and forgets what those that were there have mapped."""
        for (owner, name), tensor in zip(self.places, tensors, strict=True):
            vars(owner)[name] = tensor
        self.forget()

    def forget(self) -> None:
        """Has the bijections forget the last pair that they mapped.

        They know it by its objects alone, whatever the weights were by which it was mapped, and
        it has a graph.
        """
        for bijection in self._bijections:
            own = vars(bijection)
            for name, value in list(own.items()):
                if isinstance(value, Tensor | tuple) and _is_remembered(bijection, name):
                    if "cache" not in name:
                        own.pop(name, None)  # a property, worked out when it is asked for
                    else:
                        own[name] = (None, None) if name == "_cached_x_y" else None


def _listed(transforms: Iterable[Any]) -> list[Any]:
    if not isinstance(transforms, Iterable):
        raise InputError(
            f"The transforms are a single {type(transforms).__name__}.", "Give a list of them."
        )
    return list(transforms)


def _reach(values: Iterable[Any], met: dict[int, Any] | None = None) -> Iterator[Any]:
    """Everything that transforms are made of, once each, from the outside to the inside."""
    met = {} if met is None else met
    for value in values:
        if id(value) not in met:
            met[id(value)] = value
            yield value
            yield from _reach(_contents(value), met)


def _contents(value: Any) -> Iterable[Any]:
    if isinstance(value, Transform | Distribution):
        own = {k: v for k, v in vars(value).items() if not _is_remembered(value, k)}
        modules = value.children() if isinstance(value, nn.Module) else ()
        # An inverse that was asked for comes last: it holds nothing more, and changes no order.
        return [*own.values(), *modules, vars(value).get("_inv")]
    if isinstance(value, nn.Module):
        return value.children()
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    return value if isinstance(value, list | tuple) else ()


def _tensors(reached: Iterable[Any]) -> Iterator[tuple[Any, str, Tensor]]:
    """The tensors that are attributes of transforms, with these and their names there."""
    for owner in reached:
        if isinstance(owner, Transform | Distribution):
            for name, value in vars(owner).items():
                if isinstance(value, Tensor) and not _is_remembered(owner, name):
                    yield owner, name, value


def _is_remembered(owner: Any, name: str) -> bool:
    """Whether an attribute is what a transform has worked out, and not what it was given."""
    # By the names that torch, Pyro and our own give to pairs that were mapped.
    return isinstance(owner, Transform) and (
        name == "_inv"
        or "cache" in name
        or isinstance(getattr_static(type(owner), name, None), lazy_property | cached_property)
    )


def _check(transforms: list[Any], latent_dim: int) -> None:
    """Raises an `InputError` unless each maps vectors of so many dimensions there and back."""
    for transform in transforms:
        if reason := _fault(transform, latent_dim):
            raise InputError(
                f"The transform {type(transform).__name__} {reason}.",
                f"Take one of {latent_dim} dimensions that has an inverse and needs no context, "
                f"such as pyro.distributions.transforms.affine_coupling({latent_dim}).",
            )


def _fault(transform: Any, latent_dim: int) -> str:
    """What keeps a transform from mapping vectors there and back; empty where nothing does."""
    if not isinstance(transform, Transform):
        return "is no transform by itself"
    reached = list(_reach([transform]))
    for part in reached:
        if isinstance(part, list | tuple | partial):
            if any(isinstance(value, Tensor) for value in _contents(part)):
                return f"holds a tensor in a {type(part).__name__}, so it cannot be saved with it"
    tensors = list(_tensors(reached))
    for _, name, tensor in tensors:
        if tensor.requires_grad and not isinstance(tensor, nn.Parameter):
            return f"holds a tensor {name!r} that needs a gradient and is no nn.Parameter"

    modules = {part: part.training for part in reached if isinstance(part, nn.Module)}
    weights = [p for module in modules for p in module.parameters()] + [t for *_, t in tensors]
    like = next((w for w in weights if w.is_floating_point()), torch.zeros(()))
    try:
        for module in modules:
            module.eval()
        return _fault_in_use(transform, latent_dim, like)
    finally:
        for module, training in modules.items():
            module.training = training


@torch.no_grad()
def _fault_in_use(transform: Any, latent_dim: int, like: Tensor) -> str:
    """The same, by some vectors of the dtype and on the device of a tensor."""
    z = torch.linspace(-1, 1, 3 * latent_dim).reshape(3, latent_dim).to(like)
    try:
        moved = transform(z)
        if moved.shape != z.shape:
            return f"makes values of shape {tuple(moved.shape[1:])} out of vectors of {latent_dim}"
    except Exception as error:
        return f"maps no vectors of {latent_dim} dimensions ({shorten(error)})"
    try:
        moved = moved.clone()  # as what was not drawn, nor remembered
        transform.log_abs_det_jacobian(transform.inv(moved), moved)
    except Exception as error:
        return f"cannot be inverted ({type(error).__name__}: {shorten(error)})"
    return ""

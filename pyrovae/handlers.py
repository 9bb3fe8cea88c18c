"""Effect handlers and store-keeping that Pyro lacks."""

__all__ = [
    "fill_improper",
    "isolated_store",
    "kl_weight",
    "plate_but",
    "register",
    "roomy_plates",
    "share_noise",
    "unconditioned",
    "unregistered",
    "unvalidated",
]

import itertools
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae import shared_noise
from pyrovae.distributions import Weighted, is_improper, unweighted
from pyrovae.errors import InputError

_registering: ContextVar[bool] = ContextVar("registering", default=True)
_names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_numbers = itertools.count()


def register(module: nn.Module) -> None:
    """Lets a stock `pyro.infer.SVI` find the trainable parameters of a module.

    It is `pyro.module` under a name that no other module of the process bears, copies
    included. With a fixed name the second of two modules would silently never train: the
    parameter store would hand Pyro's optimizer the tensors of the first.

    Raises:
        InputError: If the store, loaded from elsewhere, holds other tensors under the name.
    """
    if not _registering.get():
        return
    if module not in _names:
        _names[module] = f"{type(module).__name__}_{next(_numbers)}"

    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            full_name = f"{_names[module]}$$${name}"
            pyro.param(full_name, parameter)
            # What `param` returns, a handler may have changed, as `render_model` does.
            if pyro.get_param_store()[full_name] is not parameter:
                raise InputError(
                    f"Pyro's parameter store already holds another tensor as {full_name!r}.",
                    "Call pyro.clear_param_store(), and restore weights with load_state_dict.",
                )


@contextmanager
def unregistered() -> Iterator[None]:
    """Runs a block in which `register` does nothing: pyrovae itself has no need of the store."""
    token = _registering.set(False)
    try:
        yield
    finally:
        _registering.reset(token)


@contextmanager
def isolated_store(*, empty: bool = False) -> Iterator[None]:
    """Leaves Pyro's global parameter store afterwards as it was before.

    Args:
        empty: Whether the block starts from an empty store rather than from a copy.
    """
    store = pyro.get_param_store()
    with store.scope(None if empty else store.get_state()):
        yield


class _FillImproper(Messenger):
    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.like = like

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and is_improper(msg["fn"]):
            msg["value"] = self.like.new_zeros(msg["fn"].shape())


def fill_improper(like: Tensor) -> Any:
    """A handler that gives latents of an improper prior, which nothing can draw, zeros.

    It is for looking at a model that no guide has run before.

    Args:
        like: A tensor whose dtype and device the zeros take.
    """
    return _FillImproper(like)


class _Uncondition(UnconditionMessenger):
    def _pyro_sample(self, msg: Any) -> None:
        # Drawn, the value of `pyro.deterministic` would stand once in every row of its plate.
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


def unconditioned(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model that draws what it observes, and leaves what it notes as it is.

    It is `poutine.uncondition` where there is no `pyro.deterministic`.

    Args:
        model: The model.
    """
    return _Uncondition()(model)


class _ShareNoise(Messenger):
    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _is_shared(self, msg: Any) -> bool:
        return not (
            msg["is_observed"]
            or isinstance(msg["fn"], _Subsample)
            or any(frame.name == self.plate for frame in msg["cond_indep_stack"])
        )

    def _pyro_sample(self, msg: Any) -> None:
        if self._is_shared(msg):
            shared_noise.exchange()

    def _pyro_post_sample(self, msg: Any) -> None:
        if self._is_shared(msg):
            shared_noise.exchange()


def share_noise(plate: str) -> Any:
    """A handler that draws the latents outside a plate from the stream that processes share.

    Args:
        plate: The plate whose examples are shared out among the processes.
    """
    return _ShareNoise(plate)


class _PlateBut(PlateMessenger):
    def __init__(self, name: str, size: int, dim: int, but: Collection[str]) -> None:
        super().__init__(name, size, dim=dim)
        self.but = but

    def _process_message(self, msg: Any) -> None:
        if msg["name"] not in self.but:
            super()._process_message(msg)


def plate_but(name: str, size: int, *, dim: int, but: Collection[str]) -> Any:
    """A plate round all sites but some, which are drawn once for all of it.

    Args:
        name: The name of the plate.
        size: Its size.
        dim: Its dimension.
        but: The names of the sites that do not stand in it.
    """
    return _PlateBut(name, size, dim, but)


class _RoomyPlates(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample) and msg["value"] is None:
            if fn.subsample_size is not None and fn.subsample_size > fn.size:
                msg["value"] = torch.arange(fn.subsample_size, device=fn.device) % fn.size


def roomy_plates() -> Any:
    """A handler by which a plate may have more rows than its size: its own again and again.

    It is for a plate of the training data, `pyro.plate("data", N, subsample_size=len(x))`, where
    there are more rows than these and no density is to be scaled.
    """
    return _RoomyPlates()


class _KLWeight(Messenger):
    def __init__(self, weight: float | Tensor, sites: Collection[str] | None) -> None:
        super().__init__()
        self.weight = weight
        self.sites = sites
        self._met: set[str] = set()

    def __enter__(self) -> Any:
        self._met = set()
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if kind is None and (unmet := sorted({*(self.sites or ())} - self._met)):
            named = ", ".join(map(repr, sorted(self._met))) or "none"
            warnings.warn(
                f"kl_weight weighs no site {unmet[0]!r}: the latents here are {named}. Name one "
                "of these, or leave the handler out where there is none of them.",
                stacklevel=3,
            )

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        self._met.add(msg["name"])
        if self.sites is not None and msg["name"] not in self.sites:
            return
        if isinstance(self.weight, Tensor) and self.weight.dim():
            fn = msg["fn"]
            # Within another weight of dimensions, as beta's, the two multiply.
            own = fn.weight if isinstance(fn, Weighted) else 1.0
            msg["fn"] = Weighted(unweighted(fn), own * self.weight)
        else:
            msg["scale"] = msg["scale"] * self.weight


def kl_weight(weight: float | Tensor, *, sites: Collection[str] | None = None) -> Any:
    r"""A handler that multiplies the log-probability of latent sites by a weight.

    Around a model and around its guide it turns the ELBO into
    $E_q \log p(x \mid z) - \beta \, \mathrm{KL}(q \,\|\, p)$. `poutine.scale` round the
    latent sites does the same, except that it refuses a weight of zero, where a warm-up starts.
    Both sides need it: `TraceMeanField_ELBO` reads the weight of the guide's sites alone, and
    `Trace_ELBO` that of each side for itself.

    Args:
        weight: The weight $\beta \ge 0$, a number or a 0-dimensional tensor; or one weight for
            each dimension of a latent whose prior and posterior both factorise, a tensor $(D,)$.
        sites: The latent sites that are meant, by their names, or a single one; all if None. One
            that is not met in the block is warned of.

    Raises:
        InputError: If the weight is a negative number, or none that is finite.
    """
    is_real = isinstance(weight, Real) and 0 <= float(weight) < math.inf
    if not isinstance(weight, Tensor) and not is_real:
        raise InputError(f"A weight of {weight} weighs no KL.", "Give a finite one of 0 or more.")
    return _KLWeight(weight, [sites] if isinstance(sites, str) else sites)


@contextmanager
def unvalidated() -> Iterator[None]:
    """No validation in a block, nor by distributions that were made when there was some.

    Every distribution that is expanded keeps the setting of that time, as the priors of a
    `PyroSample` do: it would go on reading each of its values from the device.
    """
    check = Distribution._validate_sample
    Distribution._validate_sample = lambda self, value: None
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution._validate_sample = check

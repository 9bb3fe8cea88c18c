r"""What pyrovae asks of a program, and what it can learn from any program's traces.

**The contract.** A *program* is any object with a `model`, a `guide` and parameters: an
`nn.Module` with these two methods, or any object whose attributes are the two functions and the
modules that they use.

- `model(x)` samples its latents and observes x under `pyro.plate("data", len(x))`. It need only
  use `len(x)` and `obs=x`, so that `poutine.uncondition(model)` on a template of n rows draws n
  new examples. `guide(x)` samples the latents under the same plate.
- Where a signature has `y`, labels are passed. A model or a guide may itself be a module, whose
  signature is its forward pass's, or a guide of `pyro.infer.autoguide` of a model.
- Which sites are latent or observed, local (inside the plate `data`) or global, is read from
  the trace. The site `"x"`, or else the only observed one, is the observation.
- Global latents, which all examples share, want a plate of the size of the training data,
  `pyro.plate("data", N, subsample=x)`: their KL counts once in it. What is measured of an example
  is an average over their draws by the guide, see `pyrovae.evaluation`, and what is generated is
  of one of these draws, or of their mean.
- A latent whose prior is improper, or that the guide puts at a single point, leaves no bound on
  log p(x): such a program is trained and shown, and not evaluated.
- Whatever `poutine.scale`, beta or a warm-up do enters the training loss alone. Everything
  here is at weight 1, in nats, one number per example. `poutine.mask` counts everywhere.
"""

__all__ = [
    "PLATE",
    "BatchLike",
    "Program",
    "Site",
    "as_module",
    "at_weight_one",
    "check_parts",
    "data_frame",
    "device_of",
    "dtype_of",
    "evaluating",
    "examples_first",
    "is_auxiliary",
    "is_part",
    "labels",
    "masked_at_sites",
    "mean_of",
    "observation_site",
    "sample_sites",
    "sites",
    "takes_labels",
    "trace_pair",
    "with_latents",
]

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from inspect import Signature, signature, unwrap
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyrovae.data import Batch
from pyrovae.devices import send
from pyrovae.distributions import outer_mask, unweighted
from pyrovae.errors import InputError
from pyrovae.handlers import isolated_store, roomy_plates, unregistered

PLATE = "data"
Site = Any  # a dict; Pyro types its traces more loosely than they are


BatchLike = Batch | Tensor | np.ndarray


class Program(Protocol):
    """Any object with a model and a guide over the same latent sites."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


# ── Running a program ────────────────────────────────────────────────────────────────────────


def as_module(program: Program) -> nn.Module:
    """The parameters of a program, as one module.

    Raises:
        InputError: If the program lacks a model or a guide, or is a class of programs.
    """
    if isinstance(program, type):
        raise InputError(
            f"{program.__name__} is a class, and no program.", "Give an object that is one of it."
        )
    name = type(program).__name__
    if not all(callable(getattr(program, method, None)) for method in ("model", "guide")):
        raise InputError(
            f"A {name} has no methods model and guide.",
            "Give a program: an nn.Module with both methods, such as pyrovae.VAE.",
        )

    if isinstance(program, nn.Module):
        return program

    module = nn.Module()
    for key, value in getattr(program, "__dict__", {}).items():
        owner = _owner_of(value)
        if owner is not None and not any(owner is other for other in module.children()):
            setattr(module, key, owner)
    return module


def _owner_of(value: Any) -> nn.Module | nn.Parameter | None:
    """The parameters behind an attribute: it may be a method of a module, or under handlers."""
    found = _unhandled(value) if callable(value) else value
    found = getattr(found, "__self__", found)
    return found if isinstance(found, nn.Module | nn.Parameter) else None


def dtype_of(program: Program) -> torch.dtype:
    """The floating point type of a program's parameters, which it takes its data in."""
    return _tensor_of(program).dtype


def device_of(program: Program) -> torch.device:
    """Where a program's parameters are, or its buffers if it has none."""
    return _tensor_of(program).device


def _tensor_of(program: Program) -> Tensor:
    """A tensor of real numbers that stands for those of a program."""
    module = as_module(program)
    tensors = (*module.parameters(), *module.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


def check_parts(**parts: object) -> None:
    """Refuses parts of a program that cannot be called, or are classes of parts.

    Raises:
        InputError: Naming the part.
    """
    for name, part in parts.items():
        if isinstance(part, type):
            raise InputError(
                f"The {name} is the class {part.__name__}, and not a module made of it.",
                f"Give {part.__name__}(...).",
            )
        if not callable(part):
            raise InputError(
                f"The {name} is a {type(part).__name__}, and not a module.",
                "Give an nn.Module whose forward pass returns a distribution.",
            )


def brought_to(program: Program, given: BatchLike) -> Batch:
    """Examples in the type of a program's parameters, and where training has moved these.

    Raises:
        InputError: If they are no numbers, or there is none.
    """
    x, y = given if isinstance(given, Batch) else (given, None)
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Examples of the class {type(x).__name__} are no tensor.",
            "Give x, or pyrovae.Batch(x, y) with labels.",
        ) from error
    if not x.dim() or not len(x):
        raise InputError("There is no example.", "Give at least one.")
    device = device_of(program)
    x = send(x.to(dtype_of(program)), device)
    return Batch(x, None if y is None else send(torch.as_tensor(y), device))


def takes_labels(function: Callable[..., Any]) -> bool:
    """Whether a model or a guide has y in its signature.

    That of a module is its forward pass's; that of a guide which Pyro makes, its model's.
    """
    return "y" in _signature_of(function).parameters


def _signature_of(function: Callable[..., Any]) -> Signature:
    function = _unhandled(function)
    # A copy of a guide of Pyro's has lost its model, and runs without arguments.
    if isinstance(function, AutoGuide) and function._model is not None:
        return _signature_of(function.model)
    if isinstance(function, EasyGuide):
        return _signature_of(function.guide)
    return signature(function.forward if isinstance(function, nn.Module) else function)


def _unhandled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without the handlers of Pyro round it, which tell nothing of its signature."""
    function = unwrap(function)
    if isinstance(function, partial):
        handler, handled = (*function.args, None, None)[:2]
        if isinstance(handler, Messenger) and handled is not None:
            return _unhandled(handled)
    return function


def labels(function: Callable[..., Any], batch: Batch) -> dict[str, Tensor | None]:
    """The keyword arguments of a model or a guide: its labels, where its signature has y.

    Raises:
        InputError: If it needs labels and the batch has none.
    """
    if not takes_labels(function):
        return {}

    parameter = _signature_of(function).parameters["y"]
    if batch.y is None and parameter.default is parameter.empty:
        raise InputError(
            "The program needs labels y and the data have none.",
            "Give data with labels, or make y optional in model and guide.",
        )
    return {"y": batch.y}


def trace_pair(
    program: Program, batch: Batch, *, within: AbstractContextManager[Any] | None = None
) -> tuple[Trace, Trace]:
    """Runs the guide, then the model on the guide's latents: (model trace, guide trace).

    Args:
        program: The program.
        batch: The examples.
        within: A context round both, such as a plate of particles.
    """
    with within or nullcontext():
        guide_trace = poutine.trace(program.guide).get_trace(
            batch.x, **labels(program.guide, batch)
        )
        model = poutine.replay(program.model, trace=guide_trace)
        model_trace = poutine.trace(model).get_trace(batch.x, **labels(program.model, batch))

    return at_weight_one(model_trace), at_weight_one(guide_trace)


def with_latents(model: Callable[..., Any], latents: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A model whose latents are given, those of examples as `examples_first` has them."""
    return _Given(latents)(model)


class _Given(Messenger):
    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.values:
            return
        value, frame = self.values[msg["name"]], data_frame(msg)
        own, one = _shape_of_one(msg), tuple(value.shape[0 if frame is None else 1 :])
        # A distribution over sequences may leave their length open, as 1.
        if len(one) != len(own) or any(o not in (1, g) for o, g in zip(own, one, strict=True)):
            raise InputError(
                f"The latent {msg['name']!r} has the shape {own}, and values of shape "
                f"{tuple(value.shape)} are given.",
                "Give its own." if frame is None else f"Give them as {('N', *own)}.",
            )
        if frame is not None:
            value = value.movedim(0, frame.dim - msg["fn"].event_dim)
        msg["value"], msg["is_observed"] = value, True


def _shape_of_one(site: Site) -> tuple[int, ...]:
    """The shape of a latent of one example, or of one that all share: its plates, its event."""
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    return *(
        frames[dim].size if dim in frames else 1
        for dim in range(min(frames, default=0), 0)
        if dim not in frames or frames[dim].name != PLATE
    ), *site["fn"].event_shape


def at_weight_one(trace: Trace) -> Trace:
    """A trace without its plates' own sites and without weights on dimensions."""
    trace = masked_at_sites(prune_subsample_sites(trace))
    for site in sample_sites(trace).values():
        site["fn"] = unweighted(site["fn"])
    return trace


def masked_at_sites(trace: Trace) -> Trace:
    """A trace in which what is masked of latents is so by their sites, as `poutine.mask` has it.

    It counts nothing also where a distribution has the mask, but was drawn as any other.
    """
    for site in sites(trace, observed=False).values():
        site["fn"], mask = outer_mask(site["fn"])
        if mask is not None:
            site["mask"] = mask if site["mask"] is None else site["mask"] & mask
    return trace


@contextmanager
def evaluating(program: Program) -> Iterator[None]:
    """Runs a block without gradients, in evaluation mode, leaving no trace of it.

    Every submodule's training flag, Pyro's parameter store and torch's random generators are
    afterwards what they were. A plate of the training data may have more rows than these.
    """
    modules = list(as_module(program).modules())
    devices = {p.device for p in as_module(program).parameters() if p.device.type == "cuda"}
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
            unregistered(),
            isolated_store(),
            roomy_plates(),
            pyro.validation_enabled(False),
        ):
            yield
    finally:
        for module, flag in zip(modules, training, strict=True):
            module.training = flag


# ── Reading its traces ───────────────────────────────────────────────────────────────────────


def sample_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites of a trace by name, without those of `pyro.deterministic`."""
    nodes: dict[str, Site] = dict(trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


def sites(trace: Trace, *, observed: bool) -> dict[str, Site]:
    """The observed, or the latent, sample sites of a trace by name."""
    return {
        name: site for name, site in sample_sites(trace).items() if site["is_observed"] == observed
    }


def data_frame(site: Site) -> Any:
    """The plate `data` of a site, or None where the site stands outside it."""
    return next((f for f in site["cond_indep_stack"] if f.name == PLATE), None)


def examples_first(value: Tensor, site: Site) -> Tensor:
    """Values of a site inside the plate `data`, with its examples in the first dimension."""
    return value.movedim(data_frame(site).dim - site["fn"].event_dim, 0)


def observation_site(trace: Trace, *, given: Collection[str] = ()) -> Site:
    """The site of the observation x: the one named "x", or else the only observed one.

    Args:
        trace: A trace of the model, also one in which `poutine.uncondition` drew x.
        given: Latent sites that were conditioned on, which look observed.

    Raises:
        InputError: If none is named "x" and there are several.
    """
    observed = {
        name: site
        for name, site in sample_sites(trace).items()
        if (site["is_observed"] or site["infer"].get("was_observed")) and name not in given
    }
    if "x" not in observed and len(observed) != 1:
        raise InputError(
            f"None of the observed sites {sorted(observed)} is named 'x'.",
            "Name the observation of the model 'x'.",
        )
    return observed["x"] if "x" in observed else next(iter(observed.values()))


def is_part(found: Tensor, x: Tensor) -> bool:
    """Whether what a site observes are not all of the values of x."""
    return found.numel() < x.numel()


def mean_of(site: Site) -> Tensor | None:
    """The mean of a site's distribution, or None where it has none, such as a Cauchy's."""
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        return None
    return mean if torch.isfinite(mean).all() else None


def is_auxiliary(site: Site) -> bool:
    """Whether a guide's site only helps to make others, and has no counterpart in the model."""
    return bool(site["infer"].get("is_auxiliary"))

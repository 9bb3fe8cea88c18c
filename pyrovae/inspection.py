"""Inspection: a program is run on a few examples before the first step.

Its structure is read from these runs, so that nothing need be told, and what is wrong is said.
"""

__all__ = ["FEW", "check_parameters", "inspect_program"]

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import hmm
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.distributions import innermost, is_improper
from pyrovae.errors import InputError
from pyrovae.handlers import fill_improper
from pyrovae.programs import (
    PLATE,
    Program,
    Site,
    as_module,
    data_frame,
    evaluating,
    is_auxiliary,
    is_part,
    labels,
    observation_site,
    sample_sites,
    sites,
    trace_pair,
)
from pyrovae.structure import Structure, has_global_kl, structure_of, vectorizes
from pyrovae.supports import check_values
from pyrovae.tape import leaves_of

# How many examples it is read from.
FEW = 3
# Distributions over sequences that may leave the number of steps open, 1 in their event shape.
_OPEN = (hmm.HiddenMarkovModel, hmm.IndependentHMM, hmm.GaussianMRF)
# What torch says of a product of numbers of two types.
_TYPES = re.compile(r"same dtype|scalar type|types? .* should be the same")
# What Python says of a call with other arguments than a function takes.
_ARGUMENTS = re.compile(r"\(\) (missing|takes|got an unexpected|got multiple)")


def inspect_program(program: Program, batch: Batch) -> Structure:
    """Runs a program once on a few examples and reads its structure.

    Raises:
        InputError: If it cannot be run, samples from what is no distribution, observes nothing,
            observes outside the plate, has a latent of no number, or one in the guide that the
            model lacks, has in another size or cannot have drawn, has a likelihood of another
            shape than what it observes, or cannot explain these examples; if a plate takes a part
            of itself at random, or a guide of Pyro's has parameters for each example.
    """
    few = Batch(batch.x[:FEW], None if batch.y is None else batch.y[:FEW])
    with evaluating(program):
        try:
            _check_sizes(program, few)
        finally:  # whatever comes of parameters for other examples
            _check_amortised(program)
        model_trace, guide_trace = trace_pair(program, few)
        _check_sites(model_trace, guide_trace)
        structure = structure_of(model_trace, guide_trace, len(few.x))
        _check_likelihoods(model_trace)
        check_values(model_trace, guide_trace, few)
        whole = vectorizes(program, few, structure)
        shared = structure.global_latents
        return replace(
            structure,
            vectorizes=whole,
            vectorizes_examples=whole
            or (bool(shared) and vectorizes(program, few, structure, but=shared)),
            has_global_kl=has_global_kl(program, few, model_trace, guide_trace),
            observes_part=is_part(observation_site(model_trace)["value"], few.x),
        )


def check_parameters(program: Program, batch: Batch) -> None:
    """Refuses a parameter that no module of the program holds: training would miss it.

    Raises:
        InputError: If the model or the guide creates one with `pyro.param`, or uses one that is
            no attribute of the program; or if it has no probability for these examples.
    """
    held = {id(parameter) for parameter in as_module(program).parameters()}
    strays = _strays(program, batch, held)
    # What a run makes itself, to differentiate by it, is another tensor in the next.
    again = _strays(program, batch, held) if strays else []
    for stray in strays:
        if any(stray is other for other in again):
            raise InputError(
                f"The program uses a parameter of shape {tuple(stray.shape)} that is not its own.",
                "Keep the parameter, or the module it belongs to, as an attribute of the program.",
            )


def _strays(program: Program, batch: Batch, held: Collection[int]) -> list[Tensor]:
    """The tensors with a gradient in a run that are not among some."""
    with evaluating(program), torch.enable_grad():
        traces = trace_pair(program, batch)
        total: Any = 0.0
        for what, trace in zip(("model", "guide"), traces, strict=True):
            with _refusing(what, batch.x):
                total = total + trace.log_prob_sum()
        for name, value in _parameters(traces):
            if id(value.unconstrained()) not in held:
                raise InputError(
                    f"The program creates the parameter {name!r} with pyro.param, and no module "
                    "of it holds that.",
                    "Make it an nn.Parameter, or a PyroParam of a PyroModule, of the program.",
                )
    return [leaf for leaf in leaves_of(torch.as_tensor(total)) if id(leaf) not in held]


def _check_sizes(program: Program, batch: Batch) -> None:
    """Refuses parts that do not fit: run alone, each half shows its own sizes."""
    guide, model = poutine.trace(), poutine.trace()
    _run_alone(program.guide, "guide", batch, guide)
    try:
        _run_alone(program.model, "model", batch, model)
    finally:  # where the decoder failed, a latent of another shape is why
        _check_shapes(model.trace, prune_subsample_sites(guide.trace))


def _check_amortised(program: Program) -> None:
    """Refuses a guide of Pyro's that has parameters for each example that it first saw."""
    for guide in as_module(program).modules():
        if not isinstance(guide, AutoGuide) or guide.prototype_trace is None:
            continue
        if PLATE in getattr(guide, "amortized_plates", ()):
            continue
        for name, site in guide.prototype_trace.iter_stochastic_nodes():
            if data_frame(site) is not None:
                raise InputError(
                    f"{type(guide).__name__} has parameters for each of the examples that it was "
                    f"first run on, of the latent {name!r}, and none for others.",
                    f"Write a guide that infers {name!r} from x, as an encoder does; or train on "
                    "all examples at once with pyrovae.CompiledSVI, as with Pyro's SVI.",
                )


def _check_shapes(model_trace: Trace, guide_trace: Trace) -> None:
    priors = sample_sites(model_trace)
    latents = sites(guide_trace, observed=False)
    for name, p in priors.items():
        if name not in latents and is_improper(p["fn"]):
            raise InputError(
                f"The latent {name!r} has an improper prior, and the guide does not sample it: "
                "nothing can draw it.",
                "Sample it in the guide, or give it a proper prior.",
            )
    for name, q in latents.items():
        p = priors.get(name)
        if p is not None and p["fn"].event_shape != q["fn"].event_shape:
            raise InputError(
                f"The latent {name!r} has the shape {tuple(p['fn'].event_shape)} in the model and "
                f"{tuple(q['fn'].event_shape)} in the guide.",
                "Give prior and encoder one latent dimension.",
            )


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuses a model that observes nothing of an example, and latents that are alone or empty."""
    observed = sites(model_trace, observed=True)
    if not observed:
        raise InputError("The model observes nothing.", "Give its likelihood obs=x.")
    observation_site(model_trace)

    for name, site in observed.items():
        if data_frame(site) is None:
            raise InputError(
                f"The observed site {name!r} is outside the plate 'data'.",
                "Put it inside pyro.plate('data', len(x)).",
            )

    for name, site in sites(guide_trace, observed=False).items():
        if name not in model_trace and not is_auxiliary(site):
            raise InputError(
                f"The guide samples {name!r}, which the model does not.",
                "Give the latent the same name in model and guide.",
            )
        if not site["value"].numel():
            shape = tuple(site["fn"].event_shape)
            raise InputError(
                f"The latent {name!r} has the shape {shape}, and no value.",
                "Give it a dimension or more.",
            )


def _check_likelihoods(model_trace: Trace) -> None:
    """Refuses a likelihood of another shape than the values that it observes.

    One of a single number would be broadcast to all of them: another model, and trained silently.
    """
    for name, site in sites(model_trace, observed=True).items():
        fn, value = site["fn"], site["value"]
        if isinstance(innermost(fn), _OPEN):
            continue
        plates = {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}
        split = value.dim() - len(fn.event_shape)
        fits = split >= 0 and value.shape[split:] == fn.event_shape
        if not (fits and _within(plates, value.shape[:split])):
            event, one = tuple(fn.event_shape), tuple(value.shape[-min(plates, default=0) :])
            raise InputError(
                f"The likelihood of {name!r} has the event shape {event}, and what it observes of "
                f"one example the shape {one}.",
                f"Let all of an example be one event, as by .to_event({len(one)})."
                if len(event) < len(one)
                else f"Build the decoder and its network for an observation of shape {one}.",
            )
        if not _within(plates, fn.batch_shape):
            raise InputError(
                f"The likelihood of {name!r} has the batch shape {tuple(fn.batch_shape)}, of "
                f"which its plates have the dimensions {sorted(plates)} alone.",
                "Give each of the others a plate, or make it part of the event by .to_event().",
            )


def _within(plates: dict[int, int], batch_shape: torch.Size) -> bool:
    """Whether every dimension that repeats anything is that of a plate."""
    dims = range(-len(batch_shape), 0)
    return all(s in (1, plates.get(d, 1)) for d, s in zip(dims, batch_shape, strict=True))


def _run_alone(function: Callable[..., Any], what: str, batch: Batch, tracer: Any) -> None:
    whole = _WholePlates(what, len(batch.x))
    with _refusing(what, batch.x), whole, _OfDistributions(what), fill_improper(batch.x), tracer:
        function(batch.x, **labels(function, batch))


class _OfDistributions(Messenger):
    """Refuses to sample from what is none of Pyro's distributions."""

    def __init__(self, what: str) -> None:
        super().__init__()

        self.what = what

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        # One of torch's can be observed, and not drawn from.
        if not isinstance(fn, torch.distributions.Distribution | dist.Distribution) or not (
            msg["is_observed"] or callable(fn)
        ):
            raise InputError(
                f"The {self.what} samples {msg['name']!r} from {_called(fn)}, and not from a "
                "distribution of Pyro's.",
                "Let what makes it (a prior, a decoder, an encoder) return one, such as "
                "pyro.distributions.Normal(loc, scale).to_event(1).",
            )


class _WholePlates(Messenger):
    """Refuses plates that take a part of themselves at random.

    What is measured of an example would be that of a part of it, or of others.
    """

    def __init__(self, what: str, rows: int) -> None:
        super().__init__()
        self.what = what
        self.rows = rows

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not isinstance(fn, _Subsample) or msg["value"] is not None or not fn.subsample_size:
            return
        name, is_data = msg["name"], msg["name"] == PLATE
        if is_data and fn.subsample_size != self.rows:
            raise InputError(
                f"The plate {name!r} of the {self.what} takes {fn.subsample_size} of {self.rows} "
                "examples at random.",
                f"Observe all that are given, under pyro.plate({name!r}, len(x)), and let "
                "batch_size say how many these are.",
            )
        if not is_data and fn.subsample_size < fn.size:
            raise InputError(
                f"The plate {name!r} of the {self.what} takes {fn.subsample_size} of its "
                f"{fn.size} at random, and what is measured would be that of a part.",
                "Leave subsample_size out; or train with pyrovae.CompiledSVI, as with Pyro's SVI.",
            )


def _called(thing: object) -> str:
    """What a thing is that was given for a distribution of Pyro's."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    of_torch = isinstance(thing, torch.distributions.Distribution)
    return f"a {type(thing).__name__}{' of torch.distributions' if of_torch else ''}"


@contextmanager
def _refusing(what: str, x: Tensor) -> Iterator[None]:
    """Says what to do about an error of a model or a guide that is torch's."""
    try:
        yield
    except InputError:
        raise  # of a part, which says what to do about it
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, TypeError) and not _ARGUMENTS.search(str(error)):
            raise  # it is within a part, where its traceback says more
        raise InputError(
            f"The {what} cannot be run on x of shape {tuple(x.shape)} "
            f"({str(error) or type(error).__name__}).",
            _remedy(error, what, x),
        ) from error


def _remedy(error: Exception, what: str, x: Tensor) -> str:
    if "on the same device" in str(error):
        return (
            "Have it make tensors where x is, as by x.new_ones(3) or torch.ones(3, "
            "device=x.device), and hold the others as buffers of the module; or train on the CPU."
        )
    if _TYPES.search(str(error)):
        if not x.is_floating_point():
            return "Give x in the type of the parameters, or let the networks take x.float()."
        return f"Bring the program to the type of x, as by program.to({x.dtype}), or x to its own."
    if "inside plate" in str(error):  # Pyro's, of a distribution without an event shape
        return (
            "Let every distribution be of the event shape of one example, by .to_event(); in a "
            "decoder the network says it, by an attribute out_shape."
        )
    if isinstance(error, TypeError):
        return (
            "Let every part take what it is given: of a VAE the prior nothing, the decoder z and "
            "the encoder x."
        )
    if what == "guide":
        return "Make its networks for x of this shape."
    return (
        "Check that the prior's draws are what the decoder takes, and that it is made for x of "
        "this shape."
    )


def _parameters(traces: Iterable[Trace]) -> Iterator[tuple[str, Any]]:
    for trace in traces:
        nodes: dict[str, Site] = dict(trace.nodes)
        yield from ((n, site["value"]) for n, site in nodes.items() if site["type"] == "param")

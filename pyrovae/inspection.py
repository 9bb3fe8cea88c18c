r"""What one run of a program shows of it, and which programs cannot be trained.

The structure is read from the traces of a few examples: nothing is told, and what is wrong is said
before the first step.
"""

__all__ = ["FEW", "Structure", "check_parameters", "inspect_program"]

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import hmm
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.data import Batch
from pyrovae.distributions import innermost, is_improper, is_point
from pyrovae.errors import InputError
from pyrovae.handlers import fill_improper, plate_but
from pyrovae.programs import (
    Program,
    Site,
    as_module,
    at_weight_one,
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
from pyrovae.supports import check_values

# How many examples it is read from.
FEW = 3
# Distributions over sequences that may leave the number of steps open, 1 in their event shape.
_OPEN = (hmm.HiddenMarkovModel, hmm.IndependentHMM, hmm.GaussianMRF)
# What Python says of a call with other arguments than a function takes.
_ARGUMENTS = re.compile(r"\(\) (missing|takes|got an unexpected|got multiple)")


@dataclass(frozen=True)
class Structure:
    """What one run of a program shows of it.

    Attributes:
        latents: The latent sites that the guide samples inside the plate, in its order.
        global_latents: The latent sites outside the plate, which all examples share.
        observed: The observed sites.
        full_size: The plate's traced size: what a loss summed by Pyro is divided by to get nats
            per example. It is None where the plate has the size of the batch.
        depth: The number of batch dimensions that the program's plates take up.
        vectorizes: Whether the program runs under particles as one more dimension on the left.
        vectorizes_examples: Whether it does where its global latents are drawn once for all of
            these.
        improper: The latent sites whose prior is improper, so that the model draws no examples,
            but for global ones that the guide samples.
        points: The latent sites that the guide puts at a single point, without a density, but
            for global ones.
        charged: The global latents that the loss has a term of: it should count once for all
            examples.
        has_global_kl: Whether the KL of the global latents that the guide samples is defined.
        observes_part: Whether the site x is but a part of an example, and other sites the rest.
    """

    latents: tuple[str, ...]
    global_latents: tuple[str, ...]
    observed: tuple[str, ...]
    full_size: int | None
    depth: int
    vectorizes: bool
    improper: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    charged: tuple[str, ...] = ()
    has_global_kl: bool = False
    vectorizes_examples: bool = False
    observes_part: bool = False

    @property
    def draws_examples(self) -> bool:
        """Whether what the model draws of x are examples."""
        return not (self.improper or self.observes_part)

    @property
    def has_bound(self) -> bool:
        """Whether log p(x) exists, and the guide's draws have densities that bound it.

        Given the global latents, which are the guide's wherever it samples them.
        """
        return not (self.improper or self.points)


def inspect_program(program: Program, batch: Batch) -> Structure:
    """Runs a program once on a few examples and reads its structure.

    Raises:
        InputError: If it cannot be run, samples from what is no distribution, observes nothing,
            observes outside the plate, has a latent in the guide that the model lacks, has in
            another size or cannot have drawn, has a likelihood of another shape than what it
            observes, or cannot explain these examples.
    """
    few = Batch(batch.x[:FEW], None if batch.y is None else batch.y[:FEW])
    with evaluating(program):
        _check_sizes(program, few)
        model_trace, guide_trace = trace_pair(program, few)
        structure = _structure(model_trace, guide_trace, len(few.x))
        _check_likelihoods(model_trace)
        check_values(model_trace, guide_trace, few)
        vectorizes = _vectorizes(program, few, structure)
        shared = structure.global_latents
        return replace(
            structure,
            vectorizes=vectorizes,
            vectorizes_examples=vectorizes
            or (bool(shared) and _vectorizes(program, few, structure, but=shared)),
            has_global_kl=_has_global_kl(program, few, model_trace, guide_trace),
            observes_part=is_part(observation_site(model_trace)["value"], few.x),
        )


def check_parameters(program: Program, batch: Batch) -> None:
    """Refuses a parameter that no module of the program holds: training would miss it.

    Raises:
        InputError: If the model or the guide creates one with `pyro.param`, or uses one that is
            no attribute of the program; or if it has no probability for these examples.
    """
    held = {id(parameter) for parameter in as_module(program).parameters()}
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

    for leaf in _leaves(torch.as_tensor(total)):
        if id(leaf) not in held:
            raise InputError(
                f"The program uses a parameter of shape {tuple(leaf.shape)} that is not its own.",
                "Keep the parameter, or the module it belongs to, as an attribute of the program.",
            )


def _check_sizes(program: Program, batch: Batch) -> None:
    """Refuses parts that do not fit: run alone, each half shows its own sizes."""
    guide, model = poutine.trace(), poutine.trace()
    _run_alone(program.guide, "guide", batch, guide)
    try:
        _run_alone(program.model, "model", batch, model)
    finally:  # where the decoder failed, a latent of another shape is why
        _check_shapes(model.trace, prune_subsample_sites(guide.trace))


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
    with _refusing(what, batch.x), _OfDistributions(what), fill_improper(batch.x), tracer:
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
            _remedy(error, what),
        ) from error


def _remedy(error: Exception, what: str) -> str:
    if "on the same device" in str(error):
        return (
            "Have it make tensors where x is, as by x.new_ones(3) or torch.ones(3, "
            "device=x.device), and hold the others as buffers of the module; or train on the CPU."
        )
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


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """The tensors that a value's gradient would be accumulated in."""
    seen, found = set(), [value.grad_fn]
    while found:
        node: Any = found.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        found.extend(function for function, _ in node.next_functions)


def _structure(model_trace: Trace, guide_trace: Trace, batch_size: int) -> Structure:
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

    latents = sites(guide_trace, observed=False)
    missing = [n for n in latents if n not in model_trace and not is_auxiliary(latents[n])]
    if missing:
        raise InputError(
            f"The guide samples {missing[0]!r}, which the model does not.",
            "Give the latent the same name in model and guide.",
        )

    drawn = sites(model_trace, observed=False)
    everything = {**drawn, **latents}
    improper = {name for name, site in drawn.items() if is_improper(site["fn"])}
    local = {name: site for name, site in latents.items() if data_frame(site)}
    shared = {
        name: site
        for name, site in everything.items()
        if not data_frame(site) and not is_auxiliary(site)
    }
    flat_points = improper & set(_points(_outside(guide_trace)))
    frame = data_frame(next(iter(observed.values())))
    full_size = getattr(frame, "full_size", None) or frame.size
    stacks = [s["cond_indep_stack"] for s in (*everything.values(), *observed.values())]

    return Structure(
        latents=tuple(local),
        global_latents=tuple(shared),
        observed=tuple(observed),
        full_size=None if full_size == batch_size else full_size,
        depth=max(-f.dim for stack in stacks for f in stack if f.vectorized),
        vectorizes=False,
        improper=tuple(n for n in drawn if n in improper and not (n in shared and n in latents)),
        points=_points(local),
        charged=tuple(name for name in shared if name in latents and name not in flat_points),
    )


def _has_global_kl(program: Program, batch: Batch, model_trace: Trace, guide_trace: Trace) -> bool:
    """Whether the guide's draws of global latents have densities under the guide and the model."""
    shared, priors = _outside(guide_trace), sample_sites(model_trace)
    if not shared or any(is_improper(priors[n]["fn"]) for n in shared if n in priors):
        return False
    passed_on = {n: site for n, site in shared.items() if not is_auxiliary(site)}
    if len(passed_on) == len(shared):
        return not _points(passed_on)
    # Of auxiliary sites the density is known where all that is made of them are points that move.
    again = _outside(
        poutine.trace(program.guide).get_trace(batch.x, **labels(program.guide, batch))
    )
    return all(
        isinstance(innermost(site["fn"]), dist.Delta)
        and not torch.equal(site["value"], again[name]["value"])
        for name, site in passed_on.items()
    )


def _outside(guide_trace: Trace) -> dict[str, Site]:
    """The latent sites of a guide outside the plate `data`."""
    drawn = sites(prune_subsample_sites(guide_trace), observed=False)
    return {name: site for name, site in drawn.items() if not data_frame(site)}


def _points(latents: dict[str, Site]) -> tuple[str, ...]:
    """The latents that a guide puts at a single point."""
    if any(map(is_auxiliary, latents.values())):
        return ()  # a point then passes on what an auxiliary site drew
    return tuple(name for name, site in latents.items() if is_point(site["fn"]))


def _vectorizes(
    program: Program, batch: Batch, structure: Structure, *, but: Collection[str] = ()
) -> bool:
    """Whether the program runs with two particles on the left to the numbers of each alone.

    All of its sites but some have two.

    Shapes are not enough: a softmax over dimension 1 is over features for one particle and over
    examples for several, and fits both.
    """
    dim = -1 - structure.depth
    particles = plate_but("particles", 2, dim=dim, but=but)
    try:
        with warnings.catch_warnings(action="ignore"):
            with pyro.validation_enabled(True):
                model_trace, guide_trace = trace_pair(program, batch, within=particles)
            return all(
                _agrees(function, batch, trace, sites(guide_trace, observed=False), index, dim)
                for index in range(2)
                for function, trace in ((program.model, model_trace), (program.guide, guide_trace))
            )
    except Exception:  # whatever a network raises that does not take the dimension
        return False


def _has_particles(site: Site) -> bool:
    return any(frame.name == "particles" for frame in site["cond_indep_stack"])


def _agrees(
    function: Callable[..., Any],
    batch: Batch,
    together: Trace,
    latents: dict[str, Site],
    index: int,
    dim: int,
) -> bool:
    """Whether a model or guide gives one particle's log-probabilities without the other, too."""
    drawn = {**latents, **sites(together, observed=False)}
    values = {
        n: s["value"].select(dim - s["fn"].event_dim, index) if _has_particles(s) else s["value"]
        for n, s in drawn.items()
    }
    given = poutine.condition(function, data=values)
    trace = poutine.trace(given).get_trace(batch.x, **labels(function, batch))
    alone = sample_sites(at_weight_one(trace))
    for name, site in sample_sites(together).items():
        found = site["fn"].log_prob(site["value"])
        found = found.select(dim, index) if found.dim() >= -dim else found
        expected = alone[name]["fn"].log_prob(alone[name]["value"])
        if not torch.allclose(found.expand_as(expected), expected, rtol=1e-3, atol=1e-3):
            return False
    return True

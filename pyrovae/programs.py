r"""What pyrovae asks of a program, and what it can learn from any program's traces.

**The contract.** A *program* is any object with a `model`, a `guide` and parameters: an
`nn.Module` with these two methods, or any object whose attributes are the two functions and the
modules that they use.

- `model(x)` samples its latents and observes x under `pyro.plate("data", len(x))`. It need only
  use `len(x)` and `obs=x`, so that `poutine.uncondition(model)` on a template of n rows draws n
  new examples. `guide(x)` samples the latents under the same plate.
- Where a signature has `y`, labels are passed.
- Which sites are latent or observed, local (inside the plate `data`) or global, is read from
  the trace. The site `"x"`, or else the only observed one, is the observation.
- A latent whose prior is improper, or that the guide puts at a single point, leaves no bound on
  log p(x): such a program is trained and shown, and not evaluated.
- Whatever `poutine.scale`, beta or a warm-up do enters the training loss alone. Everything
  here is at weight 1, in nats, one number per example. `poutine.mask` counts everywhere.
"""

__all__ = [
    "Program",
    "Structure",
    "as_module",
    "check_parameters",
    "check_support",
    "data_frame",
    "evaluating",
    "inspect_program",
    "is_auxiliary",
    "labels",
    "mean_of",
    "observation_site",
    "sample_sites",
    "sites",
    "takes_labels",
    "trace_pair",
]

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyrovae.data import Batch
from pyrovae.distributions import is_improper, is_point, unweighted
from pyrovae.errors import InputError
from pyrovae.handlers import fill_improper, isolated_store, unregistered

PLATE = "data"
# Constraints whose values fill no volume.
_SURFACES = (type(constraints.sphere), type(constraints.simplex))
Site = Any  # a dict; Pyro types its traces more loosely than they are


class Program(Protocol):
    """Any object with a model and a guide over the same latent sites."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


@dataclass(frozen=True)
class Structure:
    """What one run of a program shows of it.

    Attributes:
        latents: The latent sites that the guide samples inside the plate, in its order.
        global_latents: The latent sites outside the plate.
        observed: The observed sites.
        full_size: The plate's traced size: what a loss summed by Pyro is divided by to get nats
            per example. It is None where the plate has the size of the batch.
        depth: The number of batch dimensions that the program's plates take up.
        vectorizes: Whether the program runs under particles as one more dimension on the left.
        improper: The latent sites whose prior is improper, so that the model draws no examples.
        points: The latent sites that the guide puts at a single point, without a density.
    """

    latents: tuple[str, ...]
    global_latents: tuple[str, ...]
    observed: tuple[str, ...]
    full_size: int | None
    depth: int
    vectorizes: bool
    improper: tuple[str, ...] = ()
    points: tuple[str, ...] = ()

    @property
    def has_bound(self) -> bool:
        """Whether log p(x) exists, and the guide's draws have densities that bound it."""
        return not (self.improper or self.points)


# ── Running a program ────────────────────────────────────────────────────────────────────────


def as_module(program: Program) -> nn.Module:
    """The parameters of a program, as one module.

    Raises:
        InputError: If the program lacks a model or a guide.
    """
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
        if isinstance(value, nn.Module | nn.Parameter):
            setattr(module, key, value)
    return module


def takes_labels(function: Callable[..., Any]) -> bool:
    """Whether a model or a guide has y in its signature."""
    return "y" in signature(function).parameters


def labels(function: Callable[..., Any], batch: Batch) -> dict[str, Tensor | None]:
    """The keyword arguments of a model or a guide: its labels, where its signature has y.

    Raises:
        InputError: If it needs labels and the batch has none.
    """
    if not takes_labels(function):
        return {}

    parameter = signature(function).parameters["y"]
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

    return _at_weight_one(model_trace), _at_weight_one(guide_trace)


def _at_weight_one(trace: Trace) -> Trace:
    """A trace without its plates' own sites and without weights on dimensions."""
    trace = prune_subsample_sites(trace)
    for site in sample_sites(trace).values():
        site["fn"] = unweighted(site["fn"])
    return trace


@contextmanager
def evaluating(program: Program) -> Iterator[None]:
    """Runs a block without gradients, in evaluation mode, leaving no trace of it.

    Every submodule's training flag, Pyro's parameter store and torch's random generators are
    afterwards what they were.
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


def mean_of(site: Site) -> Tensor | None:
    """The mean of a site's distribution, or None where it has none, such as a Cauchy's."""
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        return None
    return mean if torch.isfinite(mean).all() else None


def inspect_program(program: Program, batch: Batch) -> Structure:
    """Runs a program once on a few examples and reads its structure.

    Raises:
        InputError: If it observes nothing, observes outside the plate, has a latent in the
            guide that the model lacks, has in another size or cannot have drawn, or cannot
            explain these examples.
    """
    few = Batch(batch.x[:3], None if batch.y is None else batch.y[:3])
    with evaluating(program):
        _check_sizes(program, few)
        model_trace, guide_trace = trace_pair(program, few)
        structure = _structure(model_trace, guide_trace, len(few.x))
        _check_supports(model_trace, first_row=0)
        _check_guide(guide_trace, few, first_row=0)
        _check_latents(model_trace, guide_trace)
        vectorizes = not structure.global_latents and _vectorizes(program, few, structure)

    return replace(structure, vectorizes=vectorizes)


def check_support(program: Program, batches: Iterable[Batch]) -> None:
    """Refuses data and draws that a program gives no probability, or that it cannot read.

    Raises:
        InputError: If a value lies outside its support, naming the site, the example and the
            entry, or the guide makes NaN of missing entries.
    """
    with evaluating(program):
        first_row = 0
        for batch in batches:
            model_trace, guide_trace = trace_pair(program, batch)
            _check_supports(model_trace, first_row)
            _check_guide(guide_trace, batch, first_row)
            _check_latents(model_trace, guide_trace)
            first_row += len(batch.x)


def check_parameters(program: Program, batch: Batch) -> None:
    """Refuses a parameter that no module of the program holds: training would miss it.

    Raises:
        InputError: If the model or the guide creates one with `pyro.param`, or uses one that is
            no attribute of the program.
    """
    held = {id(parameter) for parameter in as_module(program).parameters()}
    with evaluating(program), torch.enable_grad():
        traces = trace_pair(program, batch)
        total = sum(torch.as_tensor(trace.log_prob_sum()) for trace in traces)
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
    for name, q in sites(guide_trace, observed=False).items():
        p = priors.get(name)
        if p is not None and p["fn"].event_shape != q["fn"].event_shape:
            raise InputError(
                f"The latent {name!r} has the shape {tuple(p['fn'].event_shape)} in the model and "
                f"{tuple(q['fn'].event_shape)} in the guide.",
                "Give prior and encoder one latent dimension.",
            )


def _run_alone(function: Callable[..., Any], what: str, batch: Batch, tracer: Any) -> None:
    try:
        with fill_improper(batch.x), tracer:
            function(batch.x, **labels(function, batch))
    except (RuntimeError, ValueError) as error:
        remedy = (
            "Make its networks for x of this shape."
            if what == "guide"
            else "Check that the prior's draws are what the decoder takes."
        )
        raise InputError(
            f"The {what} cannot be run on x of shape {tuple(batch.x.shape)} ({error}).", remedy
        ) from error


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


def _check_supports(model_trace: Trace, first_row: int) -> None:
    for name, site in sites(model_trace, observed=True).items():
        distribution, value = site["fn"], site["value"]
        inside = distribution.support.check(value)
        if inside.all():
            continue

        row = int((~inside.reshape(len(value), -1)).any(1).nonzero()[0])
        where = f"in example {first_row + row}{_entry(distribution.support, value[row])}"
        family = _family(distribution)
        if value[row].isnan().any():
            raise InputError(
                f"The observation {name!r} has missing entries (NaN), which its {family} "
                f"likelihood cannot leave out, first {where}.",
                "Take one that can (a TabularDecoder, or NanMaskedDecoder round another), or fill "
                "in the values.",
            )
        seen = value[~value.isnan()]
        bounds = f"from {float(seen.min()):.3g} to {float(seen.max()):.3g}"
        support = _base(distribution.support, "base_constraint")
        raise InputError(
            f"The observation {name!r}, with values {bounds}, has one outside {support!r}, the "
            f"support of its {family} likelihood, first {where}.",
            "Binarise grey values (--binarize dynamic) for a Bernoulli, dequantise them for a "
            "density on (0, 1), leave whole numbers as they are (AsIs) for levels, codes or "
            "counts, or take a likelihood that has the values in its support, such as the "
            "continuous Bernoulli on [0, 1] (--decoder continuous-bernoulli) or a Gaussian "
            "(--decoder gaussian).",
        )


def _entry(support: Any, example: Tensor) -> str:
    """Where in an example the first value outside is, if each entry has its own support."""
    while hasattr(support, "base_constraint") and support.event_dim > 0:
        support = support.base_constraint
    outside = ~support.check(example)
    if outside.shape != example.shape or not outside.any():
        return ""
    index = outside.nonzero()[0].tolist()
    place = f"entry {tuple(index)}" if len(index) > 1 else f"column {index[0]}"
    return f", {place} ({float(example[outside][0]):.9g})"


def _check_guide(guide_trace: Trace, batch: Batch, first_row: int) -> None:
    """Refuses a guide that makes NaN of missing entries: its network is not made for them."""
    missing = batch.x.isnan().reshape(len(batch.x), -1).any(1)
    for name, site in sites(guide_trace, observed=False).items():
        frame = data_frame(site)
        if frame is None or not missing.any():
            continue
        value = site["value"].isnan().movedim(frame.dim - site["fn"].event_dim, 0)
        wrong = missing & value.reshape(len(missing), -1).any(1)
        if wrong.any():
            raise InputError(
                f"The guide gives NaN for the latent {name!r} of example "
                f"{first_row + int(wrong.nonzero()[0])}, which has missing entries.",
                "Give the encoder a network that reads them: NanMaskedInput(net), or "
                "TabularInput for a table.",
            )


def _check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuses a guide whose draws the model gives no probability, or one of another kind."""
    in_model = sample_sites(model_trace)
    for name, site in sites(guide_trace, observed=False).items():
        if name not in in_model:
            continue
        prior = in_model[name]["fn"]
        if _is_outside(prior, site["value"]) or _measure(site["fn"]) != _measure(prior):
            raise InputError(
                f"The guide's {_family(site['fn'])} draws values of {name!r} to which the model's "
                f"{_family(prior)} gives no probability, or one of another kind.",
                "Pair a guide and a prior over the same values, such as a RelaxedBernoulliEncoder "
                "and a RelaxedBernoulliPrior.",
            )


def _is_outside(distribution: Any, value: Tensor) -> bool:
    """Whether values are outside a distribution's support, where it names one."""
    try:
        return not distribution.support.check(value).all()
    except (NotImplementedError, ValueError):
        return False


def _measure(distribution: Any) -> str:
    """What a probability is per: a value, an area of a surface, or a volume.

    The ratio of two of different kinds, such as a mass over a density, is none of probabilities.
    """
    try:
        if distribution.support.is_discrete:
            return "value"
        kind = type(_base(distribution.support, "base_constraint"))
    except (NotImplementedError, ValueError):
        return "volume"
    return "area" if kind in _SURFACES else "volume"


def _family(distribution: Any) -> str:
    """The name of a distribution under whatever independence and masks are wrapped round it."""
    return type(_base(distribution, "base_dist")).__name__


def _base(wrapped: Any, attribute: str) -> Any:
    while hasattr(wrapped, attribute):
        wrapped = getattr(wrapped, attribute)
    return wrapped


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
    frame = data_frame(next(iter(observed.values())))
    full_size = getattr(frame, "full_size", None) or frame.size
    stacks = [s["cond_indep_stack"] for s in (*everything.values(), *observed.values())]

    return Structure(
        latents=tuple(name for name, site in latents.items() if data_frame(site)),
        global_latents=tuple(name for name, site in everything.items() if not data_frame(site)),
        observed=tuple(observed),
        full_size=None if full_size == batch_size else full_size,
        depth=max(-f.dim for stack in stacks for f in stack if f.vectorized),
        vectorizes=False,
        improper=tuple(name for name, site in drawn.items() if is_improper(site["fn"])),
        points=_points(latents),
    )


def _points(latents: dict[str, Site]) -> tuple[str, ...]:
    """The latents that a guide puts at a single point."""
    if any(map(is_auxiliary, latents.values())):
        return ()  # a point then passes on what an auxiliary site drew
    return tuple(name for name, site in latents.items() if is_point(site["fn"]))


def is_auxiliary(site: Site) -> bool:
    """Whether a guide's site only helps to make others, and has no counterpart in the model."""
    return bool(site["infer"].get("is_auxiliary"))


def _vectorizes(program: Program, batch: Batch, structure: Structure) -> bool:
    """Whether the program runs with two particles on the left to the numbers of each alone.

    Shapes are not enough: a softmax over dimension 1 is over features for one particle and over
    examples for several, and fits both.
    """
    dim = -1 - structure.depth
    particles = pyro.plate("particles", 2, dim=dim)
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


def _agrees(
    function: Callable[..., Any],
    batch: Batch,
    together: Trace,
    latents: dict[str, Site],
    index: int,
    dim: int,
) -> bool:
    """Whether a model or guide gives one particle's log-probabilities without the other, too."""
    values = {n: s["value"].select(dim - s["fn"].event_dim, index) for n, s in latents.items()}
    given = poutine.condition(function, data=values)
    trace = poutine.trace(given).get_trace(batch.x, **labels(function, batch))
    alone = sample_sites(_at_weight_one(trace))
    for name, site in sample_sites(together).items():
        if name not in latents and not site["is_observed"]:
            continue  # drawn from the model anew, and so another value
        found = site["fn"].log_prob(site["value"])
        found = found.select(dim, index) if found.dim() >= -dim else found
        expected = alone[name]["fn"].log_prob(alone[name]["value"])
        if not torch.allclose(found.expand_as(expected), expected, rtol=1e-3, atol=1e-3):
            return False
    return True

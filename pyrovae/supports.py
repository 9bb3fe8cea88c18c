r"""What a program gives probability to: data and draws outside of it are refused.

A likelihood says by its support what it can have observed, a prior what can have been drawn.
Where a value is outside, the bound would be minus infinity, or NaN, or, worst, a number.
"""

__all__ = ["check_support", "check_values"]

from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae import catalogue
from pyrovae.data import Batch
from pyrovae.distributions import WithEnds, WithFaces
from pyrovae.errors import InputError
from pyrovae.programs import Program, data_frame, evaluating, sample_sites, sites, trace_pair

# Constraints whose values fill no volume.
_SURFACES = (type(constraints.sphere), type(constraints.simplex))
# By the constraint of a latent's values the words of an encoder and of a prior over them.
_OVER = {
    type(constraints.real): ("gaussian", "standard-normal"),
    type(constraints.sphere): ("power-spherical", "spherical-uniform"),
    type(constraints.boolean): ("bernoulli", "bernoulli"),
    type(constraints.one_hot): ("categorical", "categorical"),
    type(constraints.unit_interval): ("beta", "uniform"),
    WithEnds: ("relaxed-bernoulli", "relaxed-bernoulli"),
    WithFaces: ("relaxed-categorical", "relaxed-categorical"),
}
_REMEDY = (
    "Scale or standardise data of very large numbers, and see that no network of the guide "
    "divides by zero or takes the logarithm of a negative number."
)


def check_support(program: Program, batches: Iterable[Batch]) -> None:
    """Refuses data and draws that a program gives no probability, or that it cannot read.

    Raises:
        InputError: If a value lies outside its support, naming the site, the example and the
            entry, or the guide draws NaN.
    """
    with evaluating(program):
        first_row = 0
        for batch in batches:
            check_values(*trace_pair(program, batch), batch, first_row)
            first_row += len(batch.x)


def check_values(model_trace: Trace, guide_trace: Trace, batch: Batch, first_row: int = 0) -> None:
    """The same for the traces of a batch, whose first example is of this number.

    Raises:
        InputError: As `check_support`.
    """
    _check_observations(model_trace, first_row)
    _check_guide(guide_trace, batch, first_row)
    _check_latents(model_trace, guide_trace)


def _check_observations(model_trace: Trace, first_row: int) -> None:
    for name, site in sites(model_trace, observed=True).items():
        distribution, value = site["fn"], site["value"]
        inside = distribution.support.check(value)
        if inside.all():
            continue

        row = int((~inside.reshape(len(value), -1)).any(1).nonzero()[0])
        example, outside = value[row], _outside(distribution.support, value[row])
        missing = example.isnan() if outside is None else example.isnan() & outside
        lacks = bool(missing.any())
        where = f"in example {first_row + row}{_entry(example, missing if lacks else outside)}"
        family = _family(distribution)
        if lacks:
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
            _remedy(support, seen),
        )


def _remedy(support: Any, seen: Tensor) -> str:
    """What would have such values in its support."""
    if isinstance(support, type(constraints.boolean)):
        return (
            "Binarise grey values (--binarize dynamic), or take the continuous Bernoulli on "
            "[0, 1] (--decoder continuous-bernoulli) or a Gaussian (--decoder gaussian)."
        )
    if not support.is_discrete:
        return (
            "Scale or dequantise the values into it, or take a Gaussian (--decoder gaussian), "
            "which has all of them."
        )
    whole = bool((seen == seen.round()).all() and seen.min() >= 0)
    if whole and isinstance(support, type(constraints.integer_interval(0, 1))):
        count = int(seen.max()) + 1
        return (
            f"Give it levels, classes or symbols for all of them: {count} (--decoder.levels, "
            f"--decoder.classes or --decoder.symbols {count})."
        )
    if isinstance(support, type(constraints.integer_interval(0, 1))):
        return (
            "Leave whole numbers from 0 on as they are (preprocessing=AsIs()) and give it levels "
            "for all of them, both of which --decoder.levels 256 does of 8-bit images; or take a "
            "density, such as a Gaussian (--decoder gaussian)."
        )
    return (
        "Leave whole numbers from 0 on as they are (preprocessing=AsIs()), or take a density, "
        "such as a Gaussian (--decoder gaussian)."
    )


def _outside(support: Any, example: Tensor) -> Tensor | None:
    """Which entries of an example are outside, if each of them has its own support."""
    while hasattr(support, "base_constraint") and support.event_dim > 0:
        support = support.base_constraint
    outside = ~support.check(example)
    return outside if outside.shape == example.shape and outside.any() else None


def _entry(example: Tensor, outside: Tensor | None) -> str:
    """Where in an example the first value outside is, if it is known."""
    if outside is None:
        return ""
    value, index = f"({float(example[outside][0]):.9g})", outside.nonzero()[0].tolist()
    if not index:
        return f" {value}"
    place = f"entry {tuple(index)}" if len(index) > 1 else f"column {index[0]}"
    return f", {place} {value}"


def _check_guide(guide_trace: Trace, batch: Batch, first_row: int) -> None:
    """Refuses a guide that draws NaN, of missing entries or of any."""
    missing = batch.x.isnan().reshape(len(batch.x), -1).any(1)
    for name, site in sites(guide_trace, observed=False).items():
        is_nan, frame = site["value"].isnan(), data_frame(site)
        if not is_nan.any():
            continue
        if frame is None:
            raise InputError(f"The guide draws NaN for the latent {name!r}.", _REMEDY)
        rows = is_nan.movedim(frame.dim - site["fn"].event_dim, 0).reshape(len(missing), -1).any(1)
        of_missing = rows & missing
        row = first_row + int((of_missing if of_missing.any() else rows).nonzero()[0])
        if of_missing.any():
            raise InputError(
                f"The guide gives NaN for the latent {name!r} of example {row}, which has missing "
                "entries.",
                "Give the encoder a network that reads them: NanMaskedInput(net), "
                "RecurrentEncoderNet(..., missing=True) for sequences, or TabularInput for a "
                "table.",
            )
        raise InputError(
            f"The guide draws NaN for the latent {name!r} of example {row}, which has no missing "
            "entries.",
            _REMEDY,
        )


def _check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuses a guide whose draws the model gives no probability, or one of another kind."""
    in_model = sample_sites(model_trace)
    for name, site in sites(guide_trace, observed=False).items():
        if name not in in_model:
            continue
        prior = in_model[name]["fn"]
        _check_ends(name, prior, site["fn"])
        if _is_outside(prior, site["value"]) or _measure(site["fn"]) != _measure(prior):
            _check_classes(name, prior, site["fn"])
            raise InputError(
                f"The guide's {_family(site['fn'])} draws values of {name!r} to which the model's "
                f"{_family(prior)} gives no probability, or one of another kind.",
                _pairing(prior, site["fn"]),
            )


def _check_ends(name: str, p: Any, q: Any) -> None:
    """Refuses a guide on an interval that goes beyond the model's.

    Draws of a few examples may all lie within it.
    """
    inner, outer = (_base(_support(side), "base_constraint") for side in (q, p))
    is_interval = hasattr(inner, "lower_bound") and hasattr(inner, "upper_bound")
    if type(inner) is not type(outer) or not is_interval:
        return
    ends = (inner.lower_bound, inner.upper_bound, outer.lower_bound, outer.upper_bound)
    # Numbers in Python have digits that those of a buffer have lost.
    low, high, least, most = torch.broadcast_tensors(*(torch.as_tensor(e).float() for e in ends))
    beyond = (low < least) | (high > most)
    if beyond.any():
        low, high, least, most = (float(end[beyond][0]) for end in (low, high, least, most))
        raise InputError(
            f"The guide's {_family(q)} draws {name!r} from {low:g} to {high:g}, and the model's "
            f"{_family(p)} is from {least:g} to {most:g}.",
            "Give both the same ends, such as low and high of a UniformPrior and a BetaEncoder.",
        )


def _check_classes(name: str, p: Any, q: Any) -> None:
    """Refuses codes of other numbers of classes in model and guide."""
    classes = [getattr(_support(side), "classes", None) for side in (p, q)]
    if _constraint(p) is _constraint(q) and classes[0] != classes[1]:
        raise InputError(
            f"The latent {name!r} has codes of {classes[0]} classes in the model and of "
            f"{classes[1]} in the guide.",
            f"Give both one number of classes (--encoder.classes {classes[0]}, or "
            f"--prior.classes {classes[1]}).",
        )


def _pairing(p: Any, q: Any) -> str:
    """An encoder that goes with a prior, and a prior that goes with an encoder."""
    over_p, over_q = _OVER.get(_constraint(p)), _OVER.get(_constraint(q))
    if over_p is None or over_q is None or over_p is over_q:
        return "Pair a guide and a prior over the same values."
    encoder_word, prior_word = over_p[0], over_q[1]
    encoder = catalogue.find("encoder", encoder_word).class_name
    prior = catalogue.find("prior", prior_word).class_name
    return (
        f"Take an encoder over the prior's values, such as {encoder} (--encoder {encoder_word}), "
        f"or a prior over the encoder's, such as {prior} (--prior {prior_word})."
    )


def _is_outside(distribution: Any, value: Tensor) -> bool:
    """Whether values are outside a distribution's support, where it names one."""
    try:
        return not distribution.support.check(value).all()
    except (NotImplementedError, ValueError):
        return False


def _measure(distribution: Any) -> str:
    """What a probability is per: a value, an area of a surface, a volume, or, where the ends of
    an interval or the faces of a simplex have one, now a value and now a length or an area.

    The ratio of two of different kinds, such as a mass over a density, is none of probabilities.
    """
    if _support(distribution).is_discrete:
        return "value"
    constraint = _constraint(distribution)
    if constraint is WithEnds:
        return "value or length"
    if constraint is WithFaces:
        return "value or area"
    return "area" if constraint in _SURFACES else "volume"


def _constraint(distribution: Any) -> type:
    """The kind of constraint that a distribution's values are under."""
    return type(_base(_support(distribution), "base_constraint"))


def _support(distribution: Any) -> Any:
    """The support of a distribution; all real numbers where it names none."""
    try:
        support = distribution.support
        return support if support.is_discrete in (True, False) else constraints.real
    except (NotImplementedError, ValueError):
        return constraints.real


def _family(distribution: Any) -> str:
    """The name of a distribution under whatever independence and masks are wrapped round it."""
    return type(_base(distribution, "base_dist")).__name__


def _base(wrapped: Any, attribute: str) -> Any:
    while hasattr(wrapped, attribute):
        wrapped = getattr(wrapped, attribute)
    return wrapped

"""A training before it starts, and the numbers of an evaluation, in words."""

__all__ = ["print_numbers", "print_plan"]

import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pyrovae.cli.planning import Plan

if TYPE_CHECKING:
    from pyrovae.data import Data
    from pyrovae.evaluation import Evaluation
    from pyrovae.runs import Run

COLLAPSE = (
    "the latents carry no information (posterior collapse); try a longer --kl-warmup, a lower "
    "--lr or a smaller --beta"
)


def _noun(x_shape: tuple[int, ...]) -> str:
    """What one observation is called."""
    return "image" if len(x_shape) == 3 else "example"


def print_plan(plan: Plan, processes: int = 1) -> None:
    """Prints what is to be trained, on what, how, and by how many processes."""
    from pyrovae.devices import count_idle, describe_environment

    print(f"device   {plan.device}: {describe_environment(plan.device)['hardware']}")
    if processes > 1:
        print(f"         {processes} processes, each with a share of every batch")
    elif idle := count_idle(plan.device):
        command = f"torchrun --standalone --nproc-per-node {idle + 1} -m {plan.record['command']}"
        print(f"         {idle} more idle; to use all: {command}")
    _print_data(plan.data)
    print(f"model    {plan.about}")
    if plan.matched is not None:
        print(f"weights  {_by_module(plan.matched.taken)} from {plan.options.init_from}")
        if plan.matched.left:
            print(f"         {_by_module(plan.matched.left)} new")
    if plan.bound is not None:
        print(f"bound    {plan.bound}")
    warmup = f"KL warm-up over {plan.kl_warmup:g}, " if plan.kl_warmup else ""
    epochs = "1 epoch" if plan.epochs == 1 else f"{plan.epochs} epochs"
    print(
        f"training {epochs} of batches of {plan.options.batch_size}, {warmup}"
        f"seed {plan.options.seed}"
    )


def _print_data(data: "Data") -> None:
    from pyrovae.data.tables import summary

    splits = data.splits.values()
    shape = " x ".join(map(str, data.x_shape))
    in_colour = data.values == "grey" and len(data.x_shape) == 3 and data.x_shape[0] > 1
    values = "colour" if in_colour else data.values
    kind = "a table" if data.columns else f"{values} values"
    print(f"data     {data.name}, {shape}, {kind}, {data.preprocessing.summary}")
    print(f"splits   {' / '.join(f'{len(s):,}' for s in splits)} ({data.split_rule})")
    if data.cache is not None:
        print(f"cache    {data.cache}")
    if data.columns is not None:
        print(f"columns  {summary(data.columns)}")
    for note in data.notes:
        print(f"         {note}")


def _by_module(names: list[str]) -> str:
    """Tensors counted by the module that they are in: prior 1, decoder.net 4."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items())


def print_numbers(found: "Evaluation", run: "Run") -> None:
    """Prints the numbers of a run's evaluation, with their errors and what they rest on."""
    numbers = found.summary()
    noun = _noun(tuple(run.config["data"]["x_shape"]))
    # The run may have been trained on some of data that are not its own splits.
    split, of = f"{run.measured_split} ", ""
    if run.others is not None:
        split, of = "", f" of {Path(run.others).name}"
    heavy = numbers["pareto_k_above_0.7"]
    for label, key in ((f"{split}ELBO", "elbo"), ("log p(x)", "log_evidence")):
        error = "" if numbers[f"{key}_se"] is None else f"+- {numbers[f'{key}_se']:.2f} "
        print(f"{label:12} {numbers[key]:10.2f} {error}nats per {noun}")
    print(f"{'active units':12} {found.active_units:7d} of {found.latent_dims}")
    if found.global_kl is not None:
        print(f"{'shared KL':12} {found.global_kl:10.2f} nats in all, of what all {noun}s share")
    if found.collapsed:
        print(f"             warning: {COLLAPSE}")
    if found.bits_per_dim is not None:
        kind = "" if found.log_cell_volume == 0 else " (of the dequantised data: an upper bound)"
        print(f"{'bits per dim':12} {found.bits_per_dim:10.3f}{kind}")
    print(
        f"             by {found.num_samples} importance samples for each of "
        f"{found.num_examples} {noun}s{of}, in {found.seconds:.1f} s; +- is one standard error "
        "over them"
    )
    print(
        f"             Monte Carlo error of log p(x) {found.monte_carlo_error:.3f}; "
        + (
            "k-hat: too few samples to tell"
            if heavy is None
            else f"k-hat above 0.7 for {heavy:.0%}"
        )
    )
    if found.warning is not None:
        print(textwrap.indent(textwrap.fill(f"warning: {found.warning}", 86), " " * 13))

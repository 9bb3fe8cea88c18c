"""Training: what `fit` checks, records and starts; `loop` takes the steps."""

__all__ = ["engine_for", "fit"]

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from pyrovae import run_folder
from pyrovae.bounds import Bound
from pyrovae.bounds.base import weighs_kl
from pyrovae.checks import as_number
from pyrovae.data import Data, Given
from pyrovae.data.loaders import batch_size_of
from pyrovae.devices import describe_environment, resolve_device
from pyrovae.errors import InputError, first_line
from pyrovae.handlers import isolated_store, unregistered
from pyrovae.loop import Loop
from pyrovae.preparation import (
    as_splits,
    check_bound,
    check_callback,
    check_config,
    check_options,
    check_plate,
    check_program,
    check_replays,
    check_schedule,
    describe_data,
    describe_program,
)
from pyrovae.programs import Program, as_module, dtype_of
from pyrovae.progress import Progress
from pyrovae.ranks import Ranks, joined
from pyrovae.ranks import launch as launched_by
from pyrovae.resuming import Earlier, place_of
from pyrovae.runs import Run
from pyrovae.schedules import Schedule, constant, linear
from pyrovae.svi import Differentiable, Exchange, Objective, Stepper, default_engine
from pyrovae.svi.precision import check_device
from pyrovae.svi.updates import is_recordable

# Below so many steps, capturing and compiling take longer than they save (docs/performance.md).
CAPTURE_STEPS, COMPILE_STEPS = 500, 5000
BATCH_SIZE = 128

# Options of Pyro's bounds that say how, and not what, is computed.
_MECHANICS = ("max_plate_nesting", "jit_options", "ignore_jit_warnings", "retain_graph")

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
ADAM: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3, fused=True)


def fit(
    program: Program,
    train: Given,
    *,
    valid: Given | None = None,
    test: Given | None = None,
    bound: ELBO | Differentiable | None = None,
    optimizer: MakeOptimizer = ADAM,
    epochs: int = 20,
    batch_size: int | None = None,
    kl_warmup: float = 0.0,
    lr_schedule: Schedule | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    engine: str | None = None,
    steps_per_replay: int = 1,
    precision: str = "float32",
    device: str | torch.device | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool | Earlier = False,
    progress: bool = True,
    on_epoch: Callable[[Run], object] | None = None,
    config: dict[str, Any] | None = None,
) -> Run:
    r"""Trains a program by stochastic variational inference.

    Each step minimises the bound's loss over a batch, divided by the traced size of the plate
    `data`: nats per example. The parameters come from the program's modules, and Pyro's
    parameter store is afterwards what it was. Every random number of a step is a function of
    the seed and the step.

    Started by `torchrun` it trains on all of its processes: each takes its share of every batch
    and draws noise of its own, but for latents outside the plate, which all draw alike; the
    gradients are summed, so that the update is that of the whole batch. Bounds and layers that
    look at a batch as a whole, such as batch normalisation, look at a share of it. The weights
    are at first those of the first process, which alone writes and calls `on_epoch`: the runs of
    the others have no path.

    Args:
        program: Any program of `pyrovae.programs`, such as `pyrovae.VAE`. It is trained in
            place.
        train: The training data: what `load_data` returns (then its validation and test sets
            are used too), examples, a tensor or array of the program's x, or a `Dataset` or a
            `DataLoader`. One that fits in memory is read once, so that random items are drawn
            once; `Examples(dataset)` streams whatever its size. Of a `DataLoader` the `Dataset`
            is taken: order and batches are made by the seed.
        valid: The validation data, of the same kinds.
        test: The test data, kept for `Run.evaluate`.
        bound: What is maximised: one of `pyrovae.bounds` or of Pyro's `ELBO` objects;
            `pyro.infer.Trace_ELBO()` if None. Evaluation does not depend on it.
        optimizer: Called with the trainable parameters, such as
            `partial(torch.optim.Adam, lr=1e-3)`.
        epochs: How often to visit every training example.
        batch_size: How many examples make a step, on however many processes. If None, as many as
            a `DataLoader` that is given to train on takes, or else 128.
        kl_warmup: Over how many epochs the weight of the KL term rises from 0 to 1; under a
            `Capacity` it is the capacity that rises. A bound without a KL, as `MMD()`, has none.
        lr_schedule: A factor on the optimizer's learning rate for each step.
        clip_norm: The norm that gradients are scaled down to where they exceed it.
        patience: Stop after so many epochs without a better validation ELBO, and keep the
            weights of the best. If None, train all epochs and keep the last weights.
        seed: The seed of order and noise.
        engine: The back end of the steps: `eager`, `graph`, `inductor`, on a GPU `cuda-graph`, or
            `auto`, which tries them all (see `pyrovae.svi.backends`). If None, the program is
            captured where more than 500 steps are to be taken, and on the CPU compiled where more
            than 5,000 are.
        steps_per_replay: By the engine `cuda-graph`, how many steps are taken by one launch, at
            most 64. They are seeded, and scheduled, by the first of them, and a run is saved,
            and a signal answered, between such groups. It is one of the things that the bits of a
            run depend on.
        precision: `float32`, or `bf16` for matrix products of bfloat16 in the networks while
            training; all that is a probability, and every evaluation, stays in float32. On a GPU
            also `tf32`, for all matrix products while training.
        device: The device; CUDA where there is one if None.
        run_dir: A new folder for checkpoints, metrics and what the run is asked for later. If
            None nothing is written.
        resume: Whether to go on with the run in `run_dir`, if one was begun there, from its
            last checkpoint: on the same machine to the same bits as without a break. All else
            is to be as it was, but `epochs`, which may be more; the engine stays the one that it
            began by, even where so many epochs would have been worth another. A schedule cannot
            be compared.
            Or that run, as `Earlier.at` has read it.
        progress: Whether to show a progress bar, or a line per epoch where there is no terminal.
        on_epoch: Called with the run after each epoch, its record the last of `run.metrics`,
            such as `TensorBoard()`. What it draws at random does not reach the training.
        config: What to record of the run besides what is known here, in plain values.

    Returns:
        The run. At SIGINT (an interrupt from the keyboard) or SIGTERM it finishes the step,
        saves, and then does what the signal would have done.

    Raises:
        InputError: If the program, the data or an option cannot be used, or what is to be
            resumed is another run or is in training elsewhere, before the first step.
        RankError: If another process of the training is gone.
        NonFiniteError: If a loss or gradient is not finite, naming the site and the batch, with
            the weights as they were before that step.
        CheckpointError: If a checkpoint cannot be written.

    Example:
        >>> import pyrovae
        >>> data = pyrovae.load_data("digits")
        >>> vae = pyrovae.VAE(
        ...     prior=pyrovae.StandardNormal(4),
        ...     decoder=pyrovae.BernoulliDecoder(pyrovae.MLP((4,), data.x_shape)),
        ...     encoder=pyrovae.GaussianEncoder(pyrovae.MLP(data.x_shape, (8,))),
        ... )
        >>> run = fit(vae, data, epochs=1, progress=False)
        >>> sorted(run.metrics[0])[:4]
        ['epoch', 'examples_per_second', 'grad_norm', 'kl']
    """
    epochs, batch_size, patience, seed, steps_per_replay, kl_warmup, clip_norm = map(
        as_number,
        (epochs, batch_size, patience, seed, steps_per_replay, kl_warmup, clip_norm),
    )
    if batch_size is None:
        batch_size = batch_size_of(train) or BATCH_SIZE
    check_options(
        epochs=epochs,
        batch_size=batch_size,
        kl_warmup=kl_warmup,
        clip_norm=clip_norm,
        patience=patience,
        seed=seed,
    )
    check_schedule(lr_schedule)
    check_callback(on_epoch)
    check_config(config)
    bound = bound or Trace_ELBO()
    if kl_warmup and not weighs_kl(bound):
        raise InputError(
            f"{bound!r} leaves no KL for a warm-up to raise.",
            "Give no kl_warmup, or another bound.",
        )
    check_replays(steps_per_replay, engine)
    target = resolve_device(device)
    check_device(precision, _cuda(target))
    module = as_module(program).to(target)
    given = as_splits(train, valid, test, dtype=dtype_of(program))
    splits = {name: split.to(target) for name, split in given.items()}
    if patience is not None and "valid" not in splits:
        raise InputError("Early stopping needs validation data.", "Give valid, or no patience.")
    examples = splits["train"]

    with (
        joined() as ranks,
        unregistered(),
        isolated_store(empty=True),
        torch.random.fork_rng(devices=_cuda(target)),
    ):
        if batch_size < ranks.size:
            raise InputError(
                f"A batch of {batch_size} is too small for {ranks.size} processes.",
                "Give a larger batch_size, or start fewer of them.",
            )
        path, before = _place(run_dir, resume, ranks)
        structure = check_program(program, splits)
        check_bound(program, structure, bound, examples.head(3))
        check_plate(structure, len(examples), batch_size, ranks.size)
        parameters = _trained(program, module)
        objective = Objective(
            program,
            structure,
            bound,
            torch.ones((), device=target) if kl_warmup else None,
            prepare=examples.redraw if examples.preprocessing.redraws else None,
            shared=ranks.size > 1,
        )
        made = _make(optimizer, list(parameters.values()))
        if steps_per_replay > 1:
            _check_recordable(made, ranks, steps_per_replay, len(examples) // batch_size)
        told = {
            "program": describe_program(program),
            "parameters": sum(p.numel() for p in module.parameters()),
            "data": describe_data(train if isinstance(train, Data) else None, splits),
            "training": {
                "epochs": epochs,
                "batch_size": batch_size,
                "kl_warmup": kl_warmup,
                "bound": _name(bound),
                "optimizer": _describe_optimizer(made),
                "clip_norm": clip_norm,
                "patience": patience,
                "seed": seed,
                "engine": engine,
                **({"steps_per_replay": steps_per_replay} if steps_per_replay > 1 else {}),
                "precision": precision,
                "dtype": str(dtype_of(program)).removeprefix("torch."),
            },
            "processes": ranks.size,
            **(config or {}),
        }
        if before is not None:
            told = before.merged(told)
            engine = told["engine"]["name"] if "engine" in told else engine
        steps = -(-len(examples) // batch_size)
        step = Stepper(
            objective,
            made,
            owners=[module],
            engine=engine or engine_for(epochs * steps, target),
            precision=precision,
            clip_norm=clip_norm,
            steps_per_replay=steps_per_replay,
            find_cause=objective.find_cause,
            exchange=Exchange(ranks, parameters) if ranks.size > 1 else None,
        )
        run = Run(program, splits, [], told, _environment(target), path)
        loop = Loop(
            run=run,
            objective=objective,
            step=step,
            kl_weight=linear(0.0, 1.0, round(kl_warmup * steps)),
            lr_schedule=lr_schedule or constant(),
            batch_size=batch_size,
            patience=patience,
            seed=seed,
            steps_per_replay=steps_per_replay,
            on_epoch=on_epoch,
            ranks=ranks,
        )
        module.train()
        try:
            with run_folder.held(path):
                if ranks.is_first:
                    Earlier.check_unchanged(path, before)
                if before is not None:
                    loop.restore(before.checkpoint, before.metrics)
                loop.train(epochs, Progress(epochs, steps, shown=progress and ranks.is_first))
                # A process must not end while a thread of gloo's still lets go of a tensor.
                ranks.wait()
        finally:
            module.eval()

    return run


def _trained(program: Program, module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a run changes, by name.

    Raises:
        InputError: If there is none.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        raise InputError(
            f"The program {type(program).__name__} has no parameter to train.",
            "Make it an nn.Module, or keep the modules that it uses as its attributes.",
        )
    return parameters


def _environment(device: torch.device) -> dict[str, Any]:
    """What a run is trained by, and on which day."""
    launch = launched_by()
    return {
        **describe_environment(device),
        "date": f"{datetime.now():%Y-%m-%d}",
        **({"launch": launch} if launch else {}),
    }


def _check_recordable(
    optimizer: torch.optim.Optimizer, ranks: Ranks, steps_per_replay: int, steps: int
) -> None:
    """Refuses what keeps several steps from being recorded as one.

    Raises:
        InputError: If processes exchange gradients between them, the optimizer runs in Python, or
            an epoch has fewer whole batches.
    """
    if steps < steps_per_replay:
        raise InputError(
            f"steps_per_replay is {steps_per_replay}, and an epoch has {steps} whole batches.",
            "Give fewer, or a smaller batch_size.",
        )
    if ranks.size > 1:
        raise InputError(
            f"Steps of {ranks.size} processes exchange gradients, and are replayed one by one.",
            "Leave steps_per_replay out, or start one process.",
        )
    if not is_recordable(optimizer):
        raise InputError(
            f"An update by {type(optimizer).__name__} cannot be recorded, and steps_per_replay "
            "asks for it.",
            "Take Adam, AdamW or SGD, or leave steps_per_replay out.",
        )


def _place(
    run_dir: str | os.PathLike[str] | None, resume: "bool | Earlier", ranks: Ranks
) -> tuple[Path | None, Earlier | None]:
    """Where this process writes, if it does, and what it goes on with."""
    path = place_of(run_dir, resume=bool(resume)) if ranks.is_first else None
    before = resume if isinstance(resume, Earlier) else None
    if resume is True and path is not None:
        before = Earlier.at(path)
    # A folder that is new to the first process may not be so any more to the others.
    step = ranks.text_of_first("" if before is None else str(before.checkpoint.step))
    if step and before is None and run_dir is not None:
        before = Earlier.at(Path(run_dir))
    if step != ("" if before is None else str(before.checkpoint.step)):
        raise InputError(
            f"The first process goes on from step {step} of {run_dir}, which is not what this one "
            "finds there.",
            "Put the run where all processes can read it.",
        )
    # Nobody trains on before all have read.
    ranks.wait()
    return path, before


def engine_for(steps: int, device: torch.device) -> str:
    """The back end that so many steps are worth."""
    if steps < CAPTURE_STEPS:
        return "eager"
    return default_engine(device) if steps >= COMPILE_STEPS else "graph"


def _name(bound: object) -> str:
    """A bound as it is written, or at least its class and those of its options that say more."""
    if isinstance(bound, Bound):
        return repr(bound)
    told = vars(bound) if isinstance(bound, ELBO) else {}
    given = [
        f"{name}={told[name]!r}"
        for name, option in signature(type(bound)).parameters.items()
        # What a first step finds out, such as max_plate_nesting, says nothing of the bound.
        if name in told
        and name not in _MECHANICS
        and isinstance(told[name], bool | int | float)
        and told[name] != option.default
    ]
    return type(bound).__name__ + (f"({', '.join(given)})" if given else "")


def _make(optimizer: MakeOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the parameters.

    Raises:
        InputError: If none of torch's is made, or one that asks for more than a gradient.
    """
    try:
        made = optimizer(parameters) if callable(optimizer) else None
    except (TypeError, ValueError) as error:
        raise InputError(
            "The optimizer cannot be made of the program's parameters "
            f"({type(error).__name__}: {first_line(error)}).",
            "Give what makes one, such as functools.partial(torch.optim.Adam, lr=1e-3).",
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            f"The optimizer is of the class {type(optimizer).__name__}, which makes none of "
            "torch's of the program's parameters.",
            "Give what makes one, such as functools.partial(torch.optim.Adam, lr=1e-3).",
        )
    closure = signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(
            f"{type(made).__name__} asks for the loss several times in a step, and a step has "
            "it once.",
            "Take one that goes by a single gradient, such as torch.optim.Adam.",
        )
    return made


def _describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's class and options, as plain data."""
    plain = (bool, int, float, str, type(None))

    def told(options: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {k: as_number(v) for k, v in options.items()}
        return {k: v if isinstance(v, plain) else repr(v) for k, v in numbers.items()}

    # Of each group of parameters how many they are, and in what it is unlike the defaults.
    groups = [
        {"parameters": len(group["params"])}
        | told({k: group[k] for k, v in optimizer.defaults.items() if group[k] != v})
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, **told(optimizer.defaults), "groups": groups}


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []

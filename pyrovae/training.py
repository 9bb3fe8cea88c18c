r"""Training: epochs, schedules, validation, early stopping and checkpoints round one SVI step."""

__all__ = ["fit"]

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

from pyrovae import checkpoint
from pyrovae.bounds import Bound
from pyrovae.checkpoint import Checkpoint
from pyrovae.data import Batch, Data, Given, RawBatch
from pyrovae.devices import describe_environment, resolve_device
from pyrovae.errors import CheckpointError, InputError, NonFiniteError
from pyrovae.handlers import isolated_store, unregistered
from pyrovae.preparation import (
    as_splits,
    check_options,
    check_program,
    describe_data,
    describe_program,
    new_directory,
)
from pyrovae.programs import Program, as_module, evaluating
from pyrovae.progress import Progress
from pyrovae.randomness import generator, seed_generators, seeded
from pyrovae.runs import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, Run
from pyrovae.schedules import Schedule, constant, linear
from pyrovae.svi import Differentiable, Objective, Stepper, default_engine
from pyrovae.terms import mean_terms

# How often a running training saves itself. A checkpoint at every epoch would cost small data
# more than the training does.
SAVE_SECONDS = 30.0
# How many examples the training ELBO of an epoch is measured on, at most.
MONITOR_EXAMPLES = 10_000
# And how many of their values are kept from one epoch to the next, rather than made anew.
MONITOR_VALUES = 2**25
# Below so many steps, capturing and compiling take longer than they save (docs/performance.md).
CAPTURE_STEPS, COMPILE_STEPS = 500, 5000

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
    batch_size: int = 128,
    kl_warmup: float = 0.0,
    lr_schedule: Schedule | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    engine: str | None = None,
    precision: str = "float32",
    device: str | torch.device | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    config: dict[str, Any] | None = None,
) -> Run:
    r"""Trains a program by stochastic variational inference.

    Each step minimises the bound's loss over a batch, divided by the traced size of the plate
    `data`: nats per example. The parameters come from the program's modules, and Pyro's
    parameter store is afterwards what it was. Every random number of a step is a function of
    the seed and the step.

    Args:
        program: Any program of `pyrovae.programs`, such as `pyrovae.VAE`. It is trained in
            place.
        train: The training data: what `load_data` returns (then its validation and test sets
            are used too), examples, a tensor or array of the program's x, or a `Dataset`. One
            that fits in memory is read once, so that random items are drawn once;
            `Examples(dataset)` streams whatever its size.
        valid: The validation data, of the same kinds.
        test: The test data, kept for `Run.evaluate`.
        bound: What is maximised: one of `pyrovae.bounds` or of Pyro's `ELBO` objects;
            `pyro.infer.Trace_ELBO()` if None. Evaluation does not depend on it.
        optimizer: Called with the trainable parameters, such as
            `partial(torch.optim.Adam, lr=1e-3)`.
        epochs: How often to visit every training example.
        batch_size: How many examples make a step.
        kl_warmup: Over how many epochs the weight of the KL term rises from 0 to 1.
        lr_schedule: A factor on the optimizer's learning rate for each step.
        clip_norm: The norm that gradients are scaled down to where they exceed it.
        patience: Stop after so many epochs without a better validation ELBO, and keep the
            weights of the best. If None, train all epochs and keep the last weights.
        seed: The seed of order and noise.
        engine: The back end of the steps: `eager`, `graph`, `inductor`, or `auto`, which tries
            them all (see `pyrovae.svi.stepper`). If None, the program is captured where more
            than 500 steps are to be taken, and on the CPU compiled where more than 5,000 are.
        precision: `float32`, or `bf16` for matrix products of bfloat16 in the networks while
            training; all that is a probability, and every evaluation, stays in float32.
        device: The device; CUDA where there is one if None.
        run_dir: A new folder for checkpoints, metrics and what the run is asked for later. If
            None nothing is written.
        progress: Whether to show a progress bar, or a line per epoch where there is no terminal.
        config: What to record of the run besides what is known here.

    Returns:
        The run. Interrupted from the keyboard, it saves what it has and raises
        `KeyboardInterrupt`.

    Raises:
        InputError: If the program, the data or an option cannot be used, before the first step.
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
    check_options(
        epochs=epochs,
        batch_size=batch_size,
        kl_warmup=kl_warmup,
        clip_norm=clip_norm,
        patience=patience,
    )
    target = resolve_device(device)
    module = as_module(program).to(target)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    given = as_splits(train, valid, test, dtype=dtype)
    splits = {name: split.to(target) for name, split in given.items()}
    if patience is not None and "valid" not in splits:
        raise InputError("Early stopping needs validation data.", "Give valid, or no patience.")

    with unregistered(), isolated_store(empty=True), torch.random.fork_rng(devices=_cuda(target)):
        structure = check_program(program, splits)
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise InputError(
                f"The program {type(program).__name__} has no parameter to train.",
                "Make it an nn.Module, or keep the modules that it uses as its attributes.",
            )
        steps = -(-len(splits["train"]) // batch_size)
        weight = torch.ones((), device=target) if kl_warmup else None
        train_set = splits["train"]
        redraw = train_set.redraw if train_set.preprocessing.redraws else None
        objective = Objective(program, structure, bound or Trace_ELBO(), weight, redraw)
        step = Stepper(
            objective,
            optimizer(parameters),
            owners=[module],
            engine=engine or _engine_for(epochs * steps, target),
            precision=precision,
            clip_norm=clip_norm,
            find_cause=objective.find_cause,
        )
        told = {
            "program": describe_program(program),
            "parameters": sum(p.numel() for p in module.parameters()),
            "data": describe_data(train if isinstance(train, Data) else None, splits["train"]),
            "training": {
                "epochs": epochs,
                "batch_size": batch_size,
                "kl_warmup": kl_warmup,
                "bound": _name(bound or Trace_ELBO()),
                "clip_norm": clip_norm,
                "patience": patience,
                "seed": seed,
            },
            **(config or {}),
        }
        path = new_directory(run_dir)
        run = Run(program, splits, [], told, describe_environment(target), path)
        loop = _Loop(
            run=run,
            objective=objective,
            step=step,
            kl_weight=linear(0.0, 1.0, round(kl_warmup * steps)),
            lr_schedule=lr_schedule or constant(),
            batch_size=batch_size,
            seed=seed,
        )
        module.train()
        try:
            loop.train(epochs, patience, Progress(epochs, steps, shown=progress))
        finally:
            module.eval()

    return run


def _engine_for(steps: int, device: torch.device) -> str:
    """The back end that so many steps are worth."""
    if steps < CAPTURE_STEPS:
        return "eager"
    return default_engine(device) if steps >= COMPILE_STEPS else "graph"


def _name(bound: object) -> str:
    """A bound as it is written, or at least its class."""
    return repr(bound) if isinstance(bound, Bound) else type(bound).__name__


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


# ── The loop ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Loop:
    """A run in training: the state that its epochs share."""

    run: Run
    objective: Objective
    step: Stepper
    kl_weight: Schedule
    lr_schedule: Schedule
    batch_size: int
    seed: int
    taken: int = 0
    best: "_Best | None" = None
    saved_at: float = field(default_factory=time.monotonic)

    def train(self, epochs: int, patience: int | None, progress: Progress) -> None:
        """Trains, and saves what there is however the training ends."""
        self._prepare(progress)
        self._describe()
        monitors = {
            name: self._monitor(name) for name in ("train", "valid") if name in self.run.splits
        }
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            with progress:
                for epoch in range(1, epochs + 1):
                    record = self._epoch(epoch, rates, progress)
                    record |= self._bounds(monitors)
                    self._record(record)
                    progress.epoch(record)
                    if self._should_stop(record, patience):
                        break
                    if time.monotonic() - self.saved_at > SAVE_SECONDS:
                        self._save()
        except CheckpointError:
            raise
        except BaseException:
            self._save()
            raise

        if patience is not None and self.best is not None:
            as_module(self.run.program).load_state_dict(self.best.weights)
            self.run.config["best_epoch"] = self.best.epoch
            self._describe()
        self._save()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What updates the weights."""
        optimizer = self.step.update.optimizer
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def _prepare(self, progress: Progress) -> None:
        """Captures the step of a whole batch, and that of the last one where it is smaller.

        The first also runs under Pyro's validation of shapes and supports. The last batch of an
        epoch is not worth compiling.
        """
        train = self.run.splits["train"]
        size = min(self.batch_size, len(train))
        last = len(train) % size
        start = time.perf_counter()
        if self.step.engine in ("inductor", "auto"):
            progress.note("compiling the step (seconds, less where it is cached) ...")
        # Numbers that are not finite are for the step to report, that knows where it is.
        with pyro.validation_enabled(True), suppress(NonFiniteError):
            whole = self._inputs(train.raw(torch.arange(size)))
            used = self.step.prepare(*whole)
            if last:
                rest = self._inputs(train.raw(torch.arange(last)))
                name = "graph" if used["name"] == "inductor" else used["name"]
                self.step.prepare(*rest, engine=name)
            self.run.config["engine"] = used
            seconds = time.perf_counter() - start
            progress.note(f"engine {used['name']}, {used['precision']}, ready in {seconds:.1f} s")

    def _epoch(self, epoch: int, rates: list[float], progress: Progress) -> dict[str, Any]:
        """The steps of one epoch: the training loss, the gradient's norm, the speed."""
        start = time.perf_counter()
        train = self.run.splits["train"]
        totals, seen = torch.zeros(2, dtype=torch.float64, device=train.device), 0
        weight = 1.0
        steps = -(-len(train) // self.batch_size)

        for index, raw in enumerate(train.shuffled(self.batch_size, seed=self.seed, epoch=epoch)):
            weight = self.kl_weight(self.taken)
            if self.objective.weight is not None:
                self.objective.weight.fill_(weight)
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.lr_schedule(self.taken)

            self._seed_step()
            try:
                result = self.step(*self._inputs(raw))
                if index == steps - 1:
                    self.step.check()
            except NonFiniteError as error:
                ago = error.steps_ago
                where = f"In epoch {epoch}, batch {index - ago} (step {self.taken - ago})"
                raise NonFiniteError(f"{where}: {error.cause}", error.remedy) from None
            self.taken += 1
            totals += torch.stack(result) * len(raw.rows)
            seen += len(raw.rows)
            progress.step()

        loss, grad_norm = (totals / seen).tolist()
        seconds = time.perf_counter() - start
        return {
            "epoch": epoch,
            "step": self.taken,
            "loss": loss,
            "grad_norm": grad_norm,
            "kl_weight": weight,
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
            "examples_per_second": seen / seconds,
        }

    def _inputs(self, raw: RawBatch) -> tuple[Tensor, Tensor | None]:
        """The arguments of a step: as they lie where the step itself draws the noise."""
        train = self.run.splits["train"]
        batch = raw if train.preprocessing.redraws else train.prepare(raw)
        return batch.x, batch.y

    def _seed_step(self) -> None:
        seed_generators(self.seed, "step", self.taken, device=self.run.splits["train"].device)

    def _monitor(self, name: str) -> Callable[[], Iterable[Batch]]:
        """The examples that an epoch's bound is measured on, their noise the same every time."""
        examples = self.run.splits[name]
        # Of the training set as many as there are to validate on, so that the two compare, and
        # any: data may be sorted.
        rows = torch.arange(len(examples))
        if name == "train":
            count = min(MONITOR_EXAMPLES, len(self.run.splits.get("valid", examples)))
            order = torch.randperm(len(rows), generator=generator(self.seed, "monitor"))
            rows = order[:count].sort().values
        if examples.streams or len(rows) * math.prod(examples.x_shape) > MONITOR_VALUES:
            return partial(examples.chosen, rows, examples.block)

        kept = list(examples.chosen(rows, examples.block))
        return lambda: kept

    def _bounds(self, monitors: dict[str, Callable[[], Iterable[Batch]]]) -> dict[str, float]:
        """The ELBO at weight 1 by one draw for each example, and its terms, held-out if can be.

        Without a bound on log p(x) there is the log-likelihood alone.
        """
        structure = self.objective.structure
        if structure.global_latents:
            return {}
        found: dict[str, float] = {}
        device = self.run.splits["train"].device
        for name, batches in monitors.items():
            with (
                evaluating(self.run.program),
                seeded(self.seed, "monitor", name, device=device),
            ):
                elbo, log_likelihood, kl = mean_terms(self.run.program, batches(), structure)
            found["log_likelihood"] = log_likelihood
            if structure.has_bound:
                found |= {"kl": kl, f"{name}_elbo": elbo}
        return found

    def _should_stop(self, record: dict[str, Any], patience: int | None) -> bool:
        """Whether the validation ELBO, or else likelihood, has not risen for so many epochs."""
        # The bound of a warm-up is not yet the one that is optimised: nothing counts before.
        if patience is None or self.kl_weight(self.taken) < 1:
            return False
        score = record["valid_elbo" if "valid_elbo" in record else "log_likelihood"]
        if self.best is None or score > self.best.score:
            weights = copy.deepcopy(as_module(self.run.program).state_dict())
            self.best = _Best(score, record["epoch"], weights)
        return record["epoch"] - self.best.epoch >= patience

    # ── The directory ──

    def _describe(self) -> None:
        """Writes what the run was told, and where it runs."""
        for name, content in ((CONFIG, self.run.config), (ENVIRONMENT, self.run.environment)):
            self.run.write(name, json.dumps(content, indent=1) + "\n")

    def _record(self, record: dict[str, Any]) -> None:
        self.run.metrics.append(record)
        self.run.write(METRICS, json.dumps(record) + "\n", append=True)

    def _save(self) -> None:
        if self.run.path is None:
            return
        best = None if self.best is None else vars(self.best)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "epoch": len(self.run.metrics),
            "best": best,
        }
        weights = as_module(self.run.program).state_dict()
        checkpoint.save(self.run.path / CHECKPOINTS, Checkpoint(self.taken, weights, state))
        self.saved_at = time.monotonic()


@dataclass
class _Best:
    """The weights of the best validation score so far."""

    score: float
    epoch: int
    weights: dict[str, Tensor]

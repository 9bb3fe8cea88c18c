"""The loop of training: epochs, schedules, validation, early stopping and checkpoints."""

__all__ = ["Loop"]

import copy
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae import checkpoint, run_folder, shared_noise, user_files
from pyrovae.checkpoint import Checkpoint
from pyrovae.data import RawBatch
from pyrovae.errors import CheckpointError, InputError, NonFiniteError, RankError
from pyrovae.interrupts import Interrupts
from pyrovae.monitoring import Monitor, check_weights
from pyrovae.programs import as_module
from pyrovae.progress import Progress
from pyrovae.randomness import seed_generators
from pyrovae.ranks import ALONE, Ranks
from pyrovae.run_folder import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, differences
from pyrovae.runs import Run
from pyrovae.schedules import Schedule
from pyrovae.stages import Stages
from pyrovae.svi import Objective, Stepper
from pyrovae.svi.guard import placed
from pyrovae.svi.stepper import LATE_STEPS

# How often a running training saves itself. A checkpoint at every epoch would cost small data
# more than the training does.
SAVE_SECONDS = 30.0


@dataclass
class Loop:
    """A run in training: the state that its epochs share.

    All that changes as it goes on is in `state`, from which it continues to the same bits: the
    noise and the order of a step are functions of the seed and its number, and the schedules of
    its number.

    Attributes:
        run: What is trained.
        objective: What a step minimises.
        step: One step.
        kl_weight: The weight of the KL term at each step.
        lr_schedule: The factor on the learning rate at each step.
        batch_size: How many examples make a step.
        steps_per_replay: How many steps are taken as one where they can be. They are seeded and
            scheduled by the first of them, and a run is saved behind the last.
        patience: After how many epochs without a better validation bound to stop, or None.
        seed: The seed of order and noise.
        taken: How many steps were taken.
        epoch: How many epochs are whole.
        totals: The sums over the epoch's examples so far of the loss and the gradient's norm.
        seen: How many examples these are.
        best: The best epoch so far, if one is looked for.
        stopped: Whether it has stopped early.
        on_epoch: What is called with the run after each epoch, if anything is.
        ranks: The processes that train it together. The first alone has a folder to write to.
    """

    run: Run
    objective: Objective
    step: Stepper
    kl_weight: Schedule
    lr_schedule: Schedule
    batch_size: int
    patience: int | None
    seed: int
    steps_per_replay: int = 1
    taken: int = 0
    epoch: int = 0
    totals: Tensor = field(init=False)
    seen: int = 0
    best: "_Best | None" = None
    stopped: bool = False
    on_epoch: "Callable[[Run], object] | None" = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        device = self.run.splits["train"].device
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)
        # As they are now: those in a checkpoint are what a schedule had made of them.
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.saved_at = time.monotonic()
        self.is_whole = True
        # The step and the epoch of the last checkpoint.
        self.saved: tuple[int, int] | None = None
        # Whether the run that is gone on with had given its back end up.
        self.is_distrusted = False
        # The running statistics that its processes had, if there were several.
        self.statistics: Sequence[Sequence[Tensor]] = ()
        self.stages = Stages(self.run.path)

    def train(self, epochs: int, progress: Progress) -> None:
        """Trains so many epochs in all, and saves what there is however the training ends.

        A signal is answered when the step that it fell into is whole and saved.
        """
        self._begin_alike()
        self._prepare(progress)
        if self.is_distrusted:
            self.step.distrust()
        self._describe()
        self.run.forget()
        monitor = Monitor(self.run.splits, self.seed, self.ranks)
        try:
            with progress, Interrupts() as interrupts:
                progress.step(self.taken)
                while self.epoch < epochs and not self.stopped:
                    record = self._epoch(self.epoch + 1, progress, interrupts)
                    self._share_statistics()
                    record |= monitor.measure(
                        self.run.program, self.objective.structure, self.epoch + 1
                    )
                    self._record(record)
                    progress.epoch(record)
                    self.is_whole = False
                    self.epoch, self.seen = self.epoch + 1, 0
                    self.totals = torch.zeros_like(self.totals)
                    self.stopped = self._should_stop(record)
                    self.is_whole = True
                    self.stages.take(self.epoch, self.run.program, self.run.splits["train"])
                    if self.on_epoch is not None and self.ranks.is_first:
                        self.on_epoch(self.run)
                    due, ends = self._ask(interrupts)()
                    if due:
                        self._save_together(interrupts, ends)
                self.is_whole = False
                self._finish()
        except CheckpointError:
            raise
        except NonFiniteError:
            with suppress(NonFiniteError):
                self._save()
            raise
        except BaseException:
            # What a step was doing when it was broken off is not worth keeping.
            if self.is_whole and self.saved != (self.taken, self.epoch):
                with suppress(NonFiniteError):
                    self.step.check()
                    self._save()
            raise

    def _finish(self) -> None:
        """Saves the weights of the best epoch, where one was looked for, or else the last."""
        module = as_module(self.run.program)
        last = None
        if self.patience is not None and self.best is not None:
            last = copy.deepcopy(module.state_dict())
            module.load_state_dict(self.best.weights)
            self.run.config["best_epoch"] = self.best.epoch
            self._describe()
        self._save(last, finished=True)

    def restore(self, found: Checkpoint, metrics: list[dict[str, Any]]) -> None:
        """Goes on from a checkpoint, and from the records of the epochs before it.

        Raises:
            CheckpointError: If it is of a version that saved less.
        """
        state = found.state
        if "finished" not in state:
            raise CheckpointError(
                "The checkpoint is of a version of pyrovae that could not resume.",
                "Load the run and evaluate it, or train it anew.",
            )
        as_module(self.run.program).load_state_dict(
            found.weights if state["last"] is None else state["last"]
        )
        self.optimizer.load_state_dict(state["optimizer"])
        self.taken, self.epoch, self.seen = found.step, state["epoch"], state["seen"]
        self.totals.copy_(state["totals"])
        self.best = None if state["best"] is None else _Best(**state["best"])
        self.stopped = state["stopped"]
        self.is_distrusted = state.get("distrusted", False)
        self.statistics = state.get("statistics", ())
        self.run.metrics[:] = metrics[: self.epoch]
        self._write_metrics()
        if self.stages.path is not None:
            self.stages = Stages.of(self.stages.path, self.epoch)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What updates the weights."""
        optimizer = self.step.update.optimizer
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def _prepare(self, progress: Progress) -> None:
        """Captures the step of a whole batch, and that of the last one where it is smaller.

        Of several processes each captures those of its own shares. The first also runs under
        Pyro's validation of shapes and supports. The last batch of an epoch is not worth
        compiling.
        """
        train = self.run.splits["train"]
        size = min(self.batch_size, len(train))
        last = len(train) % size
        own, own_last = (max(1, len(self.ranks.rows(torch.arange(n)))) for n in (size, last))
        start = time.perf_counter()
        if self.step.engine in ("inductor", "auto"):
            progress.note("compiling the step (seconds, less where it is cached) ...")
        whole = self._inputs(train.raw(torch.arange(own)))
        used: dict[str, Any] = {}
        # Numbers that are not finite are for the step to report, that knows where it is.
        with pyro.validation_enabled(True), suppress(NonFiniteError), self._normalises(size):
            used = self.step.prepare(*whole)
        # Which is the fastest is for one process to say, and all are to ask it.
        named = self.ranks.text_of_first(used.get("name", ""))
        if not used:
            return
        with pyro.validation_enabled(True), suppress(NonFiniteError):
            if named not in ("", used["name"]):
                used = self.step.prepare(*whole, engine=named)
            if last and own_last != own:
                rest = self._inputs(train.raw(torch.arange(own_last)))
                name = "graph" if used["name"] == "inductor" else used["name"]
                with self._normalises(last):
                    self.step.prepare(*rest, engine=name)
            self._check_engine(used)
            self.run.config["engine"] = used
            seconds = time.perf_counter() - start
            progress.note(f"engine {used['name']}, {used['precision']}, ready in {seconds:.1f} s")

    @contextmanager
    def _normalises(self, rows: int) -> Iterator[None]:
        """Says so where this process's share of so many rows is too small to be normalised.

        Raises:
            InputError: If it is.
        """
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            which = f"A batch of {rows} leaves a process" if self.ranks.size > 1 else "A batch is"
            raise InputError(
                f"{which} a single row, on which batch normalisation cannot train.",
                f"Choose another --batch-size for {len(self.run.splits['train']):,} rows, or "
                "group normalisation.",
            ) from error

    def _check_engine(self, used: dict[str, Any]) -> None:
        """Refuses to go on to other bits.

        Raises:
            InputError: If what the run was trained by could not be had again.
        """
        if found := differences(self.run.config.get("engine", used), used):
            raise InputError(
                f"The run would not go on to the same bits: its engine's {'; '.join(found)}.",
                "Resume it where it was trained, with the versions in its environment.json.",
            )

    def _epoch(self, epoch: int, progress: Progress, interrupts: Interrupts) -> dict[str, Any]:
        """The steps of one epoch: the training loss, the gradient's norm, the speed."""
        start, before = time.perf_counter(), self.seen
        train = self.run.splits["train"]
        steps = -(-len(train) // self.batch_size)
        first = (epoch - 1) * steps
        done = self.taken - first
        batches = train.shuffled(
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            start=done,
            together=self.steps_per_replay,
            ranks=self.ranks,
        )
        # What there was before each of the steps that may not have been asked about yet.
        sums: deque[tuple[int, Tensor, int]] = deque(maxlen=LATE_STEPS + 1)

        for raw in batches:
            before_run = self.taken - self.step.begun
            sums.append((self.taken, self.totals, self.seen))
            self._schedule()
            self._seed_step()
            alike = self._in_steps(raw)
            self.is_whole = False
            asked = self._ask(interrupts)
            try:
                for inputs in alike:
                    self._take(inputs, len(train) - (self.taken - first) * self.batch_size)
                due, ends = asked()
                if due or self.taken == first + steps:
                    self.step.check()
            except NonFiniteError as error:
                self.taken = before_run + self.step.begun - 1 - error.steps_ago
                whole = (s for s in reversed(sums) if s[0] <= self.taken)
                _, self.totals, self.seen = next(whole, sums[0])
                where = f"In epoch {epoch}, batch {self.taken - first} (step {self.taken})"
                where += self.ranks.said
                raise placed(error, where, step=self.taken) from None
            self.is_whole = True
            progress.step(sum(map(len, alike)))
            if due:
                self._save_together(interrupts, ends)

        scheduled = first + (steps - 1) // self.steps_per_replay * self.steps_per_replay
        loss, grad_norm = (self.totals / self.seen).tolist()
        seconds = time.perf_counter() - start
        return {
            "epoch": epoch,
            "step": self.taken,
            "loss": loss,
            "grad_norm": grad_norm,
            "kl_weight": self.kl_weight(scheduled),
            "lr": self.rates[0] * float(self.lr_schedule(scheduled)),
            "seconds": seconds,
            "examples_per_second": (self.seen - before) / seconds,
        }

    def _schedule(self) -> None:
        """Sets the weight of the KL and the learning rate."""
        if self.objective.weight is not None:
            self.objective.weight.fill_(self.kl_weight(self.taken))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * float(self.lr_schedule(self.taken))

    def _take(self, inputs: Sequence[tuple[Any, ...]], left: int) -> None:
        """Takes steps of one size, out of so many examples that are left of the epoch."""
        count = min(self.batch_size, left)
        if self.step.exchange is not None:
            self.step.exchange.share = self.ranks.share(count)
        if len(inputs) == 1:
            found = torch.stack(self.step(*inputs[0]))
        else:
            found = torch.stack(self.step.together(inputs)).sum(1)
        self.taken += len(inputs)
        self.totals = self.totals + found * count
        self.seen += len(inputs) * count

    def _is_due(self, interrupts: Interrupts) -> bool:
        """Whether to save: from time to time, and before a signal is answered."""
        return bool(interrupts.received) or time.monotonic() - self.saved_at > SAVE_SECONDS

    def _ask(self, interrupts: Interrupts) -> Callable[[], tuple[bool, bool]]:
        """Asks whether to save, and to end: processes that train together do so at one step.

        Of several it is settled before the step and known after it; a signal that comes in
        between is answered after the next one.
        """
        if self.ranks.size == 1:
            return lambda: (self._is_due(interrupts), True)
        answer = self.ranks.ask(self._is_due(interrupts), interrupts.received or 0)

        def settled() -> tuple[bool, bool]:
            due, received = answer()
            interrupts.received = interrupts.received or received or None
            return bool(due), bool(received)

        return settled

    def _save_together(self, interrupts: Interrupts, ends: bool) -> None:
        """Saves, and then answers a signal if there is one, and all know of it.

        Each process goes on with the running statistics that it has, saved or not: else the bits
        of a program that reads them in training would depend on when it was saved.
        """
        self._save(statistics=self.ranks.of_each(self._statistics()))
        if ends:
            # Lest the first be ended, because another one has, before it has saved.
            with suppress(RankError):
                self.ranks.wait()
            interrupts.answer()

    def _share_statistics(self) -> None:
        """Gives every process the running statistics of the first, which are of its shares."""
        self.ranks.copy_from_first(self._statistics())

    def _statistics(self) -> list[Tensor]:
        """The buffers that may be statistics of what a process has seen."""
        return [b for b in as_module(self.run.program).buffers() if b.is_floating_point()]

    def _begin_alike(self) -> None:
        """Gives every process the weights of the first, and the statistics that it had itself."""
        module = as_module(self.run.program)
        self.ranks.copy_from_first([*module.parameters(), *module.buffers()])
        if len(self.statistics) == self.ranks.size > 1:
            own = self.statistics[self.ranks.rank]
            for buffer, value in zip(self._statistics(), own, strict=True):
                buffer.copy_(value)

    def _inputs(self, raw: RawBatch) -> tuple[Tensor, Tensor | None]:
        """The arguments of a step: as they lie where the step itself draws the noise."""
        train = self.run.splits["train"]
        batch = raw if train.preprocessing.redraws else train.prepare(raw)
        return batch.x, batch.y

    def _in_steps(self, raw: RawBatch) -> list[list[tuple[Any, ...]]]:
        """The arguments of the steps of a batch, those of one size together."""
        x, y = self._inputs(raw)
        xs = x.split(self.batch_size)
        ys = [None] * len(xs) if y is None else y.split(self.batch_size)
        parts = list(zip(xs, ys, strict=True))
        whole = [part for part in parts if len(part[0]) == len(xs[0])]
        return [alike for alike in (whole, parts[len(whole) :]) if alike]

    def _seed_step(self) -> None:
        """Noise of the steps: each process's own, and that of latents which all of them share."""
        device = self.run.splits["train"].device
        seed_generators(self.seed, "step", self.taken, *self.ranks.key, device=device)
        if self.objective.shares_noise:
            shared_noise.seed(self.seed, "step", self.taken, device=device)

    def _should_stop(self, record: dict[str, Any]) -> bool:
        """Whether the validation ELBO, or else likelihood, has not risen for so many epochs."""
        # The bound of a warm-up is not yet the one that is optimised: nothing counts before.
        if self.patience is None or self.kl_weight(self.taken) < 1:
            return False
        score = record["valid_elbo" if "valid_elbo" in record else "log_likelihood"]
        if self.best is None or score > self.best.score:
            weights = copy.deepcopy(as_module(self.run.program).state_dict())
            self.best = _Best(score, record["epoch"], weights)
        return record["epoch"] - self.best.epoch >= self.patience

    # ── The directory ──

    def _describe(self) -> None:
        """Writes what the run was told, and where it runs."""
        for name, content in ((CONFIG, self.run.config), (ENVIRONMENT, self.run.environment)):
            self.run.write(name, json.dumps(content, indent=1) + "\n")
        if self.run.path is not None:
            user_files.copy_into(self.run.path, self.run.config)

    def _record(self, record: dict[str, Any]) -> None:
        self.run.metrics.append(record)
        self.run.write(METRICS, _as_line(record), append=True)

    def _write_metrics(self) -> None:
        """Those of the epochs that are whole: a run may have died with more than it had saved."""
        self.run.write(METRICS, "".join(map(_as_line, self.run.metrics)))

    def _save(
        self,
        last: dict[str, Tensor] | None = None,
        *,
        finished: bool = False,
        statistics: Sequence[Sequence[Tensor]] = (),
    ) -> None:
        """Writes a checkpoint.

        Args:
            last: The last weights, where those of the program are others.
            finished: Whether the training is over.
            statistics: Those of every process, where they are not all the same.

        Raises:
            NonFiniteError: If a weight is not finite.
        """
        self.saved_at = time.monotonic()
        check_weights(self.run.program, f"After step {self.taken}")
        if self.run.path is None:
            return
        state = {
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "totals": self.totals,
            "seen": self.seen,
            "best": None if self.best is None else vars(self.best),
            "stopped": self.stopped,
            "last": last,
            "finished": finished,
            "distrusted": self.step.is_distrusted,
            "statistics": statistics if len(statistics) > 1 else [],
            **run_folder.sealed(self.run.config),
        }
        weights = as_module(self.run.program).state_dict()
        checkpoint.save(self.run.path / CHECKPOINTS, Checkpoint(self.taken, weights, state))
        self.saved = self.taken, self.epoch


def _as_line(record: dict[str, Any]) -> str:
    """A record as JSON, which has no infinite numbers."""
    finite = {
        name: None if isinstance(value, float) and math.isinf(value) else value
        for name, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


@dataclass
class _Best:
    """The weights of the best validation score so far."""

    score: float
    epoch: int
    weights: dict[str, Tensor]

"""`train --dry-run`: what would be done, how long it would take, and the same in Python."""

__all__ = ["rehearse"]

import time
import warnings
from typing import TYPE_CHECKING

from pyrovae.cli.as_python import as_python
from pyrovae.cli.planning import Plan
from pyrovae.cli.printing import print_plan

if TYPE_CHECKING:
    from pyrovae.data import Examples

# How many batches of an epoch are timed.
BATCHES = 10


def rehearse(plan: Plan) -> None:
    """Prints what a training would be, after three short epochs of it."""
    source = as_python(plan)
    print_plan(plan)
    ready, epoch = _timed(plan)
    total = ready + epoch * plan.epochs
    print(
        f"time     about {_shown(total)}: {_shown(ready)} until the first step, {_shown(epoch)} "
        f"an epoch, by {min(BATCHES, plan.steps)} batches of one; then it is measured"
    )
    print(f"\nThe same in Python:\n\n{source}\n\nNothing was trained.")


def _timed(plan: Plan) -> tuple[float, float]:
    """The seconds until the first step, and those of an epoch with its validation."""
    from pyrovae.preparation import PlateSizeWarning
    from pyrovae.training import engine_for, fit

    train = plan.data.train
    rows = min(len(train), BATCHES * plan.options.batch_size)
    share = rows / len(train)
    ends: list[float] = []
    told = plan.for_fit() | {"epochs": 3, "patience": None}
    told["engine"] = told["engine"] or engine_for(plan.epochs * plan.steps, plan.device)
    start = time.perf_counter()
    with warnings.catch_warnings():
        # These are not all of the training data.
        warnings.simplefilter("ignore", PlateSizeWarning)
        fit(
            plan.program,
            _first(train, rows),
            valid=_first(plan.data.valid, max(1, round(share * len(plan.data.valid)))),
            progress=False,
            on_epoch=lambda _: ends.append(time.perf_counter()),
            **told,
        )
    # The first epoch is slow, of memory that is not there yet.
    first, *_, last = ends
    short = (last - first) / (len(ends) - 1)

    return max(first - start - short, 0.0), short / share


def _first(examples: "Examples", count: int) -> "Examples":
    """The first examples of a split, as a split."""
    from pyrovae.data import Examples

    raw = examples.raw(list(range(count)))
    return Examples(
        raw.x,
        raw.y,
        preprocessing=examples.preprocessing,
        missing=examples.missing,
        split=examples.split,
    )


def _shown(seconds: float) -> str:
    """A time in its own unit."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

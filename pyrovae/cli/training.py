"""The verb `train`."""

__all__ = ["train"]

import json
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae import run_folder
from pyrovae.cli.planning import claim, plan
from pyrovae.cli.printing import print_numbers, print_plan
from pyrovae.cli.rehearsal import rehearse
from pyrovae.errors import InputError

if TYPE_CHECKING:
    from pyrovae.evaluation import Evaluation
    from pyrovae.ranks import Ranks
    from pyrovae.resuming import Earlier
    from pyrovae.runs import Run

# What `train` measures at its end: enough for an error bar well under a nat in a few seconds.
FINAL_SAMPLES, FINAL_EXAMPLES = 500, 1000


def train(
    options: Any, spec: str | None, words: list[str], *, resume: "bool | Earlier" = False
) -> None:
    """Trains what the options say, measures it, and prints what it found and what comes next."""
    from pyrovae.ranks import joined

    with joined() as ranks:
        _train(options, spec, words, resume, ranks)


def _train(
    options: Any, spec: str | None, words: list[str], resume: "bool | Earlier", ranks: "Ranks"
) -> None:
    """What each of the processes does; the first alone measures and reports."""
    from pyrovae.tensorboard import TensorBoard
    from pyrovae.training import fit

    if options.dry_run and ranks.size > 1:
        raise InputError("A dry run is of one process.", "Leave out torchrun.")
    if options.dry_run and (options.quiet or options.json):
        raise InputError(
            "A dry run says what would be done, which --quiet and --json leave out.",
            "Give one of them.",
        )
    with ranks.in_turn():
        planned = plan(options, spec, words)
    if options.dry_run:
        rehearse(planned)
        return
    if ranks.is_first:
        claim(planned)
    planned.path = Path(ranks.text_of_first(str(planned.path)))
    talks = ranks.is_first and not (options.quiet or options.json)
    if talks:
        print_plan(planned, ranks.size)
    try:
        run = fit(
            planned.program,
            planned.data,
            run_dir=planned.path,
            resume=resume,
            progress=talks,
            on_epoch=TensorBoard() if options.tensorboard else None,
            config=planned.record,
            **planned.for_fit(),
        )
    except KeyboardInterrupt:
        if talks:
            name = shlex.quote(str(planned.path))
            print(f"\nTo go on with it: {_own_name()} resume {name}", flush=True)
        raise
    except InputError:
        for folder in (planned.path, planned.path.parent) if options.run_dir is None else ():
            with suppress(OSError):
                folder.rmdir()  # where nothing was written
        raise
    if not ranks.is_first:
        return
    found = None
    # None is to train it on while it is measured: two would write the same files.
    with run_folder.held(planned.path):
        if run.structure.has_bound:
            found = run.evaluate(num_samples=FINAL_SAMPLES, limit=FINAL_EXAMPLES)
        report = run.report()
    if options.json:
        measured = {} if found is None else found.summary()
        print(json.dumps({"run": str(planned.path), "report": str(report), **measured}))
    elif options.quiet:
        print(planned.path)
    else:
        _print_end(run, found, planned.path, report)


def _print_end(run: "Run", found: "Evaluation | None", path: Path, report: Path) -> None:
    """What was found, where it is, and what to type next."""
    print()
    if found is None:
        print("The program has no log p(x) to measure: see pyrovae.Autoencoder.")
    else:
        print_numbers(found, run)
    print(f"\nrun      {path}\nreport   {report}\n\nNext:")
    name = shlex.quote(str(path))
    measured = (f"evaluate {name} --num-samples 5000", f"sample {name}", f"traverse {name}")
    shown = (f"reconstruct {name}", f"interpolate {name}", f"traverse {name}")
    for verb in shown if found is None else measured:
        print(f"  {_own_name()} {verb}")


def _own_name() -> str:
    """What to type to call this command: "pyrovae" where the shell would find it."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m pyrovae"
    found = shutil.which("pyrovae")
    if called.name != "pyrovae" or (found and Path(found).resolve() == called.resolve()):
        return "pyrovae"
    return shlex.quote(str(called))

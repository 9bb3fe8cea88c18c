"""The verbs that take a run."""

__all__ = ["with_run"]

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.cli.options import (
    Encode,
    Evaluate,
    Explore,
    Export,
    Interpolate,
    Reconstruct,
    Report,
    Sample,
)
from pyrovae.cli.printing import print_numbers
from pyrovae.run_folder import EVALUATION

# What a verb that draws writes where nothing else is said.
SUFFIXES = (".png", ".npz")

if TYPE_CHECKING:
    from pyrovae.plots import Picture
    from pyrovae.runs import Run


def with_run(command: Any) -> None:
    """Loads the run of a command, and does with it what the command says."""
    from pyrovae.restoring import load
    from pyrovae.run_folder import find

    command.run = find(command.run)
    run = load(
        command.run,
        program=command.program,
        data_dir=command.data_dir,
        device=command.device,
        trust_source=command.trust_source,
    )
    if getattr(command, "data", None) is not None:
        run = run.on(command.data, data_dir=command.data_dir)
    if isinstance(command, Evaluate):
        _evaluate(run, command)
    elif isinstance(command, Encode):
        _encode(run, command)
    elif isinstance(command, Explore):
        from pyrovae.explore import serve

        serve(run, port=command.port, open_browser=command.open)
    elif isinstance(command, Export):
        print(run.export_onnx(command.output or command.run / "export"))
    elif isinstance(command, Report):
        print(run.report())
    else:
        picture, verb = _draw(run, command), type(command).__name__.lower()
        beside = command.run / verb / verb
        suffixes = (*SUFFIXES, ".csv") if picture.columns else SUFFIXES
        for path in [command.output] if command.output else map(beside.with_suffix, suffixes):
            print(picture.save(path))


def _evaluate(run: "Run", command: Evaluate) -> None:
    found = run.evaluate(num_samples=command.num_samples, limit=command.limit, seed=command.seed)
    if command.json:
        print(json.dumps(found.summary()))
    else:
        print_numbers(found, run)
        if run.path is not None:  # numbers of other data than the run's own are not kept
            print(f"\n{run.path / EVALUATION}")


def _encode(run: "Run", command: Encode) -> None:
    from pyrovae.plots import save_arrays

    # Other data stand in the place of the test set.
    split = "test" if command.data else command.split
    name = Path(command.data).stem if command.data else split
    found = run.encode(split)
    known = {"y": found.y, "names": found.names}
    labels = {name: array for name, array in known.items() if array is not None}
    path = command.output or command.run / "encode" / f"{name}.npz"
    print(save_arrays(path, {**found.means, **labels}))


def _draw(run: "Run", command: Any) -> "Picture":
    if isinstance(command, Sample):
        return run.sample(command.count, draw=command.draw, seed=command.seed)
    if isinstance(command, Reconstruct):
        return run.reconstruct(command.count)
    if isinstance(command, Interpolate):
        return run.interpolate(command.start, command.end, steps=command.steps)
    dims = None if command.dims is None else list(command.dims)
    return run.traverse(command.example, site=command.site, dims=dims)

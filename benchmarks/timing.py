"""Contenders timed side by side, and the Markdown table that comes of it.

All contenders live in one process, with the same threads. Each is built, and takes one turn that
is not counted: it compiles, and caches fill. Then they take turns `repeats` times, in an order
that is reversed every time, so that a machine that slows down slows all of them. Before a turn
garbage is collected, and a turn of steps begins with a tenth as many that are not timed. Reported
are the median over the turns, the smallest and the largest; a ratio is the median of the ratios
within a round of turns.
"""

import argparse
import gc
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyro
import torch

from pyrovae.devices import describe_environment

SEED = 0
PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "pythae", "scvi-tools", "pyrovae")

Turn = Callable[[], float]
"""One turn of a contender: it returns the seconds that one step, or epoch, took."""
Steps = Callable[[int], Any]
"""Takes so many steps."""
Found = list[float] | str
"""The seconds of each turn, or why there are none."""
# How many of a unit are a second.
UNITS = {"ms": 1e3, "s": 1.0}


class NotMeasured(Exception):
    """A contender cannot run here, or not as what it is called; the message says why."""


# ── Measuring ────────────────────────────────────────────────────────────────────────────────


def each(step: Callable[[], Any]) -> Steps:
    """Steps one by one."""

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def steps_of(svi: Any, *args: Any, engine: str | None = None, store: Any = None) -> Steps:
    """Steps of an SVI whose parameters no other contender sees under the same names.

    Args:
        svi: One of Pyro's or ours.
        args: The arguments of a step.
        engine: The back end that ours is to have.
        store: Pyro's parameter store as it is when the steps begin; an empty one if None.
    """
    state = store or {"params": {}, "constraints": {}}

    def steps(count: int) -> None:
        with pyro.get_param_store().scope(state):
            for _ in range(count):
                svi.step(*args)
        if engine is not None and svi.engines != [engine]:
            raise NotMeasured(f"{engine} fell back to {', '.join(svi.engines)}")

    return steps


def turn_of(steps: Steps, count: int) -> Turn:
    """A turn of so many steps."""

    def turn() -> float:
        steps(max(1, count // 10))
        synchronize()
        start = time.perf_counter()
        steps(count)
        synchronize()
        return (time.perf_counter() - start) / count

    return turn


def synchronize() -> None:
    """Waits for a GPU that is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure(
    contenders: Mapping[str, Callable[[], Turn]], repeats: int, device: str = "cpu"
) -> dict[str, Found]:
    """The seconds of every turn of every contender.

    Args:
        contenders: For each name what builds the contender, which may raise `ImportError` or
            `NotMeasured`.
        repeats: The number of turns.
        device: What device they need.
    """
    turns: dict[str, Turn] = {}
    found: dict[str, Found] = {}
    for name, build in contenders.items():
        _say(f"{name}: warming up")
        pyro.set_rng_seed(SEED)
        try:
            if device == "cuda" and not torch.cuda.is_available():
                raise NotMeasured("no CUDA device")
            turns[name] = build()
            turns[name]()
            found[name] = []
        except (ImportError, NotMeasured) as error:
            turns.pop(name, None)
            found[name] = str(error).splitlines()[0]

    order = list(turns)
    for repeat in range(repeats):
        _say(f"round {repeat + 1} of {repeats}")
        for name in order:
            gc.collect()
            try:
                found[name] = [*found[name], turns[name]()]
            except NotMeasured as error:
                found[name] = str(error)
        order = [name for name in reversed(order) if not isinstance(found[name], str)]
    return found


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# ── Writing ──────────────────────────────────────────────────────────────────────────────────


def number(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return str(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def median(found: Found, unit: str) -> str:
    """The median of what was measured, or why it was not."""
    if isinstance(found, str):
        return f"not measured ({found})"
    return number(UNITS[unit] * statistics.median(found))


def ratio(above: Found, below: Found) -> str:
    """The median of the ratios within the rounds."""
    if isinstance(above, str) or isinstance(below, str):
        return ""
    return f"{statistics.median(a / b for a, b in zip(above, below, strict=True)):.2f}"


def engines_on(device: str) -> tuple[str, ...]:
    """The back ends of `CompiledSVI` on a device, the fastest last."""
    return ("eager", "graph", "inductor", *(["cuda-graph"] if device == "cuda" else []))


def table(
    found: Mapping[str, Found], unit: str, *, baseline: str, floor: str | None = None
) -> list[str]:
    """A Markdown table with a line for each contender.

    Args:
        found: What `measure` found.
        unit: ms or s.
        baseline: The contender that the others are to beat.
        floor: The contender that none can beat.
    """
    factor = UNITS[unit]
    headings = ["", f"{unit}, median", "from - to", f"{baseline} / this"]
    headings += [f"this / {floor}"] if floor else []
    rows = [headings, ["---"] * len(headings)]
    for name, seconds in found.items():
        if isinstance(seconds, str):
            cells = [median(seconds, unit), *[""] * (len(headings) - 2)]
        else:
            cells = [
                median(seconds, unit),
                f"{number(factor * min(seconds))} - {number(factor * max(seconds))}",
                ratio(found[baseline], seconds),
            ]
            cells += [ratio(seconds, found[floor])] if floor else []
        rows.append([name, *cells])
    return lines_of(rows)


def lines_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |".replace("  |", " |") for row in rows]


def provenance(given: argparse.Namespace, script: str) -> str:
    """What was run, when, and on what."""
    device = getattr(given, "device", "cpu")
    on_device = "" if device == "cpu" else f" --device {device}"
    smoke = " --smoke-test" if given.smoke_test else ""
    command = f"{script}{on_device} --repeats {given.repeats}{smoke}"
    usable = device == "cpu" or torch.cuda.is_available()
    environment = describe_environment(torch.device(device if usable else "cpu"))
    versions = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    return (
        f"`python benchmarks/{command}`, {date.today()}, {environment['hardware']}, Python "
        f"{environment['python']}, {', '.join(versions)}, seed {SEED}."
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def publish(section: str, lines: Sequence[str], out: Path | None, device: str = "cpu") -> None:
    """Prints a section, and puts it into a Markdown file in place of its last version.

    What was measured on a GPU is a section of its own.
    """
    text = "\n".join(lines)
    print(f"{text}\n", flush=True)
    if out is None:
        return
    section += "" if device == "cpu" else f" on {device}"
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    marked = f"{begin}\n{text}\n{end}"
    page = out.read_text() if out.exists() else ""
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    replaced, times = pattern.subn(lambda _: marked, page)
    out.write_text(replaced if times else f"{page.rstrip()}\n\n{marked}\n".lstrip())


def parser(doc: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has; see `parse`."""
    options = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    options.add_argument("--repeats", type=int, default=repeats, help="counted turns of each")
    options.add_argument("--out", type=Path, help="a Markdown file to put the sections into")
    options.add_argument("--smoke-test", action="store_true", help="tiny sizes, one turn")
    return options


def add_device(options: argparse.ArgumentParser) -> None:
    """The option of a benchmark that has rows for a GPU."""
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The options as they were given."""
    given = options.parse_args()
    given.repeats = 1 if given.smoke_test else given.repeats
    return given

"""Whether memory stays flat: over 20,000 steps of one program, and over 50 programs of one step.

    python benchmarks/long_run.py [--steps 20000] [--programs 50] [--out FILE]

The dense VAE of `step.py`, a batch of 16 binary images. What a process holds is read when its
first tenth is over and at the end, garbage collected and Pyro's store cleared before; each row is
a process of its own. Every loss of a long run is kept, as a script would.
"""

import gc
import multiprocessing
import sys
import time
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from timing import SEED, lines_of, parse, parser, provenance, publish
from vae import PIXELS, dense

from pyrovae import CompiledSVI

ENGINES = (None, "eager", "graph", "inductor")
PAGE = 4096


def held():
    """What this process holds, in MiB."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        raise SystemExit("It reads /proc, which Linux has.")
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def make(engine):
    """An SVI of a new program; Pyro's own where no engine is named."""
    vae = dense(50)
    told = (vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    return SVI(*told) if engine is None else CompiledSVI(*told, engine=engine)


def steps(engine, count):
    """What is held after a tenth of so many steps, and after all."""
    svi, x, losses, found = make(engine), torch.rand(16, PIXELS).round(), [], []
    for number in range(1, count + 1):
        losses.append(svi.step(x))
        if number in (count // 10, count):
            found.append(held())
    return found


def programs(engine, count):
    """The same of so many programs, one after the other."""
    x, found = torch.rand(16, PIXELS).round(), []
    for number in range(1, count + 1):
        pyro.clear_param_store()
        svi = make(engine)
        svi.step(x)
        del svi
        if number in (count // 10, count):
            pyro.clear_param_store()
            found.append(held())
    return found


def row(pool, what, engine, count):
    start = time.perf_counter()
    first, last = pool.apply(what, (engine, count))
    print(f"{what.__name__}, {engine}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    name = "Pyro SVI" if engine is None else f"CompiledSVI, {engine}"
    each = (last - first) * 2**10 / (count - count // 10)
    return [f"{count:,} {what.__name__}", name, f"{first:.1f}", f"{last:.1f}", f"{each:.3f}"]


def prepare():
    torch.set_num_threads(1)
    pyro.set_rng_seed(SEED)


def main():
    options = parser(__doc__, repeats=1)
    options.add_argument("--steps", type=int, default=20_000)
    options.add_argument("--programs", type=int, default=50)
    given = parse(options)
    if given.smoke_test:
        given.steps, given.programs = 20, 10
    rows = [["of", "by", "MiB after a tenth", "MiB at the end", "KiB for each"], ["---"] * 5]
    for what, count in ((steps, given.steps), (programs, given.programs)):
        for engine in ENGINES:
            with multiprocessing.get_context("spawn").Pool(1, prepare) as pool:
                rows.append(row(pool, what, engine, count))
    publish(
        "memory",
        [
            *lines_of(rows),
            "",
            provenance(given, f"long_run.py --steps {given.steps} --programs {given.programs}"),
        ],
        given.out,
    )


if __name__ == "__main__":
    main()

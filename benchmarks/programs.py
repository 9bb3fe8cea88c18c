"""A step of programs that are no VAEs: Pyro's SVI beside CompiledSVI on each of its back ends.

The programs are those of `pyro_programs.py`, each under its own estimator and `pyro.optim.Adam`.
Before any timing losses are compared: from the same parameters, and with the same seed at every
step, the five losses after a first step are to be those of Pyro's SVI within a thousandth. If
they are not, or a back end gives way to another one, the table is followed by FAILED and the
command fails. `timing.py` has the protocol.

    python benchmarks/programs.py [--device cuda] [--repeats 9] [--out FILE]
"""

import sys

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from pyro_programs import PROGRAMS
from timing import (
    add_device,
    engines_on,
    measure,
    parse,
    parser,
    provenance,
    publish,
    steps_of,
    table,
    turn_of,
)

from pyrovae import CompiledSVI

STOCK = "Pyro SVI"
STEPS, COMPARED, TOLERANCE = 100, 5, 1e-3


def prepare(make, engine):
    """The steps of a program, and its losses before them."""
    store = {"params": {}, "constraints": {}}
    with pyro.get_param_store().scope(store):
        model, guide, loss, args, rate = make()
        # An automatic guide draws noise to set itself up. Called here, it leaves the steps alike.
        guide(*args)
        kind, options = (SVI, {}) if engine is None else (CompiledSVI, {"engine": engine})
        svi = kind(model, guide, Adam({"lr": rate}), loss, **options)
        losses = []
        for seed in range(1 + COMPARED):
            pyro.set_rng_seed(seed)
            losses.append(float(svi.step(*args)))
    return steps_of(svi, *args, engine=engine, store=store), losses[1:]


def compare(losses):
    """What is wrong with the losses of our contenders, in words."""
    for name, found in losses.items():
        pairs = list(zip(found, losses[STOCK], strict=True))
        if any(not abs(a - b) <= TOLERANCE * abs(b) for a, b in pairs):
            yield f"{name}: its losses and those of {STOCK} are {pairs}"


def time_program(name, given):
    """The lines of a program's table, and what is wrong."""
    losses = {}

    def build(contender, engine):
        steps, losses[contender] = prepare(lambda: PROGRAMS[name](given.smoke_test), engine)
        return turn_of(steps, 2 if given.smoke_test else STEPS)

    engines = {STOCK: None, **{f"CompiledSVI, {e}": e for e in engines_on(given.device)}}
    contenders = {
        contender: (lambda c=contender, e=engine: build(c, e))
        for contender, engine in engines.items()
    }
    found = measure(contenders, given.repeats, given.device)
    wrong = [*compare(losses)]
    wrong += [f"{n}: {reason}" for n, reason in found.items() if isinstance(reason, str)]
    lines = [f"{name}:", "", *table(found, "ms", baseline=STOCK), ""]
    return lines, [f"FAILED: {name}, {what}" for what in wrong]


def main():
    options = parser(__doc__, repeats=9)
    add_device(options)
    given = parse(options)
    if given.device != "cpu":  # as it is, the default costs nothing
        torch.set_default_device(given.device)
    lines, failures = [], []
    for name in PROGRAMS:
        rows, wrong = time_program(name, given)
        lines += rows
        failures += wrong
    lines += [*failures, *[""] * bool(failures), provenance(given, "programs.py")]
    publish("programs", lines, given.out, given.device)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

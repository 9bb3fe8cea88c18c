"""What `engine="auto"` takes, beside Pyro's SVI, on every program of the tests.

The programs are those of `tests/program_table.py`, each under its own estimator and
`pyro.optim.Adam`: small ones, of which a step is Pyro's own work rather than arithmetic. `auto`
tries all back ends for a few steps and keeps the fastest. If a program comes out more than 5 %
slower than under Pyro's SVI the table is followed by FAILED and the command fails. `timing.py`
has the protocol.

    python benchmarks/auto.py [--repeats 5] [--out FILE]
"""

import statistics
import sys
from pathlib import Path

import pyro
from pyro.infer import SVI
from pyro.optim import Adam
from timing import (
    lines_of,
    measure,
    number,
    parse,
    parser,
    provenance,
    publish,
    ratio,
    steps_of,
    turn_of,
)

from pyrovae import CompiledSVI

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from program_table import TABLE, entry

STOCK, OURS = "Pyro SVI", "auto"
STEPS, SLOWER = 100, 1.05
SMOKE = ("plain", "score function")


def time_program(name, given):
    """The seconds of the turns of both contenders, and the back end that was taken."""
    made = []

    def build(make):
        program = entry(name)
        svi = make(program.model, program.guide, Adam({"lr": 1e-4}), program.loss)
        made.append(svi)
        return turn_of(steps_of(svi, *program.args), 2 if given.smoke_test else STEPS)

    contenders = {
        STOCK: lambda: build(SVI),
        OURS: lambda: build(lambda *args: CompiledSVI(*args, engine="auto")),
    }
    print(name, file=sys.stderr, flush=True)
    return measure(contenders, given.repeats), made[-1].engines[0]


def main():
    given = parse(parser(__doc__, repeats=5))
    rows = [["", f"{STOCK}, ms", f"{OURS}, ms", "back end", f"{STOCK} / {OURS}"]]
    rows.append(["---"] * len(rows[0]))
    failures = []
    for name in SMOKE if given.smoke_test else TABLE:
        pyro.clear_param_store()
        found, engine = time_program(name, given)
        times = [number(1e3 * statistics.median(seconds)) for seconds in found.values()]
        rows.append([name, *times, engine, ratio(found[STOCK], found[OURS])])
        if float(ratio(found[OURS], found[STOCK])) > SLOWER:
            failures.append(f"FAILED: {name} is slower than under {STOCK}")
    lines = [*lines_of(rows), "", *failures, *[""] * bool(failures)]
    publish("auto", [*lines, provenance(given, "auto.py")], given.out)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

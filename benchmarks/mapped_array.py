"""What training on an array of 2 GB costs that stays in its .npy file: time and peak memory.

python benchmarks/mapped_array.py [--rows 500000] [--columns 1000] [--type float32]

Rows of ten clusters, made from a seed. A process of its own reads the file, another one trains an
epoch on it, what `pyrovae train` would by default with 64 hidden units. Memory that is mapped
from the file can be taken back by the system at any time, and is told apart.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from memory import measured

READ = "import sys, pyrovae; data = pyrovae.load_data(sys.argv[1])"
TRAIN = """
from pyrovae.building import build_vae
pyrovae.fit(build_vae(data, hidden=64), data, epochs=1, run_dir=sys.argv[2])
"""


def make(file, rows, columns, kind):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, columns))
    array = np.lib.format.open_memmap(file, "w+", kind, (rows, columns))
    for start in range(0, rows, 10_000):
        part = array[start : start + 10_000]
        noise = rng.normal(size=part.shape)
        part[:] = 10 * (centres[rng.integers(10, size=len(part))] + noise)
    array.flush()


def main(rows, columns, kind):
    with tempfile.TemporaryDirectory() as folder:
        file, run = Path(folder, "x.npy"), Path(folder, "run")
        make(file, rows, columns, kind)
        print(f"{rows} x {columns} of {kind}, {file.stat().st_size / 1e9:.2f} GB", flush=True)
        for name, code in (("reading", READ), ("reading and an epoch", READ + TRAIN)):
            cost = measured(code, file, run)
            print(
                f"{name}: {cost.seconds:.0f} s, peak {cost.resident:.2f} GB, "
                f"of it not mapped {cost.own:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--columns", type=int, default=1_000)
    parser.add_argument("--type", default="float32")
    given = parser.parse_args()
    main(given.rows, given.columns, given.type)

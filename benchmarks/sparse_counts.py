"""What 50,000 x 2,000 counts cost, one in twenty of them not zero: time and peak memory.

python benchmarks/sparse_counts.py [--cells 50000] [--genes 2000] [--epochs 10]

The counts are Poisson, of ten kinds of cells of various sizes, made from a seed. A process of its
own trains on their file what `pyrovae train` would by default, without its evaluation; another one
only reads it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from memory import measured
from scipy import sparse

# What the two processes run.
READ = "import sys, pyrovae; data = pyrovae.load_data(sys.argv[1])"
TRAIN = """
from pyrovae.building import build_vae
told = {"epochs": int(sys.argv[2]), "run_dir": sys.argv[3], "kl_warmup": 1}
pyrovae.fit(build_vae(data), data, **told)
"""


def cells(count, genes, kinds=10, seed=0):
    rng = np.random.default_rng(seed)
    profiles = np.exp(1.5 * rng.normal(size=genes) + 0.7 * rng.normal(size=(kinds, genes)))
    profiles /= profiles.sum(1, keepdims=True)
    blocks = []
    for start in range(0, count, 5000):
        size = min(5000, count - start)
        totals = genes * 0.06 * np.exp(0.4 * rng.normal(size=(size, 1)))
        drawn = rng.poisson(totals * profiles[rng.integers(kinds, size=size)])
        blocks.append(sparse.csr_array(drawn.astype(np.int32)))
    return sparse.vstack(blocks, format="csr")


def main(count, genes, epochs):
    with tempfile.TemporaryDirectory() as folder:
        file, run = Path(folder, "cells.npz"), Path(folder, "run")
        x = cells(count, genes)
        sparse.save_npz(file, x)
        density = x.nnz / count / genes
        print(f"{count} x {genes}, {density:.1%} not zero, {file.stat().st_size / 1e6:.0f} MB")
        read = measured(READ, file)
        print(f"reading: {read.seconds:.0f} s, {read.resident:.2f} GB", flush=True)
        trained = measured(READ + TRAIN, file, epochs, run)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        each = sorted(json.loads(line)["seconds"] for line in lines)
        print(f"reading and training: {trained.seconds:.0f} s, {trained.resident:.2f} GB")
        print(f"epochs: {sum(each):.0f} s, the quickest {each[0]:.1f}, the slowest {each[-1]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    main(given.cells, given.genes, given.epochs)

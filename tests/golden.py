"""Writes the runs of `tests/golden`, which every later version is to load: see test_golden.

    python tests/golden.py VERSION

Each is a few kilobytes: two epochs on the digits, with what it was found to be.
"""

import json
import os
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pyrovae import cli, load

GOLDEN = Path(__file__).parent / "golden"
FEW = ["--data", "digits", "--epochs", "2", "--batch-size", "500", "--quiet", "--engine", "eager"]
SMALL = [*FEW, "--latent-dim", "2", "--hidden", "4"]
RUNS = {
    "plain": SMALL,
    "vamp": [*SMALL, "--prior", "vamp", "--prior.components", "3", "--patience", "5"],
    "flow": [*SMALL, "--prior", "real-nvp", "--prior.layers", "2", "--prior.hidden", "4"],
    "levels": [*SMALL, "--decoder", "discretized-logistic", "--encoder", "mixture"],
    "own": [*FEW, "--build.latent-dim", "2", "--build.hidden", "4"],
}
# What a run is when it is made, and not what a later version may say of it.
KEPT = ("config.json", "environment.json", "metrics.jsonl", "checkpoints", "source")


def found(path):
    """The numbers by which a run is known again."""
    run = load(path, device="cpu", trust_source=True)
    evaluation = run.evaluate(run.measured, num_samples=50, limit=20)
    return {
        "elbo": evaluation.elbo.mean().item(),
        "log_evidence": evaluation.log_evidence.mean().item(),
        "sample": run.sample(4).x.float().mean().item(),
    }


def write(version):
    folder = GOLDEN / version
    with TemporaryDirectory() as place, chdir(place):
        os.environ["PYROVAE_DATA"] = place
        cli.main(["new", "own.py"])
        for name, words in RUNS.items():
            program = ["own.py"] if name == "own" else []
            cli.main(["train", *program, *words, "--run-dir", name])
            expected = found(name)
            (folder / name).mkdir(parents=True)
            for kept in KEPT:
                source = Path(name, kept)
                if source.is_dir():
                    shutil.copytree(source, folder / name / kept)
                elif source.is_file():
                    shutil.copy(source, folder / name / kept)
            (folder / name / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "Agg"
    torch.set_num_threads(1)
    write(sys.argv[1])

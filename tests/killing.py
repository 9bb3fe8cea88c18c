"""A training that is killed again and again, and resumed, beside one that is left alone.

python tests/killing.py [--random 30] [--signals 20] [--folder PATH]

Each attempt is a process of its own, forked from this one. It saves itself after every step, so
that many of the kills fall into a save. Prints what became of each trial, as JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
import torch._dynamo  # an optimizer imports it, and every attempt would do so anew
from programs_for_tests import binary, small_vae

import pyrovae
from pyrovae import checkpoint, loop, monitoring, run_folder
from pyrovae.schedules import cosine

EPOCHS, ROWS, BATCH = 6, 290, 50
STEPS = EPOCHS * -(-ROWS // BATCH)


def train(path):
    data = pyrovae.Examples(
        binary(ROWS) * 0.8 + 0.1, preprocessing=pyrovae.data.Binarize("dynamic", maximum=1.0)
    )
    pyrovae.fit(
        small_vae(),
        data,
        valid=binary(40, seed=1),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        epochs=EPOCHS,
        batch_size=BATCH,
        kl_warmup=3,
        lr_schedule=cosine(1.0, 0.0, STEPS),
        run_dir=path,
        resume=True,
        progress=False,
    )


# ── Where it is killed ───────────────────────────────────────────────────────────────────────


def dies(call, nth, *, after):
    """A function that kills its process at the nth call."""
    count = 0

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        found = call(*args, **kwargs) if after or count != nth else None
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return wrapped


def dies_half_written(path, content):
    """Writes half of a file, and dies with the second of a save."""
    path.write_bytes(content[: len(content) // 2])
    if path.name.startswith("state"):
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_bytes(content)


def at(owner, name, nth, *, after=False):
    return lambda: setattr(owner, name, dies(getattr(owner, name), nth, after=after))


POINTS = {
    "before the temporary folder is made": at(Path, "mkdir", 3),
    "in the middle of writing a file": lambda: setattr(
        checkpoint, "_write_synced", dies_half_written
    ),
    "before a file is synced": at(checkpoint.os, "fsync", 6),
    "after a file is synced": at(checkpoint.os, "fsync", 7, after=True),
    "before the rename": at(checkpoint.os, "rename", 3),
    "after the rename": at(checkpoint.os, "rename", 3, after=True),
    "before an old checkpoint is removed": at(checkpoint.shutil, "rmtree", 10),
    "after an old checkpoint is removed": at(checkpoint.shutil, "rmtree", 10, after=True),
    "in a step": at(torch.optim.Adam, "step", 1),
    "in the middle of an epoch": at(loop, "seed_generators", 9),
    "in an evaluation": at(monitoring, "sum_terms", 3),
    "before a record is written": at(run_folder, "write", 5),
    "after a record is written": at(run_folder, "write", 5, after=True),
}


# ── Trials ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Trial:
    """What became of a training that was broken off.

    Attributes:
        where: Where it was.
        exits: How each attempt ended: 0, or minus the number of a signal.
        in_a_save: How many of them left a checkpoint that was not whole.
        same: Whether its weights and numbers are those of the training that was left alone.
    """

    where: str
    exits: list[int]
    in_a_save: int
    same: bool


def fork(path, before=lambda: None):
    """An attempt in a process of its own."""
    process = os.fork()
    if process:
        return process
    code = 1
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        # As a shell's background jobs do, a test may pass on that interrupts are ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.SAVE_SECONDS = 0.0
        before()
        train(path)
        code = 0
    finally:
        os._exit(code)


def ended(process):
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def outcome(path):
    """The weights of the last checkpoint and the numbers of all epochs, but for their speed."""
    newest = max((path / "checkpoints").glob("step-*"))
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["seconds"], record["examples_per_second"]
    weights = sha256((newest / "model.safetensors").read_bytes()).hexdigest()
    return newest.name, weights, records


def run_to_the_end(path, where, process, expected):
    exits, broken = [ended(process)], 0
    while exits[-1] != 0 and len(exits) < 9:
        broken += any(path.glob("checkpoints/.*.tmp"))
        exits.append(ended(fork(path)))
    return Trial(where, exits, broken, exits[-1] == 0 and outcome(path) == expected)


def broken_off(folder, count, numbers, expected, seconds):
    """Trials until so many were broken off, at random moments, by one of some signals."""
    draw, trial = random.Random(0), 0
    while count > 0 and trial < 200:
        trial += 1
        path, number = folder / f"random-{trial}", draw.choice(numbers)
        process = fork(path)
        time.sleep(draw.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.kill(process, number)
        found = run_to_the_end(path, signal.Signals(number).name, process, expected)
        count -= found.exits != [0]
        yield found
        shutil.rmtree(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=30, help="kills at random moments")
    parser.add_argument("--signals", type=int, default=20, help="signals to end")
    parser.add_argument("--folder", type=Path, help="where to train, if not in a temporary folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.folder or Path(tempfile.mkdtemp())

    assert ended(fork(folder / "whole")) == 0
    # The first fills the caches of the system.
    start = time.perf_counter()
    assert ended(fork(folder / "again")) == 0
    seconds = time.perf_counter() - start
    expected = outcome(folder / "whole")

    trials = [
        run_to_the_end(folder / f"point-{i}", where, fork(folder / f"point-{i}", point), expected)
        for i, (where, point) in enumerate(POINTS.items())
    ]
    trials += broken_off(folder, given.random, [signal.SIGKILL], expected, seconds)
    ending = [signal.SIGINT, signal.SIGTERM]
    trials += broken_off(folder, given.signals, ending, expected, seconds)
    json.dump([asdict(trial) for trial in trials], sys.stdout, indent=1)


if __name__ == "__main__":
    main()

"""Runs whose config.json was changed at random: each loads as what it was, or is refused in words.

    python tests/fuzzing.py [--cases 5000] [--sealed]

Mutations, seeded, of the configurations in `tests/golden`: values of other types, keys dropped
and added, deep trees, huge numbers, NaN, paths, NUL, and whole branches moved. What a run is then
is asked by `load`, `evaluate` and `resume`, the last up to its first step. Runs of version 0.1.0
have no seal on their configuration, and may load as another run that makes sense; those that are
sealed, as every run since, may not. Prints as JSON what became of the cases, and every failure.
"""

import argparse
import contextlib
import copy
import io
import json
import math
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

import torch

import pyrovae
from pyrovae import checkpoint, cli, loop, run_folder
from pyrovae.checkpoint import Checkpoint
from pyrovae.errors import PyrovaeError

GOLDEN = sorted(path.parent for path in Path(__file__).parent.glob("golden/*/*/config.json"))
# What more of memory than it had before a case may take, and how long it may.
MEMORY, SECONDS = 2**31, 20.0

# ── Mutations ────────────────────────────────────────────────────────────────────────────────


def odd_values(folder):
    """What may stand in the place of any value."""
    canary = str(folder / "canary.py")
    return [
        *(None, True, False, 0, 1, -1, 2, 3, 0.5, -2.5, 1e308, 2**31, 10**12, 10**30),
        *(math.nan, math.inf, -math.inf, "", "x", "digits", "mnist", "latest", "é\u202e\ud83d"),
        *(
            "\x00",
            "a\nb",
            "a\x00b.npy",
            "../../../etc/passwd",
            "/etc/passwd",
            "~/x",
            "x" * 100_000,
        ),
        *(canary, f"{canary}:build", f"pyrovae train {canary}", "pyrovae train --data '"),
        *([], {}, [[]], [{}], {"part": "VAE"}, {"part": "MLP"}, {"type": "ReLU"}, {"same": []}),
        *({"part": "os.system"}, {"part": "Exception"}, {"type": "Module"}, {"same": ["prior"]}),
        *({"tensor": [0.0]}, {"tensor": [[0.0], [1.0, 2.0]]}, {"tensor": ["x"]}, {"file": canary}),
        *([10**12], [10**6, 10**6], [1] * 5000, {"tensor": [10**400]}, {"x": None}, "\ud800"),
    ]


# Stands in a tree for one that is too deep to be handled as such.
DEEP = "a deep tree"


def as_text(config, draw):
    """The text of a configuration, deep trees in their places."""
    depth = draw.choice([100, 300, 900, 3000])
    first, last = draw.choice([("[", "]"), ('{"part": "MLP", "net": ', "}"), ('{"x": ', "}")])
    return json.dumps(config).replace(f'"{DEEP}"', first * depth + "1" + last * depth).encode()


def places(tree, at=()):
    """Every place in a tree, the root apart."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in children:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def inside(tree, place):
    for key in place:
        tree = tree[key]
    return tree


def mutated(config, draw, odd):
    """A configuration in which one place is another, and with what was done to it."""
    config = copy.deepcopy(config)
    place = draw.choice(list(places(config)))
    parent, key = inside(config, place[:-1]), place[-1]
    how = draw.choice(("replaced", "replaced", "dropped", "added", "scaled", "moved", "nested"))
    if how == "replaced":
        parent[key] = draw.choice(odd)
    elif how == "dropped":
        del parent[key]
    elif how == "added" and isinstance(parent, dict):
        name = draw.choice(["x", "part", "same", "type", "tensor", "file", "function", "\x00"])
        parent[name] = draw.choice(odd)
    elif how == "scaled" and isinstance(parent[key], int | float):
        parent[key] *= draw.choice([-1, 2, 1000, 10**12, 0.5])
    elif how == "moved":
        parent[key] = copy.deepcopy(inside(config, draw.choice(list(places(config)))))
    elif how == "nested":
        parent[key] = DEEP
    return config, f"{how} {'.'.join(map(str, place))}"


def mutated_text(text, draw):
    """A file in which bytes are others, or missing."""
    content = bytearray(text.encode())
    how = draw.choice(("flipped", "cut", "nested", "noise"))
    if how == "flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del content[draw.randrange(len(content)) :]
    elif how == "nested":
        content = bytearray(b"[" * 100_000)
    else:
        content = bytearray(draw.randbytes(300))
    return bytes(content), f"text {how}"


# ── What a run is ────────────────────────────────────────────────────────────────────────────


class Reached(Exception):
    """The first step of a resumed training."""


def nature(run):
    """What a run computes: another one's is another."""
    elbo = run.evaluate(run.measured, num_samples=2, limit=3).elbo
    x = {
        name: (len(examples), examples.head(2).x.tolist()) for name, examples in run.splits.items()
    }
    return elbo.tolist(), x, run.sample(2).x.tolist()


def asked(path):
    """What every verb makes of a run: its nature, where it was loaded, and words of refusal."""
    words, found = [], None
    try:
        run = pyrovae.load(path, device="cpu", trust_source=True)
        found = nature(run) if run.splits else None
    except PyrovaeError as error:
        words.append(str(error))
    few = ["--trust-source", "--num-samples", "2", "--limit", "3"]
    for verb in (["evaluate", str(path), *few], ["resume", str(path), "--epochs", "3"]):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                cli.main(verb)
        except SystemExit as stop:
            if stop.code != 2:
                raise
            words.append(said.getvalue())
        except Reached:
            pass
    return found, words


def refuse_to_train(*_):
    raise Reached


WRITTEN = []


def watch(event, arguments):
    """Notes every file that is opened to be written, and every program that is run."""
    if event == "open" and isinstance(arguments[0], str | bytes):
        mode, flags = arguments[1], arguments[2] or 0
        if (mode and set("wax+") & set(mode)) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            WRITTEN.append(os.path.abspath(os.fsdecode(arguments[0])))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        WRITTEN.append(os.path.abspath(os.fsdecode(arguments[0])))
    elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
        WRITTEN.append(f"{event} {arguments[0]}")


# ── Cases ────────────────────────────────────────────────────────────────────────────────────


def sealed(source, folder):
    """A copy of a run, its checkpoint saying which configuration it is of."""
    path = shutil.copytree(source, folder / source.name)
    found = checkpoint.load_newest(path / "checkpoints")
    config = json.loads((path / "config.json").read_text())
    state = {**found.state, "config": run_folder.identity(config)}
    checkpoint.save(path / "checkpoints", Checkpoint(found.step, found.weights, state))
    return path


def trial(path, content, expected):
    """Why a case is neither what it was nor refused, or else which of the two."""
    (path / "config.json").write_bytes(content)
    WRITTEN.clear()
    start = time.monotonic()
    try:
        found, words = asked(path)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    if time.monotonic() - start > SECONDS:
        return "it took too long"
    outside = [w for w in WRITTEN if not w.startswith(str(path)) and w != os.devnull]
    if outside:
        return f"it wrote {outside}"
    if (path.parent / "canary").exists():
        return "it ran the canary"
    if found is not None and expected is not None and found != expected:
        return "it is another run"
    if any(len(said) > 5000 or "Traceback" in said for said in words):
        return "its words are no words"
    return "refused" if words else "as it was"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sealed", action="store_true")
    given = parser.parse_args()
    os.environ["PYROVAE_OFFLINE"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    loop.Loop.train = refuse_to_train
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    ran = folder / "canary"
    (folder / "canary.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef build(*_): 1 / 0\n")

    runs = []
    for source in GOLDEN:
        path = (
            sealed(source, folder)
            if given.sealed
            else shutil.copytree(source, folder / source.name)
        )
        natural = asked(path)[0]
        assert natural is not None
        runs.append((path, (path / "config.json").read_text(), natural))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(watch)

    outcomes, failures = Counter(), []
    for case in range(given.first, given.first + given.cases):
        draw = random.Random(case)
        path, text, natural = draw.choice(runs)
        if draw.random() < 0.1:
            content, what = mutated_text(text, draw)
        else:
            config, what = mutated(json.loads(text), draw, odd_values(folder))
            for _ in range(draw.choice([0, 0, 0, 1, 2])):
                config, more = mutated(config, draw, odd_values(folder))
                what = f"{what}, {more}"
            content = as_text(config, draw)
        became = trial(path, content, natural if given.sealed else None)
        if became in ("refused", "as it was"):
            outcomes[became] += 1
        else:
            failures.append([case, path.name, what, became])
            print(case, path.name, what, became, file=sys.stderr, flush=True)
    json.dump({"outcomes": outcomes, "failures": failures}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

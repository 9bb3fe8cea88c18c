"""A run whose config.json was changed is what it was, or is refused in words.

`python tests/fuzzing.py` runs as many cases as docs/reliability.md says.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from programs_for_tests import binary, small_vae
from torch import nn, zeros

import pyrovae
from pyrovae import checkpoint
from pyrovae.allotment import Allotment
from pyrovae.errors import InputError, shorten

CASES = os.environ.get("PYROVAE_CASES", "100")
GOLDEN = Path(__file__).parent / "golden" / "0.1.0"


@pytest.mark.parametrize("which", [[], ["--sealed"]], ids=["of 0.1.0", "sealed"])
def test_a_mutated_configuration_is_as_it_was_or_refused(which):
    """In every seeded case; nothing is written elsewhere, run, or asked of memory without end."""
    tool = str(Path(__file__).parent / "fuzzing.py")
    found = subprocess.run(
        [sys.executable, tool, "--cases", CASES, *which],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(pyrovae.__file__).parent.parent)},
    )
    assert found.returncode == 0, found.stderr[-3000:]
    became = json.loads(found.stdout)
    assert became["failures"] == []
    assert sum(became["outcomes"].values()) == int(CASES)
    assert set(became["outcomes"]) == {"refused", "as it was"}


# ── What is refused ──


@pytest.fixture
def run(tmp_path):
    return pyrovae.fit(
        small_vae(), binary(60), epochs=1, run_dir=tmp_path / "run", progress=False
    ).path


def change(path, place, value):
    config = json.loads((path / "config.json").read_text())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("program", "beta"), 2.0),
        (("program", "encoder", "net", "activation", "type"), "Tanh"),
        (("data", "x_shape"), [3]),
        (("training", "seed"), 1),
        (("parameters",), 3),
    ],
)
def test_a_configuration_that_was_edited_is_refused(run, place, value):
    change(run, place, value)
    with pytest.raises(InputError, match=rf"since the run was trained: .*{place[-1]} is"):
        pyrovae.load(run)
    with pytest.raises(InputError, match="has changed since the run was trained"):
        pyrovae.fit(small_vae(), binary(60), epochs=2, run_dir=run, resume=True, progress=False)


@pytest.mark.parametrize(
    ("place", "value"), [(("data", "name"), "elsewhere"), (("training", "epochs"), 9)]
)
def test_what_says_where_data_lie_and_how_many_epochs_may_change(run, place, value):
    change(run, place, value)
    assert pyrovae.load(run).config != {}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("program", "prior", "latent_dim"), 10**12, "more than any part's"),
        (("program", "encoder", "net", "hidden"), [10**7], "tensor of"),
        (("program", "encoder", "net", "hidden"), [2] * 12_000, "too many tensors"),
        (("program", "encoder", "net", "hidden"), ["a"], "makes no program|cannot be built"),
        (("program", "prior"), "mine", "The prior is a str, and not a module"),
        (("data", "preprocessing", "maximum"), "x", "makes no program"),
        (("data", "source"), "a\0b", "not a run directory"),
        (("data", "data_dir"), "\ud800", "not a run directory"),
        (("data", "x_shape"), [1, 8, 9], "data of shape"),
        (("data", "x_shape"), [1, 8], "not those that the run was trained on"),
        (("data", "x_shape"), [2**40], "not a run directory"),
        (("engine",), "graph", "not a run directory"),
    ],
)
def test_a_configuration_that_no_seal_tells_of_is_refused_in_words(tmp_path, place, value, words):
    run = shutil.copytree(GOLDEN / "plain", tmp_path / "run")
    change(run, place, value)
    with pytest.raises(InputError, match=words):
        pyrovae.load(run)


def test_a_tree_too_deep_to_walk_is_no_run(tmp_path):
    run = shutil.copytree(GOLDEN / "plain", tmp_path / "run")
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace("612", "[" * 400 + "]" * 400))
    with pytest.raises(InputError, match="not a run directory"):
        pyrovae.load(run)


# ── The pieces ──


def test_a_tensor_is_refused_before_it_is_made():
    weights = {"weight": zeros(2**25)}  # 128 MiB
    with Allotment(weights):
        assert len(nn.Linear(2**12, 2**14).weight) == 2**14
        with pytest.raises(InputError, match="tensor of 4,000,000,000,000 bytes"):
            nn.Linear(10**6, 10**6)
    with Allotment({}), pytest.raises(InputError, match="too many tensors"):
        [zeros(1) for _ in range(10_001)]


def test_what_an_error_shows_of_a_value_is_short():
    assert len(shorten("x" * 10**6)) < 300
    assert shorten(ValueError("\ud800")) == "\\ud800"


def test_a_checkpoint_that_says_nothing_of_its_configuration_is_taken_as_it_is(run):
    found = checkpoint.load_newest(run / "checkpoints")
    assert len(found.state["config"]) == 64
    state = {key: value for key, value in found.state.items() if key != "config"}
    checkpoint.save(run / "checkpoints", replace(found, state=state))
    change(run, ("training", "seed"), 1)
    assert pyrovae.load(run).config["training"]["seed"] == 1

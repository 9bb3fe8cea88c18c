"""Runs that earlier versions made load, and are what they were. `golden.py` makes new ones."""

import json
import shutil

import pytest
from golden import GOLDEN, RUNS, found

import pyrovae

PATHS = sorted(path.parent for path in GOLDEN.glob("*/*/expected.json"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_run_of_an_earlier_version_is_what_it_was(path, tmp_path):
    run = shutil.copytree(path, tmp_path / "run")
    expected = json.loads((path / "expected.json").read_text())
    assert found(run) == pytest.approx(expected, rel=1e-4)


def test_this_version_has_its_runs():
    version = pyrovae.__version__
    assert {path.name for path in PATHS if path.parent.name == version} == set(RUNS)

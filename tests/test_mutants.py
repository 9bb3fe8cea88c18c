"""The tests find the bugs that they are for."""

import json
import os
import subprocess
import sys

import pytest
from mutants import MUTANTS, TESTS, UNCHANGED, Mutant

FAILED = 1  # pytest's exit status for "tests were run and some failed"


@pytest.fixture(scope="module")
def outcomes():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    finished = subprocess.run(
        [sys.executable, str(TESTS / "mutants.py")],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    return {outcome["name"]: outcome for outcome in found}


def test_every_mutant_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 100


def test_a_bug_whose_place_is_gone_or_not_the_only_one_is_an_error(tmp_path):
    (tmp_path / "file.py").write_text("twice twice")
    for text in ("nowhere", "twice"):
        with pytest.raises(LookupError, match=text):
            Mutant("a bug", "file.py", text, "", "a test").plant(tmp_path)


def test_the_unchanged_package_passes(outcomes):
    assert outcomes[UNCHANGED]["code"] == 0, outcomes[UNCHANGED]["said"]


@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_the_mutant_is_killed(name, outcomes):
    assert outcomes[name]["code"] == FAILED, outcomes[name]["said"]

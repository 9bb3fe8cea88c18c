"""The tools that read the code find nothing, and what it says of itself is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["basedpyright", "--warnings"]],
    ids=" ".join,
)
def test_the_tool_finds_nothing(command):
    name, *words = command
    script = Path(sys.executable).parent / name
    found = subprocess.run([script, *words], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_configuration_names_the_host_of_a_registry():
    for path in (ROOT / "pyproject.toml", ROOT / ".ci" / "run"):
        assert not re.search(r"://|index", path.read_text()), path
    assert "index-url" not in (ROOT / "README.md").read_text()


UNSAFE = (
    r"import (cloud)?pickle|from (cloud)?pickle|allow_pickle=True|weights_only=False"
    r"|torch\.load\(|yaml\.load\(|jit\.load\(|(?<![.\w])(eval|exec)\("
)


def test_nothing_is_unpickled_or_evaluated():
    assert re.search(UNSAFE, "x = torch.load(path)")
    assert re.search(UNSAFE, "eval(text)")
    for path in (ROOT / "pyrovae").rglob("*.py"):
        assert not re.search(UNSAFE, path.read_text()), path

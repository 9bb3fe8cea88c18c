"""The tools that read the code find nothing, and what it says of itself is so."""

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
    hosts = ("pypi.", "pythonhosted", "index-url", "download.pytorch")
    for path in (ROOT / "pyproject.toml", ROOT / ".ci" / "run", ROOT / "README.md"):
        assert not any(host in path.read_text() for host in hosts), path


def test_nothing_is_unpickled():
    words = ("pickle", "allow_pickle=True", "weights_only=False", "eval(", "yaml.load", "jit.load")
    for path in (ROOT / "pyrovae").rglob("*.py"):
        code = path.read_text().replace("allow_pickle=False", "")
        lines = [line.split("#")[0] for line in code.splitlines()]
        found = [w for line in lines for w in words if w in line and ".eval(" not in line]
        assert not found or all("never" in code or "pickled" in code for _ in found), path

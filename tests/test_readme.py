"""The README's code runs, and its commands are those that are tested."""

import re
import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import documents
import pytest

from pyrovae import cli
from pyrovae.cli import parsing
from pyrovae.cli.options import Training

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@dataclass
class Build:
    latent_dim: int = 3


@dataclass(kw_only=True)
class Mine(Training):
    build: Build = field(default_factory=Build)


blocks = partial(documents.blocks, README)


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs, names = documents.run(ROOT / "README.md")
    assert len(outputs) == len(blocks("python"))
    assert names["run"].metrics


def test_the_lines_that_are_edited_are_those_of_the_template():
    template = (ROOT / "pyrovae" / "template.py").read_text().splitlines()
    lines = "\n".join(blocks("diff")).splitlines()
    kept = [line[1:] for line in lines if line[0] in " -" and "..." not in line]
    assert len(kept) == 4
    assert all(line in template for line in kept)


def test_the_first_two_commands_install_train_and_test():
    first, second = blocks("sh")[:2]
    assert len(first.strip().splitlines()) == len(second.strip().splitlines()) == 1
    assert re.search(r"venv .*pip install .*pyrovae train$", first.strip())
    assert re.search(r"pip install .*\[test\].*python -m pytest$", second.strip())


@pytest.mark.parametrize("line", re.findall(r"^pyrovae .*$", "\n".join(blocks("sh")), re.M))
def test_every_command_of_the_readme_parses(line, monkeypatch):
    words = shlex.split(line.split("#")[0])[1:]
    parsed = []
    monkeypatch.setattr(cli, "train", lambda options, *rest: parsed.append(options))
    for verb in ("with_run", "new", "resume", "doctor"):
        monkeypatch.setattr(cli, verb, parsed.append)
    kind = parsing.train_type
    monkeypatch.setattr(
        parsing, "train_type", lambda words, file: Mine if file else kind(words, file)
    )
    cli.main(words)
    assert len(parsed) == 1


def test_the_files_it_shows_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path

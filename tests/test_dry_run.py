"""`train --dry-run` shows Python that does the same; `--quiet` and `--json` are for scripts."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from programs_for_tests import same, weights
from scipy.io import mmwrite
from scipy.sparse import csr_matrix

import pyrovae
from pyrovae import cli
from pyrovae.cli import as_python, rehearsal

FEW = ["--epochs", "2", "--hidden", "8", "--latent-dim", "3"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, without_drawing):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.training, "FINAL_SAMPLES", 10)
    monkeypatch.syspath_prepend(tmp_path)


def script_of(words, capsys):
    """The script that a dry run shows, but for the samples it measures with, which are fewer."""
    cli.main(["train", *words, "--dry-run"])
    text = capsys.readouterr().out
    source = text.split("The same in Python:\n\n")[1].split("\n\nNothing was trained.")[0]
    assert source.count("evaluate(num_samples=500") == 1
    return source.replace("evaluate(num_samples=500", "evaluate(num_samples=10")


OWN_PRIOR = """
import pyro.distributions as dist
import torch
from torch import nn

class Shifted(nn.Module):
    def __init__(self, latent_dim, *, shift: float = 0.0):
        super().__init__()
        self.latent_dim, self.shift = latent_dim, shift
        self.scale = nn.Parameter(1 + 0.1 * torch.rand(latent_dim))

    def forward(self):
        return dist.Normal(self.scale * 0 + self.shift, self.scale).to_event(1)
"""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--binarize", "threshold", "--seed", "3", "--batch-size", "200", "--lr", "0.01"],
        ["--prior", "vamp", "--prior.components", "5", "--beta", "2", "--lr-schedule", "constant"],
        ["--prior", "exemplar", "--prior.components", "7", "--kl-warmup", "0"],
        ["--prior", "real-nvp", "--prior.layers", "2", "--bound", "iwae"],
        ["--encoder", "refined", "--prior", "gaussian-mixture", "--clip-norm", "1"],
        ["--decoder", "discretized-logistic", "--patience", "5", "--engine", "graph"],
        ["--decoder", "gaussian", "--decoder.min-scale", "0.2"],
        ["--kl", "free-bits", "--kl.nats", "0.3", "--network", "gated", "--precision", "bf16"],
        ["--network", "conv", "--device", "cpu", "--tensorboard"],
        ["--prior", "own.py:Shifted", "--prior.shift", "0.5"],
        ["--data", "numbers.npy", "--decoder", "student-t"],
        ["--data", "unit.npy", "--decoder", "beta", "--prior", "vamp", "--prior.components", "5"],
        ["--data", "series.npy", "--network", "lstm", "--decoder", "pixelwise-gaussian"],
        ["--data", "counts.npy", "--decoder", "negative-binomial"],
        ["--data", "counts.npy", "--decoder", "poisson", "--decoder.latent-size"],
        ["--data", "holes.npy", "--missing", "--decoder", "poisson", "--decoder.latent-size"],
        ["--data", "counts.mtx"],
        ["--data", "counts.mtx", "--decoder", "gaussian"],
        ["--data", "people.csv", "--columns", "schema.json"],
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_the_script_does_the_same(words, tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN_PRIOR)
    rng = np.random.default_rng(0)
    np.save("numbers.npy", rng.normal(3, 2, (200, 5)).astype(np.float32))
    np.save("unit.npy", np.random.default_rng(0).uniform(0.01, 0.99, (200, 5)))
    np.save("counts.npy", rng.poisson(2, (200, 5)))
    holes = rng.poisson(2, (200, 5)).astype(np.float32)
    np.save("holes.npy", np.where(rng.uniform(size=holes.shape) < 0.1, np.nan, holes))
    np.save("series.npy", np.random.default_rng(0).normal(3, 2, (200, 4, 3)))
    mmwrite("counts.mtx", csr_matrix(rng.poisson(0.5, (200, 5))))
    rows = [f"{a:.2f},{'no' if b else 'yes'},{c}" for a, b, c in rng.integers(0, 2, (200, 3))]
    (tmp_path / "people.csv").write_text("\n".join(["height,smokes,children", *rows]))
    (tmp_path / "schema.json").write_text('{"children": "numeric"}')
    words = [*FEW, *words, "--run-dir", "by_python"]

    source = script_of(words, capsys)
    assert not (tmp_path / "by_python").exists()
    torch.manual_seed(99)
    by_python = {}
    exec(source, by_python)
    sys.modules.pop("own", None)

    words[-1] = "by_command"
    cli.main(["train", *words, "--json"])
    by_command = pyrovae.load("by_command", trust_source=True)
    assert by_command.config["training"]["seed"] == (3 if "--seed" in words else 0)
    assert same(weights(by_python["run"].program), weights(by_command.program))
    first, second = by_python["run"].metrics, by_command.metrics
    assert [m["loss"] for m in first] == [m["loss"] for m in second]
    assert source.splitlines() == [line.rstrip() for line in source.splitlines()]


def test_the_script_of_a_program_of_ones_own(tmp_path, capsys):
    cli.main(["new", "my_model.py"])
    capsys.readouterr()
    words = ["my_model.py", "--build.latent-dim", "4", "--epochs", "1"]
    by_python = {}
    source = script_of([*words, "--run-dir", "by_python"], capsys)
    assert "from my_model import build" in source
    assert "build(data.x_shape, latent_dim=4, hidden=400)" in source
    exec(source, by_python)
    sys.modules.pop("my_model", None)
    cli.main(["train", *words, "--run-dir", "by_command", "--quiet"])
    assert same(weights(by_python["program"]), weights(pyrovae.load("by_command").program))


def test_the_script_finds_files_that_lie_elsewhere(tmp_path, capsys):
    place = tmp_path / "데이터 😀" / "my-own.py"
    place.parent.mkdir()
    place.write_text(OWN_PRIOR)
    words = [*FEW, "--prior", f"{place}:Shifted", "--run-dir", "by_python"]
    by_python = {}
    source = script_of(words, capsys)
    assert str(place) in source
    exec(source, by_python)
    words[-1] = "by_command"
    cli.main(["train", *words, "--quiet"])
    by_command = pyrovae.load("by_command")
    assert same(weights(by_python["run"].program), weights(by_command.program))


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_a_dry_run_is_not_silent(flag, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--dry-run", flag])
    assert "Give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "written"), [("a", '"a"'), ('a"b', "'a\"b'"), ("a'b", '"a\'b"'), ("é\n", '"é\\n"')]
)
def test_strings_are_written_so_that_they_can_be_read(text, written):
    assert as_python._quoted(text) == written
    assert eval(written) == text


def test_the_script_starts_from_another_run(tmp_path, capsys):
    cli.main(["train", *FEW, "--run-dir", "first", "--quiet"])
    capsys.readouterr()
    source = script_of([*FEW, "--init-from", "first", "--run-dir", "second"], capsys)
    assert 'pyrovae.start_from(program, "first")' in source


def test_a_dry_run_leaves_nothing_and_says_how_long(tmp_path, capsys, monkeypatch):
    cli.main(["train", *FEW, "--dry-run"])
    text = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert re.search(r"^time +about [\d.]+ s: [\d.]+ s until the first step, ", text, re.M)
    assert "parameters" in text
    assert "by 10 batches" in text


def test_the_time_is_that_of_an_epoch(monkeypatch):
    """Ten of twelve batches, three epochs that end at 7, 9 and 11 s: 2.4 s for a whole one."""
    clock = iter([0.0, 7.0, 9.0, 11.0])
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: next(clock))
    seen = {}

    def fit(program, train, *, valid, on_epoch, **told):
        seen.update(told, train=len(train), valid=len(valid))
        for _ in range(told["epochs"]):
            on_epoch(None)

    monkeypatch.setattr("pyrovae.training.fit", fit)
    plan = planned([*FEW, "--epochs", "500", "--batch-size", "120"])
    ready, epoch = rehearsal._timed(plan)
    assert seen["train"] == 1200
    assert seen["valid"] == round(180 * 1200 / 1437)
    assert seen["engine"] == "inductor"  # as 6,000 steps would have
    assert epoch == pytest.approx(2 * 1437 / 1200)
    assert ready == pytest.approx(7 - 2)


def planned(words):
    from pyrovae.cli.parsing import parse
    from pyrovae.cli.planning import plan

    options, spec = parse(["train", *words])
    return plan(options, spec, ["train", *words])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0123, "0.012 s"), (9.04, "9 s"), (42.4, "42 s"), (240, "4 min"), (9000, "2.5 h")],
)
def test_times_are_in_their_own_unit(seconds, shown):
    assert rehearsal._shown(seconds) == shown


def test_quiet_prints_the_run_alone(capsys):
    cli.main(["train", *FEW, "--quiet", "--run-dir", "here"])
    captured = capsys.readouterr()
    assert captured.out == "here\n"
    assert captured.err == ""


def test_json_is_one_object(capsys):
    cli.main(["train", *FEW, "--json", "--run-dir", "here"])
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == "here"
    assert found["report"] == "here/report.html"
    assert found["elbo"] == pytest.approx(
        pyrovae.load("here").evaluate(num_samples=10).elbo.mean()
    )


def test_quiet_errors_are_said(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--data", "nothing", "--quiet"])
    assert stop.value.code == 2
    assert "nothing" in capsys.readouterr().err


def test_tensorboard_from_the_command_line(tmp_path):
    pytest.importorskip("tensorboard")
    cli.main(["train", *FEW, "--tensorboard", "--run-dir", "here", "--quiet"])
    assert list((tmp_path / "here" / "tensorboard").glob("events*"))


def test_a_dry_run_of_what_cannot_be_trained_is_refused(capsys):
    np.save("negative.npy", -np.ones((50, 3), int))
    with pytest.raises(SystemExit):
        cli.main(["train", *FEW, "--data", "negative.npy", "--decoder", "poisson", "--dry-run"])
    captured = capsys.readouterr()
    assert "Python" not in captured.out
    assert "support" in captured.err

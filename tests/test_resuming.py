"""Going on with a run: to the same bits, after whatever ended it, or not at all."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from programs_for_tests import binary, same, small_vae, weights
from pyro.infer import RenyiELBO, Trace_ELBO
from recorder import stand_in
from torch import nn
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import cli, loop, run_folder
from pyrovae.bounds.controls import Controlled
from pyrovae.errors import CheckpointError, InputError, NonFiniteError
from pyrovae.resuming import start_from
from pyrovae.schedules import cosine

ROWS, BATCH = 290, 50
STEPS = -(-ROWS // BATCH)


def with_batch_norm():
    vae = small_vae()
    vae.decoder.net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6))
    vae.decoder.net.out_shape = (6,)
    return vae


def program_of(name):
    """A program that can be given again, its first weights others."""
    vae = with_batch_norm() if name == "batch norm" else small_vae()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.01 * torch.rand_like(parameter))
    return vae


def training(vae, path, *, epochs=6, resume=True, stop_at=None, **options):
    """Trains as far as a step, or to the end."""

    data = pyrovae.Examples(
        0.8 * binary(ROWS) + 0.1, preprocessing=pyrovae.data.Binarize("dynamic", maximum=1.0)
    )
    options = {
        "optimizer": partial(torch.optim.Adam, lr=1e-2),
        "kl_warmup": 2,
        "engine": "eager",
        **options,
    }

    def seed(*args, **kwargs):
        if stop_at is not None and args[1:] == ("step", stop_at):
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    original, loop.seed_generators = loop.seed_generators, seed
    try:
        return pyrovae.fit(
            vae,
            data,
            valid=binary(40, seed=1),
            epochs=epochs,
            batch_size=BATCH,
            run_dir=path,
            resume=resume,
            progress=False,
            **options,
        )
    finally:
        loop.seed_generators = original


def numbers(run):
    timing = ("seconds", "examples_per_second")
    return [{k: v for k, v in record.items() if k not in timing} for record in run.metrics]


def on_disk(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


# ── To the same bits ──


@pytest.mark.parametrize(
    ("name", "options", "stop_at"),
    [
        ("plain", {}, 0),
        ("plain", {}, 3 * STEPS - 1),
        ("plain", {}, 3 * STEPS),
        ("plain", {}, 3 * STEPS + 2),
        ("plain", {"engine": "graph"}, 3 * STEPS + 2),
        ("plain", {"lr_schedule": cosine(1.0, 0.0, 6 * STEPS), "clip_norm": 1.0}, 3 * STEPS + 2),
        ("plain", {"optimizer": partial(torch.optim.SGD, lr=1e-3, momentum=0.9)}, 3 * STEPS + 2),
        ("plain", {"patience": 2}, 3 * STEPS - 1),
        ("plain", {"patience": 2}, 3 * STEPS + 2),
        ("batch norm", {}, 3 * STEPS + 2),
        ("batch norm", {"engine": "graph"}, 3 * STEPS),
        ("batch norm", {"engine": "cuda-graph"}, 3 * STEPS + 2),
    ],
)
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(
    name, options, stop_at, tmp_path, monkeypatch
):
    if options.get("engine") == "cuda-graph":
        stand_in(monkeypatch)
    whole = training(program_of(name), tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        training(program_of(name), tmp_path / "run", stop_at=stop_at, **options)
    resumed = training(program_of(name), tmp_path / "run", **options)

    assert whole.config["engine"]["name"] == options.get("engine", "eager")
    assert same(weights(whole.program), weights(resumed.program))
    assert numbers(whole) == numbers(resumed)
    assert on_disk(tmp_path / "run") == on_disk(tmp_path / "whole")
    assert whole.config.get("best_epoch") == resumed.config.get("best_epoch")


class Counted(nn.Module):
    """A network that a graph gets wrong now and then: it reads its own count of steps."""

    def __init__(self, net):
        super().__init__()
        self.net, self.out_shape = net, net.out_shape
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, z):
        self.steps += self.training
        return self.net(z) * (1.0 + self.steps.tolist() // 5)


def test_a_run_that_has_given_its_graph_up_goes_on_without_it(tmp_path):
    """Where the graph of the resumed run would go wrong again, between two of its checks."""

    def counted():
        vae = small_vae()
        vae.decoder.net = Counted(vae.decoder.net)
        return vae

    with pytest.warns(UserWarning, match="disagree about"):
        whole = training(counted(), tmp_path / "whole", engine="graph")
    with pytest.warns(UserWarning, match="disagree about"), pytest.raises(KeyboardInterrupt):
        training(counted(), tmp_path / "broken", engine="graph", stop_at=2 * STEPS)
    resumed = training(counted(), tmp_path / "broken", engine="graph")
    assert same(weights(whole.program), weights(resumed.program))
    assert numbers(whole) == numbers(resumed)
    assert resumed.config["engine"]["name"] == "graph"


@pytest.mark.parametrize("patience", [None, 2])
def test_a_run_that_is_over_takes_more_epochs_to_the_same_bits(patience, tmp_path):
    whole = training(program_of("plain"), tmp_path / "whole", epochs=5, patience=patience)
    training(program_of("plain"), tmp_path / "run", epochs=3, patience=patience)
    longer = training(program_of("plain"), tmp_path / "run", epochs=5, patience=patience)
    assert same(weights(whole.program), weights(longer.program))
    assert numbers(whole) == numbers(longer)
    assert pyrovae.load(tmp_path / "run", data=None).config["training"]["epochs"] == 5


def test_a_run_that_stopped_early_stays_stopped(tmp_path, monkeypatch):
    elbos = iter([-3.0, -1.0, -2.0, -2.0])
    monkeypatch.setattr(
        "pyrovae.monitoring.Monitor.measure", lambda *_: {"valid_elbo": next(elbos)}
    )
    options = {"patience": 2, "kl_warmup": 0}
    stopped = training(program_of("plain"), tmp_path / "run", **options)
    again = training(program_of("plain"), tmp_path / "run", epochs=9, **options)
    assert len(stopped.metrics) == len(again.metrics) == 4
    assert same(weights(stopped.program), weights(again.program))


def test_a_training_that_dies_at_any_moment_ends_as_one_that_does_not(tmp_path):
    """More of these by `python tests/killing.py`."""
    command = [sys.executable, "killing.py", "--random", "4", "--signals", "2"]
    found = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    trials = json.loads(found.stdout)
    assert [trial["where"] for trial in trials if not trial["same"]] == []
    # One at a random moment may come too late, and is then tried again.
    killed = [trial["exits"][0] == -signal.SIGKILL for trial in trials]
    assert all(killed[:13])
    assert sum(killed[13:]) == 4
    assert sum(trial["in_a_save"] for trial in trials) >= 4


def test_what_was_saved_is_a_whole_number_of_steps(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        training(program_of("plain"), tmp_path / "run", stop_at=4)
    saved = pyrovae.load(tmp_path / "run")
    stopped = program_of("plain")
    with pytest.raises(KeyboardInterrupt):
        training(stopped, tmp_path / "other", stop_at=4)
    assert same(weights(saved.program), weights(stopped))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000005"]


# ── Or not at all ──


def two_rates(parameters):
    first, *others = parameters
    return torch.optim.Adam([{"params": [first], "lr": 0.5}, {"params": others}], lr=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 60}, "training.batch_size is 60, and was 50"),
        ({"seed": 1}, "training.seed is 1, and was 0"),
        ({"optimizer": partial(torch.optim.Adam, lr=2e-2)}, "training.optimizer.lr is 0.02"),
        ({"bound": pyrovae.IWAE(3)}, "training.bound is 'IWAE"),
        ({"engine": "graph"}, "training.engine is 'graph', and was 'eager'"),
        ({"valid": binary(9)}, r"data.sets is \['train', 'valid'\], and was \['train'\]"),
        ({"optimizer": two_rates}, r"optimizer.groups is .*'lr': 0.5"),
    ],
)
def test_another_configuration_is_refused_by_name(options, said, tmp_path):
    fit = partial(pyrovae.fit, run_dir=tmp_path / "run", epochs=1, progress=False, resume=True)
    told = {"batch_size": 50, "engine": "eager", "optimizer": partial(torch.optim.Adam, lr=1e-2)}
    fit(small_vae(), binary(), **told)
    with pytest.raises(InputError, match=said):
        fit(small_vae(), binary(), **{**told, **options})


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (Trace_ELBO(), Trace_ELBO(num_particles=2), "'Trace_ELBO(num_particles=2)', and was"),
        (RenyiELBO(0.5), RenyiELBO(0.2), "'RenyiELBO(alpha=0.2)', and was 'RenyiELBO(alpha=0.5)'"),
    ],
)
def test_another_option_of_a_bound_of_pyros_is_refused(before, now, said, tmp_path):
    fit = partial(pyrovae.fit, run_dir=tmp_path / "run", progress=False, resume=True)
    fit(small_vae(), binary(), bound=before, epochs=1)
    fit(small_vae(), binary(), bound=before, epochs=2)  # as it was changed by its steps
    with pytest.raises(InputError, match=re.escape(said)):
        fit(small_vae(), binary(), bound=now, epochs=2)


class Doubled:
    """A control of the user's own, which says nothing of how it is shown."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, kls):
        return Controlled({name: torch.tensor(self.factor) for name in kls})


@pytest.mark.parametrize("make", [Doubled, lambda factor: lambda kls: Doubled(factor)(kls)])
def test_a_control_of_the_users_own_is_known_again(make, tmp_path):
    fit = partial(pyrovae.fit, run_dir=tmp_path / "run", progress=False, resume=True)
    fit(small_vae(), binary(), bound=pyrovae.ELBO(kl=make(2.0)), epochs=1)
    run = fit(small_vae(), binary(), bound=pyrovae.ELBO(kl=make(2.0)), epochs=2)
    assert len(run.metrics) == 2
    if make is Doubled:
        with pytest.raises(InputError, match=r"kl=Doubled\(factor=3\.0\).*, and was"):
            fit(small_vae(), binary(), bound=pyrovae.ELBO(kl=Doubled(3.0)), epochs=3)


def test_another_program_or_other_data_are_refused_by_name(tmp_path):
    data = pyrovae.load_data(binary().numpy())
    fit = partial(pyrovae.fit, run_dir=tmp_path / "run", epochs=1, progress=False, resume=True)
    fit(small_vae(), data)
    with pytest.raises(InputError, match=r"program.prior.latent_dim is 3, and was 2"):
        fit(small_vae(latent_dim=3), data)
    with pytest.raises(InputError, match=r"data.fingerprint"):
        fit(small_vae(), pyrovae.load_data(binary(seed=5).numpy()))


@pytest.mark.parametrize(
    "other", [lambda x: 1 - x, lambda x: x[: len(x) // 2], lambda x: x.repeat(2, 1)]
)
def test_other_bare_tensors_are_refused(other, tmp_path):
    fit = partial(pyrovae.fit, run_dir=tmp_path / "run", epochs=1, progress=False, resume=True)
    x = binary(100)
    fit(small_vae(), x, valid=x[:9])
    with pytest.raises(InputError, match=r"data\.contents\.train"):
        fit(small_vae(), other(x), valid=x[:9])
    with pytest.raises(InputError, match=r"data\.contents\.valid"):
        fit(small_vae(), x, valid=other(x[:9]))
    fit(small_vae(), x, valid=x[:9], epochs=2)


@pytest.mark.parametrize("given", [pyrovae.Examples, lambda x, y: TensorDataset(x, y)])
def test_other_labels_are_refused(given, tmp_path):
    fit = partial(pyrovae.fit, run_dir=tmp_path / "run", epochs=1, progress=False, resume=True)
    x, y = binary(100), torch.arange(100) % 3
    fit(small_vae(), given(x, y))
    with pytest.raises(InputError, match=r"data\.contents\.train\.labels"):
        fit(small_vae(), given(x, 2 - y))


def test_a_run_is_not_given_back_with_other_labels(tmp_path):
    x, y = binary(100).numpy(), torch.arange(100).numpy() % 3
    data, other = (pyrovae.load_data(x, labels) for labels in (y, 2 - y))
    pyrovae.fit(small_vae(), data, epochs=1, progress=False, run_dir=tmp_path / "run")
    assert pyrovae.load(tmp_path / "run", data=data).splits["test"].y is not None
    with pytest.raises(InputError, match=r"labels of the data.* are not those"):
        pyrovae.load(tmp_path / "run", data=other)


def test_other_threads_or_fewer_epochs_are_refused(tmp_path, monkeypatch):
    training(program_of("plain"), tmp_path / "run", epochs=2)
    with pytest.raises(InputError, match="taken 2 epochs, and is to take 1"):
        training(program_of("plain"), tmp_path / "run", epochs=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.raises(InputError, match=r"threads is 7, and was 1"):
        training(program_of("plain"), tmp_path / "run", epochs=3)


def test_a_run_that_another_process_trains_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        training(program_of("plain"), tmp_path / "run", stop_at=2)
    with FileLock(tmp_path / "run" / ".lock"):
        script = (
            "import sys, torch, test_resuming as t; torch.set_num_threads(1); "
            "t.training(t.program_of('plain'), sys.argv[1])"
        )
        found = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "run")],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    assert "Another process is training" in found.stderr
    assert found.returncode == 1


def test_a_run_that_is_trained_between_being_read_and_being_held_is_refused(tmp_path, monkeypatch):
    training(program_of("plain"), tmp_path / "run", epochs=1)
    held = run_folder.held

    @contextmanager
    def late(path):
        monkeypatch.undo()
        training(program_of("plain"), path, epochs=2)
        with held(path):
            yield

    monkeypatch.setattr(run_folder, "held", late)
    with pytest.raises(InputError, match="in the meantime"):
        training(program_of("plain"), tmp_path / "run", epochs=3)


def test_a_run_whose_first_step_was_not_finite_can_be_tried_again(tmp_path):
    broken = small_vae()
    with torch.no_grad():
        broken.decoder.net.layers[0].weight.fill_(math.nan)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"step 0"):
            training(broken, tmp_path / "run")


def test_a_checkpoint_of_an_older_version_says_so(tmp_path, monkeypatch):
    training(program_of("plain"), tmp_path / "run", epochs=1)
    read = loop.Loop.restore

    def old(self, found, metrics):
        del found.state["finished"]
        return read(self, found, metrics)

    monkeypatch.setattr(loop.Loop, "restore", old)
    with pytest.raises(CheckpointError, match="could not resume"):
        training(program_of("plain"), tmp_path / "run", epochs=2)


def test_without_a_run_resume_begins_one_and_without_a_folder_it_is_refused(tmp_path):
    run = training(program_of("plain"), tmp_path / "run", epochs=1)
    assert math.isfinite(run.metrics[0]["loss"])
    with pytest.raises(InputError, match="no folder to resume"):
        training(program_of("plain"), None)
    with pytest.raises(InputError, match="go on with the run in it"):
        training(program_of("plain"), tmp_path / "run", resume=False)


# ── From a run ──


def test_a_program_starts_from_what_of_a_run_matches(tmp_path):
    run = training(program_of("plain"), tmp_path / "run", epochs=1)
    other = small_vae(seed=3)
    other.prior = pyrovae.GaussianMixture(2)
    before = weights(other)
    taken, left = start_from(other, tmp_path / "run")
    assert taken
    assert left == [name for name in before if name.startswith("prior")]
    for name, value in weights(other).items():
        assert torch.equal(value, weights(run.program)[name] if name in taken else before[name])


def test_weights_that_a_prior_shares_with_the_encoder_are_not_said_to_be_as_they_were(tmp_path):
    training(program_of("plain"), tmp_path / "run", epochs=1)
    other = small_vae(seed=3)
    other.prior = pyrovae.VampPrior(other.encoder, (6,), components=4)
    taken, left = start_from(other, tmp_path / "run")
    assert any(name.startswith("encoder") for name in taken)
    assert left == ["prior.free_inputs"]


def test_a_run_of_which_nothing_matches_is_refused(tmp_path):
    training(program_of("plain"), tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="No weight"):
        start_from(pyrovae.Autoencoder(2, nn.Linear(2, 3), nn.Linear(3, 2)), tmp_path / "run")
    with pytest.raises(InputError, match="not a run directory"):
        start_from(small_vae(), tmp_path)


# ── From the command line ──


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch, without_drawing):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", binary(100).numpy())
    return tmp_path


WORDS = "train --data rows.npy --latent-dim 2 --hidden 8 --batch-size 20".split()


def test_the_command_resumes_a_run_by_its_name(in_a_folder, capsys):
    cli.main([*WORDS, "--epochs", "2", "--run-dir", "runs/short", "--lr-schedule", "constant"])
    cli.main([*WORDS, "--epochs", "3", "--run-dir", "whole", "--lr-schedule", "constant"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["resume", "short"])
    assert "is over: it has taken 2 epochs" in capsys.readouterr().err

    cli.main(["resume", "short", "--epochs", "3"])
    said = capsys.readouterr().out
    assert "log p(x)" in said
    short = pyrovae.load("runs/short")
    assert [record["epoch"] for record in short.metrics] == [1, 2, 3]
    # The KL warm-up is that of the run as it was begun.
    assert short.config["training"]["kl_warmup"] == 0.2


def test_a_run_that_stopped_early_says_so(in_a_folder, capsys):
    """A learning rate of next to nothing makes no epoch better than the first, or few."""
    words = ["--patience", "1", "--lr", "1e-12", "--kl-warmup", "0", "--epochs", "50"]
    cli.main([*WORDS, *words, "--run-dir", "run"])
    with pytest.raises(SystemExit):
        cli.main(["resume", "run", "--epochs", "60"])
    assert "--init-from" in capsys.readouterr().err


def test_another_prior_is_put_on_a_trained_decoder(in_a_folder, capsys):
    cli.main([*WORDS, "--epochs", "1", "--run-dir", "runs/first"])
    capsys.readouterr()
    prior = ["--prior", "gaussian-mixture", "--init-from", "first", "--run-dir", "runs/second"]
    cli.main([*WORDS, "--epochs", "1", *prior])
    said = capsys.readouterr().out
    assert "weights  decoder.net (4), encoder.net (4) from first" in said
    assert re.search(r"prior\.\S+ \(1\).* new", said)


@pytest.mark.parametrize("words", [[], ["--patience", "2"]])
def test_a_run_that_died_after_its_last_epoch_is_finished(words, in_a_folder, monkeypatch, capsys):
    begin = [*WORDS, "--epochs", "3", "--kl-warmup", "0", *words, "--run-dir"]
    cli.main([*begin, "whole"])
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    finish = loop.Loop._finish
    monkeypatch.setattr(loop.Loop, "_finish", lambda self: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        cli.main([*begin, "run"])
    monkeypatch.setattr(loop.Loop, "_finish", finish)
    cli.main(["resume", "run"])
    whole, run = pyrovae.load("whole"), pyrovae.load("run")
    assert same(weights(whole.program), weights(run.program))
    assert whole.config.get("best_epoch") == run.config.get("best_epoch")
    assert Path("run/report.html").is_file()


def test_a_run_that_never_saved_begins_again_with_the_weights_it_was_given(in_a_folder):
    still = ["--epochs", "1", "--lr", "1e-12"]
    cli.main([*WORDS, "--epochs", "1", "--run-dir", "runs/first"])
    cli.main([*WORDS, *still, "--init-from", "latest", "--run-dir", "runs/second"])
    shutil.rmtree("runs/second/checkpoints")
    cli.main(["resume", "second"])
    first, second = (weights(pyrovae.load(name).program) for name in ("first", "second"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])


@pytest.mark.parametrize(
    "change",
    [
        {"command": 3},
        {"command": "pyrovae train 'unbalanced"},
        {"command": "rm -rf /"},
        {"files": None},
        {"files": [3]},
        {"folder": None},
        {"training": {}},
        {"training": None},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, in_a_folder, capsys):
    cli.main([*WORDS, "--epochs", "1", "--run-dir", "run"])
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(SystemExit):
        cli.main(["resume", "run", "--epochs", "2"])
    assert "does not say how the run was begun" in capsys.readouterr().err


def test_latest_is_the_run_that_was_told_last(in_a_folder):
    for name in ("one", "two"):
        cli.main([*WORDS, "--epochs", "1", "--run-dir", f"runs/{name}"])
    assert pyrovae.load("latest").path == Path("runs/two")


def test_a_run_from_python_is_resumed_from_python(in_a_folder, capsys):
    training(program_of("plain"), in_a_folder / "run", epochs=1)
    with pytest.raises(SystemExit):
        cli.main(["resume", "run"])
    assert "resume=True" in capsys.readouterr().err

"""NaN and infinity, wherever they come from, reach no weight and no file.

A table of where a number goes bad, over the back ends and over verdicts that come at once and
late, as they do from a GPU. In every case training stops with an error that says where, the
weights, buffers and the optimizer are those of the last good step, and so is what was saved.
"""

import json
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_for_tests import same, weights
from torch import nn
from torch.utils.data import Dataset

import pyrovae
from pyrovae import checkpoint, loop, monitoring, training
from pyrovae.errors import NonFiniteError
from pyrovae.svi import Stepper

pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")

ROWS, BATCH, WIDTH = 200, 25, 4
STEPS = ROWS // BATCH
# The first bad step: late in the second epoch.
BAD = STEPS + 6


class Regression(nn.Module):
    """x is Gaussian around a latent's image; a last column, 0 or more, is what spoils a step.

    Where the column is 0 every site and gradient is that of a plain model.
    """

    def __init__(self, where):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, WIDTH))
        self.encoder = nn.Linear(WIDTH, 4)
        self.log_scale = nn.Parameter(torch.zeros(WIDTH))
        self.where = where

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            flag = x[:, WIDTH:].amax()
            loc, scale = self.net(z), self.log_scale.exp()
            if self.where == "loss":
                loc = loc + torch.where(flag > 0, math.nan, 0.0)
            if self.where == "gradient":
                # The root's derivative at 0 is infinite, and the root 0.
                loc = (
                    loc
                    + (flag * (self.log_scale * (1 - flag)).abs() + 1 - flag).sqrt()
                    - (1 - flag)
                )
            if self.where == "scale":
                scale = scale * (1 - flag)
            if self.where == "logarithm of a scale":
                scale = (self.log_scale + 1e4 * flag).exp()
            observed = dist.Normal(loc, scale, validate_args=False).to_event(1)
            pyro.sample("x", observed, obs=x[:, :WIDTH])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x[:, :WIDTH]).chunk(2, -1)
            q = dist.Normal(loc, log_scale.clamp(-5, 5).exp(), validate_args=False)
            pyro.sample("z", q.to_event(1))


def rows():
    x = torch.randn(ROWS, WIDTH + 1, generator=torch.Generator().manual_seed(0))
    x[:, WIDTH] = 0
    return x


class Turning(Dataset):
    """A stream whose item goes bad when it is read for the n-th time."""

    def __init__(self, x, value, nth):
        self.x, self.value, self.left = x, value, nth

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.left -= index == 7
        x = self.x[index].clone()
        if index == 7 and self.left <= 0:
            x[1] = self.value
        return x


class Recording:
    """The weights, buffers and moments of a run as they stood before each step."""

    def __init__(self, program):
        self.program, self.taken = program, []

    def before(self, stepper):
        """Notes how things stand when a step begins."""
        optimizer = stepper.update.optimizer.state_dict()["state"]
        moments = {
            f"{index}.{name}": value.clone()
            for index, state in optimizer.items()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        self.taken.append({**weights(self.program), **moments})


def spoilt(where, recording, monkeypatch, late):
    """Spoils the step `BAD` of a training, and notes how things stood before each step."""
    call, count = Stepper.__call__, [0]

    def step(self, *args, **kwargs):
        recording.before(self)
        if count[0] == BAD:
            x, *others = args
            x = x.clone()
            if where.startswith("data"):
                x[3, 1] = math.nan if where == "data, NaN" else math.inf
            elif where in WHERE:
                x[3, WIDTH] = 1
            args = (x, *others)
        count[0] += 1
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "__call__", step)
    if late:
        monkeypatch.setattr(training, "Stepper", partial(Stepper, check_every=late))


def fit(program, path, engine, data=None):
    return pyrovae.fit(
        program,
        rows() if data is None else data,
        epochs=3,
        batch_size=BATCH,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        engine=engine,
        run_dir=path,
        progress=False,
    )


def assert_as_before(program, path, before, step):
    assert same(weights(program), {k: before[k] for k in weights(program)})
    assert all(value.isfinite().all() for value in weights(program).values())
    found = checkpoint.load_newest(path / "checkpoints")
    assert found.step == step
    assert same(dict(sorted(found.weights.items())), dict(sorted(weights(program).items())))
    for index, state in found.state["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, before[f"{index}.{name}"]), name


WHERE = {
    "data, NaN": "site 'z'",
    "data, infinite": "site 'z'",
    "loss": "site 'x'",
    "gradient": "gradient of 'log_scale'",
    "scale": "site 'x'",
    "logarithm of a scale": "site 'x'",
}
ENGINES = [(w, e, late) for w in WHERE for e in ("eager", "graph") for late in (None, 5)]
ENGINES += [("loss", "inductor", None), ("gradient", "inductor", 5)]


@pytest.mark.parametrize(("where", "engine", "late"), ENGINES)
def test_what_is_not_finite_reaches_neither_weights_nor_disk(
    where, engine, late, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0 if late is None else 1e9)
    program = Regression(where)
    recording = Recording(program)
    spoilt(where, recording, monkeypatch, late)
    words = rf"In epoch 2, batch 6 \(step {BAD}\): .*{WHERE[where]}"
    with pytest.raises(NonFiniteError, match=words):
        fit(program, tmp_path / "run", engine)
    assert_as_before(program, tmp_path / "run", recording.taken[BAD], BAD)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert len(text.splitlines()) == 1
    assert "NaN" not in text


@pytest.mark.parametrize("late", [None, 5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_stream_that_turns_bad_reaches_neither_weights_nor_disk(
    value, late, tmp_path, monkeypatch
):
    """Its item is read to be looked at, and once for each epoch and each of its bounds."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0 if late is None else 1e9)
    program = Regression("nowhere")
    recording = Recording(program)
    spoilt("nowhere else", recording, monkeypatch, late)
    stream = pyrovae.Examples(Turning(rows(), value, 5), num_workers=0)
    with pytest.raises(NonFiniteError, match=r"In epoch 2, batch 7 \(step 15\): .*site 'z'"):
        fit(program, tmp_path / "run", "eager", stream)
    assert_as_before(program, tmp_path / "run", recording.taken[15], 15)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize(("bad", "engine"), [(BAD, "eager"), (BAD, "graph"), (23, "eager")])
def test_a_moment_of_the_optimizer_that_is_not_finite_is_not_saved(
    bad, engine, seconds, tmp_path, monkeypatch
):
    """It makes NaN of a weight in one update, be it the last of all."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", seconds)
    call, count = Stepper.__call__, [0]

    def step(self, *args, **kwargs):
        if count[0] == bad:
            state = self.update.optimizer.state
            next(iter(state.values()))["exp_avg"].view(-1)[0] = math.nan
        count[0] += 1
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "__call__", step)
    with pytest.raises(NonFiniteError, match=r"parameter '.*' (is|was) not finite"):
        fit(Regression("nowhere"), tmp_path / "run", engine)
    assert count[0] <= bad + 2
    saved = list((tmp_path / "run").glob("checkpoints/step-*"))
    assert bool(saved) == (seconds == 0.0)
    if saved:
        found = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
        assert found.step == bad
        assert all(v.isfinite().all() for v in found.weights.values())


# ── Bounds ──


class Spoilt(Dataset):
    """A stream of which an item holds another number once a file is there."""

    def __init__(self, x, value, file):
        self.x, self.value, self.file = x, value, file

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index].clone()
        if index == 3 and self.file.exists():
            x[1] = self.value
        return x


@pytest.mark.parametrize("patience", [None, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_stream_that_turns_bad_where_it_is_only_measured_ends_the_training(
    value, patience, tmp_path
):
    """Neither a record nor a best epoch is made of it; mended, the training goes on."""
    file, program = tmp_path / "bad", Regression("nowhere")
    valid = pyrovae.Examples(Spoilt(rows()[:30], value, file), num_workers=0)

    def train(**more):
        return pyrovae.fit(
            program,
            rows(),
            valid=valid,
            epochs=3,
            batch_size=BATCH,
            patience=patience,
            run_dir=tmp_path / "run",
            progress=False,
            **more,
        )

    words = "After epoch 2 the bound of the validation data .*hold values that are not finite"
    with pytest.raises(NonFiniteError, match=words):
        train(on_epoch=lambda run: file.write_text(""))
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [json.loads(line)["epoch"] for line in text.splitlines()] == [1]
    found = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert (found.step, found.state["epoch"]) == (2 * STEPS, 1)
    with pytest.raises(NonFiniteError, match=words):
        train(resume=True)
    file.unlink()
    run = train(resume=True)
    assert [record["epoch"] for record in run.metrics] == [1, 2, 3]
    assert all(math.isfinite(record["valid_elbo"]) for record in run.metrics)


def bounds_of(monkeypatch, *elbos):
    """Has the bounds of epochs be these."""
    found = iter(elbos)
    monkeypatch.setattr(
        monitoring,
        "sum_terms",
        lambda *_: torch.tensor([next(found), -1.0, 0.5, 0.0, 1.0]).double(),
    )


def test_an_infinite_bound_is_a_number_that_is_never_the_best(tmp_path, monkeypatch):
    bounds_of(monkeypatch, *[-9.0, -math.inf, -9.0, -3.0, -9.0, -math.inf])
    data = {"train": rows(), "valid": rows()[:30], "epochs": 3, "batch_size": BATCH}
    run = pyrovae.fit(
        Regression("nowhere"), **data, patience=5, run_dir=tmp_path / "run", progress=False
    )
    assert run.config["best_epoch"] == 2
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    read = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [record["valid_elbo"] for record in read] == [None, -3.0, None]
    assert [record["valid_elbo"] for record in run.metrics] == [-math.inf, -3.0, -math.inf]


def test_a_bound_that_a_stream_made_infinite_ends_the_training(tmp_path, monkeypatch):
    bounds_of(monkeypatch, -9.0, -math.inf)
    valid = pyrovae.Examples(Spoilt(rows()[:30], math.inf, tmp_path / "bad"), num_workers=0)
    told = {"valid": valid, "epochs": 1, "progress": False}
    measured = monitoring.Monitor.measure

    def spoil(*told):
        (tmp_path / "bad").write_text("")
        return measured(*told)

    monkeypatch.setattr(monitoring.Monitor, "measure", spoil)
    with pytest.raises(NonFiniteError, match="validation data is -inf, which hold values"):
        pyrovae.fit(Regression("nowhere"), rows(), **told)


def test_a_bound_that_is_nan_ends_the_training_whatever_the_data(monkeypatch):
    bounds_of(monkeypatch, -9.0, math.nan)
    with pytest.raises(NonFiniteError, match="epoch 1 the bound of the validation data is nan"):
        pyrovae.fit(Regression("nowhere"), rows(), valid=rows()[:30], epochs=1, progress=False)

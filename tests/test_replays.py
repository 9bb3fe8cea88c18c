"""Several steps as one recording, on a stand-in for CUDA's recorder and on a GPU."""

import gc
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_for_tests import binary, same, small_vae, weights
from recorder import stand_in
from torch import nn

import pyrovae
from pyrovae import checkpoint, loop
from pyrovae.capture import CaptureError
from pyrovae.data import AsIs, Examples
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.priors import StandardNormal
from pyrovae.schedules import cosine
from pyrovae.svi import replays, sentinel, stepper, updates
from pyrovae.svi.replays import Replay

K = 4


@pytest.fixture
def recorder(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture
def replayed(monkeypatch):
    """What was found by steps that were taken as one."""
    found, call = [], Replay.__call__

    def noted(self, calls):
        found.append(call(self, calls))
        return found[-1]

    monkeypatch.setattr(Replay, "__call__", noted)
    return found


@pytest.fixture
def one_by_one(monkeypatch):
    """Lets every step be taken alone, whatever was asked for."""

    def forbid():
        monkeypatch.setattr(stepper.Stepper, "_replay_of", lambda *given: None)

    return forbid


def fit(vae=None, x=None, **options):
    vae = small_vae() if vae is None else vae
    told = {"epochs": 3, "batch_size": 8, "engine": "cuda-graph", "steps_per_replay": K}
    run = pyrovae.fit(vae, binary(200) if x is None else x, progress=False, **{**told, **options})
    return vae, run


def metrics(run):
    skipped = ("seconds", "examples_per_second")
    return [{k: v for k, v in record.items() if k not in skipped} for record in run.metrics]


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=3e-3, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_as_one_are_the_same_steps_to_the_bit(name, recorder, replayed, one_by_one):
    """Schedules, clipping, a ragged batch at the end and all."""
    options = {
        "optimizer": OPTIMIZERS[name],
        "clip_norm": 5.0,
        "kl_warmup": 2.0,
        "lr_schedule": cosine(1.0, 0.0, 78),
        "x": binary(204),
    }
    found, run = fit(**options)
    assert len(replayed) > 5
    assert {found.shape for found in replayed} == {(2, K)}
    assert len(torch.stack(replayed).unique(dim=0)) == len(replayed)
    replayed.clear()
    one_by_one()
    expected, expected_run = fit(**options)
    assert not replayed
    assert same(weights(found), weights(expected))
    assert metrics(run) == metrics(expected_run)
    # The last two of 26 steps are scheduled together.
    assert run.metrics[0]["kl_weight"] == 24 / 52


class Normalised(nn.Module):
    """z given what batch normalisation makes of x; in training NaN where x is more than 5."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.randn(3))
        self.prior = StandardNormal(3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.weight * z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        bad = torch.where(x > 5, torch.nan if self.training else 0.0, 0.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.norm(x) + bad, 1.0).to_event(1))


def test_statistics_are_those_of_steps_one_by_one(recorder, replayed, one_by_one):
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    found, run = fit(Normalised(), x)
    assert len(replayed) > 5
    one_by_one()
    expected, expected_run = fit(Normalised(), x)
    assert same(found.state_dict(), expected.state_dict())
    assert int(found.norm.num_batches_tracked) == 75
    assert metrics(run) == metrics(expected_run)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_step_that_is_not_finite_is_named_and_undone(
    seed, asked, recorder, replayed, one_by_one, monkeypatch
):
    """Whichever of those that were taken as one it is, at the epoch's end or by a replay."""
    if asked:
        monkeypatch.setattr(sentinel, "MOST_BYTES", 1000)
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    x[7, 1] = 9.0
    found, ours = broken(x, seed=seed)
    assert replayed
    batches = Examples(x, preprocessing=AsIs()).shuffled(8, seed=seed, epoch=1)
    number = next(n for n, raw in enumerate(batches) if 7 in raw.rows)
    assert f"In epoch 1, batch {number} (step {number}): " in found
    assert ("no learning rate is to blame" in found) == (number == 0)
    one_by_one()
    expected, theirs = broken(x, seed=seed)
    assert found == expected
    assert same(ours, theirs)


def broken(x, **options):
    """What is said of a step that is not finite, and the weights after it."""
    program = Normalised()
    with pytest.raises(NonFiniteError, match="'z'") as raised:
        fit(program, x, **options)
    return str(raised.value), program.state_dict()


def test_a_run_goes_on_to_the_same_bits(tmp_path, recorder, replayed):
    whole, _ = fit(epochs=3)
    fit(epochs=2, run_dir=tmp_path / "run")
    replayed.clear()
    resumed, _ = fit(epochs=3, run_dir=tmp_path / "run", resume=True)
    assert replayed
    assert same(weights(whole), weights(resumed))
    with pytest.raises(InputError, match="steps_per_replay is 2, and was 4"):
        fit(epochs=4, run_dir=tmp_path / "run", resume=True, steps_per_replay=2)
    fit(epochs=1, run_dir=tmp_path / "single", steps_per_replay=1)
    with pytest.raises(InputError, match="steps_per_replay is 4, and was 1"):
        fit(epochs=2, run_dir=tmp_path / "single", resume=True)


def test_what_is_saved_of_a_step_that_is_not_finite_is_finite(tmp_path, recorder, replayed):
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    x[7, 1] = 9.0
    broken(x, seed=0, run_dir=tmp_path / "run")
    assert replayed
    newest = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert newest.step == 25
    assert newest.state["totals"].isfinite().all()
    assert newest.state["seen"] == 24 * 8  # behind the last whole group


def test_a_first_group_that_is_not_finite_is_named_too(recorder):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 9.0
    found, _ = broken(x)
    assert "In epoch 1, batch 0 (step 0): " in found
    assert "no learning rate is to blame" in found


def test_learning_rates_may_be_of_numpy(recorder, replayed, one_by_one):
    """On the device they are of float32, as torch's kernels read them."""
    kinds, update = set(), updates.Update._rate

    def noted(self, slot):
        kinds.add(update(self, slot).dtype)
        return update(self, slot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates.Update, "_rate", noted)
        found, _ = fit(lr_schedule=lambda step: np.float64(1 - step / 100))
    assert kinds == {torch.float32}
    assert replayed
    one_by_one()
    expected, _ = fit(lr_schedule=lambda step: 1 - step / 100)
    assert same(weights(found), weights(expected))


def test_a_run_that_is_broken_off_is_saved_between_replays(tmp_path, recorder, monkeypatch):
    whole, _ = fit(epochs=2)
    call, taken = Replay.__call__, []

    def interrupted(self, calls):
        taken.append(len(calls))
        if len(taken) == 3:
            raise KeyboardInterrupt
        return call(self, calls)

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Replay, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(epochs=2, run_dir=tmp_path / "run")
    newest = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert newest.step % K == 0
    assert 0 < newest.step < 25
    resumed, _ = fit(epochs=2, run_dir=tmp_path / "run", resume=True)
    assert same(weights(whole), weights(resumed))


def test_weights_that_have_moved_are_trained_where_they_are(recorder, replayed, one_by_one):
    def move(run):
        parameters = list(run.program.parameters())
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters), parameters)

    found, _ = fit(on_epoch=move)
    assert len(replayed) > 10
    one_by_one()
    expected, _ = fit(on_epoch=move)
    assert same(weights(found), weights(expected))


def load(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def decay(optimizer):
    optimizer.param_groups[0]["weight_decay"] += 0.1


@pytest.mark.parametrize("change", [load, decay])
def test_an_optimizer_that_has_changed_is_the_one_that_updates(
    change, recorder, replayed, one_by_one
):
    """Also where it keeps nothing but its learning rate."""

    def train():
        made = []

        def make(parameters):
            made.append(torch.optim.SGD(parameters, lr=0.01))
            return made[0]

        schedule = cosine(1.0, 0.0, 75)
        return fit(optimizer=make, on_epoch=lambda run: change(made[0]), lr_schedule=schedule)[0]

    found = train()
    assert len(replayed) > 10
    one_by_one()
    assert same(weights(found), weights(train()))


def test_a_program_that_a_recording_does_not_see_is_found_out(recorder, replayed):
    class Stateful(Normalised):
        """Its state lies in a dictionary, into which no watch looks."""

        def __init__(self):
            super().__init__()
            self.factors = {"loc": 1.0}

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal(self.factors["loc"] * z, 1.0).to_event(1), obs=x)

    def change(run):
        run.program.factors["loc"] += 1.0

    with pytest.warns(UserWarning, match=r"At step 32 the cuda-graph .* disagree"):
        fit(Stateful(), torch.randn(200, 3), on_epoch=change)


def test_a_program_that_was_dropped_is_freed(recorder, replayed):
    """Its graph, its recordings and all, without the help of Python's collector."""
    gc.collect()
    gc.disable()
    try:
        vae, run = fit()
        assert replayed
        dropped = [weakref.ref(parameter) for parameter in vae.parameters()]
        replayed.clear()
        del vae, run
        assert [of() for of in dropped] == [None] * len(dropped)
    finally:
        gc.enable()


def test_what_cannot_be_recorded_as_one_is_taken_step_by_step(recorder, replayed, monkeypatch):
    def refuse(*args, **options):
        raise CaptureError("it waits for the device.")

    monkeypatch.setattr(replays, "record", refuse)
    with pytest.warns(UserWarning, match=r"4 steps cannot be recorded as one: it waits"):
        _, run = fit()
    assert run.config["engine"]["name"] == "cuda-graph"
    assert not replayed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps_per_replay": 0}, "Give 1 to 64"),
        ({"steps_per_replay": 65}, "Give 1 to 64"),
        ({"batch_size": 60}, "an epoch has 3 whole batches"),
        ({"engine": "graph"}, "only the engine cuda-graph"),
        ({"engine": None}, "only the engine cuda-graph"),
        ({"optimizer": torch.optim.Adagrad}, "An update by Adagrad"),
    ],
)
def test_replays_that_cannot_be_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        fit(**options)


def test_steps_that_come_together_are_those_of_an_epoch_in_order():
    examples = Examples(torch.arange(23.0)[:, None], preprocessing=AsIs())

    def rows(**options):
        return [raw.rows for raw in examples.shuffled(3, seed=1, epoch=2, **options)]

    one_by_one = torch.cat(rows())
    for start in range(9):
        found = rows(start=start, together=4)
        assert torch.equal(torch.cat([torch.zeros(0).long(), *found]), one_by_one[3 * start :])
        ends = [3 * start + sum(map(len, found[: n + 1])) for n in range(len(found))]
        assert all(end % 12 == 0 for end in ends[:-1])
        assert ends[-1:] in ([23], [])


@pytest.mark.usefixtures("gpu")
def test_a_gpu_takes_several_steps_by_one_launch(replayed, one_by_one):
    options = {"x": binary(204), "kl_warmup": 2.0, "clip_norm": 5.0, "device": "cuda"}
    found, run = fit(**options)
    assert len(replayed) > 5
    one_by_one()
    expected, expected_run = fit(**options)
    assert same(weights(found), weights(expected))
    assert metrics(run) == metrics(expected_run)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("seed", range(3))
def test_a_gpu_names_the_step_that_is_not_finite(seed, replayed, one_by_one):
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    x[7, 1] = 9.0
    found, ours = broken(x, seed=seed, device="cuda")
    assert replayed
    one_by_one()
    expected, theirs = broken(x, seed=seed, device="cuda")
    assert found == expected
    assert same(ours, theirs)

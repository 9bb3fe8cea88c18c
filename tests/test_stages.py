"""Samples as training goes: when they are taken, what they are, and that they change nothing."""

import math
import signal

import pytest
import torch
from programs_for_tests import binary, same, small_vae, weights

import pyrovae
from pyrovae import stages
from pyrovae.run_folder import STAGES
from pyrovae.stages import Stages


@pytest.fixture(autouse=True)
def at_every_turn(monkeypatch):
    monkeypatch.setattr(stages, "SHARE", math.inf)


def trained(path=None, **options):
    options = {"epochs": 7, "progress": False, "run_dir": path, **options}
    return pyrovae.fit(options.pop("program", None) or small_vae(), binary(), **options)


def test_stages_are_those_of_the_run_at_that_time(tmp_path):
    by_hand = {}

    def keep(run):
        by_hand[len(run.metrics)] = run.sample(8).x.flatten(0, 1)

    data = pyrovae.load_data(100 + 7 * torch.randn(300, 6))
    vae = small_vae()
    vae.decoder = pyrovae.GaussianDecoder(vae.decoder.net, learn_scale=True)
    run = pyrovae.fit(vae, data, epochs=7, progress=False, run_dir=tmp_path / "run", on_epoch=keep)
    found = Stages.of(run.path).found
    assert list(found) == [1, 2, 3, 4, 6]
    for epoch, x in found.items():
        assert torch.equal(x, by_hand[epoch])
    assert not torch.equal(found[1], found[6])


def test_stages_change_no_weight(tmp_path):
    assert same(weights(trained(tmp_path / "run").program), weights(trained().program))


def test_a_run_without_a_folder_takes_none(monkeypatch):
    monkeypatch.setattr(stages, "samples", None)
    trained()


def test_an_interrupted_run_goes_on_with_its_stages(tmp_path):
    def stop(run):
        if len(run.metrics) == 3:
            signal.raise_signal(signal.SIGINT)

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", on_epoch=stop)
    assert list(Stages.of(tmp_path / "broken").found) == [1, 2, 3]

    trained(tmp_path / "broken", resume=True)
    expected = (whole.path / STAGES).read_bytes()
    assert (tmp_path / "broken" / STAGES).read_bytes() == expected


def test_stages_after_the_checkpoint_are_forgotten(tmp_path):
    run = trained(tmp_path / "run")
    assert list(Stages.of(run.path, 3).found) == [1, 2, 3]


def test_slow_samples_are_taken_rarely(monkeypatch):
    monkeypatch.setattr(stages, "SHARE", 0.05)
    clock = iter([0.0, 100.0, 250.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    slow = Stages(None, taken_at=0.0)
    assert slow.is_due(1)
    slow.seconds = 10.0
    assert not slow.is_due(2)
    assert slow.is_due(4)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_damaged_stages_are_none(content, tmp_path):
    if content is not None:
        (tmp_path / STAGES).write_bytes(content)
    assert Stages.of(tmp_path).found == {}


def test_a_program_that_cannot_be_sampled_from_is_trained(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no samples")

    monkeypatch.setattr(stages.generation, "sample", fail)
    run = trained(tmp_path / "run")
    assert len(run.metrics) == 7
    assert not (run.path / STAGES).exists()


def test_an_autoencoder_has_none(tmp_path):
    vae = small_vae()
    program = pyrovae.Autoencoder(2, vae.decoder, vae.encoder)
    run = trained(tmp_path / "run", program=program)
    assert not (run.path / STAGES).exists()


def test_the_report_shows_them_and_the_weights_as_they_are(tmp_path):
    run = trained(tmp_path / "run")
    picture = run._forming()
    assert picture.x.shape == (6, 8, 6)
    assert torch.equal(picture.x[-1], run.sample(8).x.flatten(0, 1))
    assert torch.equal(picture.x[0], Stages.of(run.path).found[1])
    assert "Samples as training went" in run.report().read_text()


def test_after_early_stopping_the_last_is_the_best(tmp_path):
    run = trained(tmp_path / "run")
    run.config["best_epoch"] = 3
    shown = run._forming().x
    assert len(shown) == 3  # after 1 and 2 epochs, and as it is
    assert torch.equal(shown[-1], run.sample(8).x.flatten(0, 1))


def test_an_error_on_epoch_ends_the_training_with_the_epoch_saved(tmp_path):
    def fail(run):
        if len(run.metrics) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "run", on_epoch=fail)
    assert len(pyrovae.load(tmp_path / "run", data=binary()).metrics) == 2
    resumed = trained(tmp_path / "run", resume=True)
    assert same(weights(resumed.program), weights(trained().program))


def test_what_on_epoch_draws_does_not_reach_the_training():
    drawn = trained(on_epoch=lambda run: torch.rand(3))
    assert same(weights(drawn.program), weights(trained().program))

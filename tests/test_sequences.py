"""Sequences: what they are taken for, and a recurrent VAE of them by the command line alone."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import cli
from pyrovae.building import Choice, build_vae
from pyrovae.cli import training as train_module
from pyrovae.data import AsIs, Binarize, Standardize, load_data, pad_sequences
from pyrovae.errors import InputError

T, X = 6, 3


def waves(count=80, seed=0):
    """Two sines of one random phase, and a third number of another size that says nothing."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + np.arange(T)
    both = np.stack([np.sin(angle), np.cos(angle), 1000 + 50 * rng.normal(size=(count, T))], -1)
    return (both + 0.1 * rng.normal(size=both.shape)).astype(np.float32)


# ── The data ─────────────────────────────────────────────────────────────────────────────────


def test_sequences_are_standardised_number_by_number():
    data = load_data(waves(), sequences=True)
    assert (data.x_shape, data.values) == ((T, X), "real")
    assert isinstance(data.preprocessing, Standardize)
    x = data.train.head(len(data.train)).x
    torch.testing.assert_close(x.mean((0, 1)), torch.zeros(X), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std((0, 1), correction=0), torch.ones(X), atol=1e-3, rtol=0)
    back = data.preprocessing.invert(x)
    torch.testing.assert_close(back, data.train.raw(range(len(x))).x)
    assert load_data(waves()).x_shape == (1, T, X), "images where nothing is said"


@pytest.mark.parametrize(
    ("array", "values", "preprocessing"),
    [
        (np.random.default_rng(0).integers(0, 200, (30, 4, 2)), "real", Standardize),
        (np.random.default_rng(0).random((30, 4, 2)), "real", Standardize),
        (np.random.default_rng(0).integers(0, 2, (30, 4, 2)), "binary", AsIs),
    ],
    ids=["bytes", "within one", "binary"],
)
def test_numbers_of_sequences_have_no_grey_scale(array, values, preprocessing):
    data = load_data(array, sequences=True)
    assert data.values == values
    assert isinstance(data.preprocessing, preprocessing)


def test_rows_of_named_images_are_sequences():
    data = load_data("digits", sequences=True)
    assert data.x_shape == (8, 8)
    assert isinstance(data.preprocessing, Binarize)


def test_a_dataset_of_sequences_is_read_as_one():
    x = torch.tensor(waves())
    data = load_data(TensorDataset(x), sequences=True)
    assert torch.equal(data.test.head(8).x, load_data(x, sequences=True).test.head(8).x)


# ── Of several lengths ───────────────────────────────────────────────────────────────────────


def ragged(count=60, least=1):
    rng = np.random.default_rng(1)
    return [x[: rng.integers(least, T + 1)] for x in waves(count)]


def test_sequences_of_several_lengths_are_one_array_with_nan_after_their_ends():
    given = ragged()
    x = pad_sequences(given)
    assert x.shape == (len(given), T, X)
    for row, sequence in zip(x, given, strict=True):
        assert np.array_equal(row[: len(sequence)], sequence)
        assert row[len(sequence) :].isnan().all()
    assert pad_sequences(given, length=9).shape == (len(given), 9, X)
    assert pad_sequences([np.ones((2, 1), int), np.ones((1, 1), int)]).isnan().sum() == 1
    # Where all are of one length there is nothing to pad.
    assert torch.equal(pad_sequences(list(torch.tensor(waves(4)))), torch.tensor(waves(4)))


def test_a_list_of_them_is_data():
    given = ragged()
    data = load_data(given, np.arange(len(given)))
    assert data.x_shape == (T, X)
    assert data.train.missing
    assert isinstance(data.preprocessing, Standardize)
    batch = data.train.head(len(data.train))
    for x, y in zip(batch.x, batch.y, strict=True):
        assert (~x.isnan()).all(1).sum() == len(given[int(y)])
    seen = torch.cat([torch.tensor(given[int(y)]) for y in batch.y])
    back = data.preprocessing.invert(batch.x)
    torch.testing.assert_close(back[~back.isnan()], seen.flatten())
    assert batch.x.nanmean((0, 1)).abs().max() < 1e-5, "moments are of what there is"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "There is no sequence"),
        ([np.ones((2, 3)), np.ones((3, 2))], r"Sequence 1 has the shape \(3, 2\).*Give each as"),
        ([np.ones(3), np.ones(2)], r"Sequence 0 has the shape \(3,\)"),
        ([np.ones((2, 3)), np.ones((0, 3))], "one step or more"),
    ],
    ids=["none", "sizes", "vectors", "no step"],
)
def test_what_is_no_sequence_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        pad_sequences(given)
    if len(given) > 1:
        with pytest.raises(InputError, match=words):
            load_data(given)


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="Sequence 1 has 5 steps, and 4 are asked for"):
        pad_sequences([np.ones((2, 3)), np.ones((5, 3))], length=4)


@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_how_far_a_sequence_is_padded_changes_nothing(network):
    """Neither its posterior nor its log p(x | z), by a network for more steps of one weights."""
    given = ragged(least=2)
    short, long = (
        load_data(pad_sequences(given, length=n), missing=True, sequences=True) for n in (T, T + 3)
    )
    vaes = [build_vae(data, network=network, hidden=8, latent_dim=2) for data in (short, long)]
    vaes[1].load_state_dict(vaes[0].state_dict())
    xs = [data.test.head(6).x for data in (short, long)]
    means = [vae.encoder(x).mean for vae, x in zip(vaes, xs, strict=True)]
    torch.testing.assert_close(*means)
    log_p = [vae.decoder(means[0]).log_prob(x) for vae, x in zip(vaes, xs, strict=True)]
    torch.testing.assert_close(*log_p)


def test_a_vae_trains_on_a_list_of_them(tmp_path):
    train, valid = ragged(80, least=2), ragged(20, least=2)
    valid[0] = waves(1)[0]
    vae = build_vae(load_data(train), network="gru", hidden=8, latent_dim=2)
    run = pyrovae.fit(vae, train, valid=valid, epochs=3, batch_size=16, progress=False)
    assert run.metrics[-1]["train_elbo"] > run.metrics[0]["train_elbo"]
    assert run.evaluate(valid, num_samples=2).log_evidence.isfinite().all()


@pytest.mark.parametrize("shape", [(30, 4), (30, 4, 5, 3)], ids=str)
def test_what_has_no_three_dimensions_is_no_sequence(shape):
    with pytest.raises(InputError, match="--network mlp"):
        load_data(np.random.default_rng(0).normal(size=shape), sequences=True)


def test_digits_that_one_number_loses_are_found():
    array = waves().astype(np.float64)
    array[..., 1] = 1.7e9 + np.arange(80)[:, None]
    with pytest.raises(InputError, match="column 1"):
        load_data(array, sequences=True)


# ── The program ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("network", ["gru", "lstm"])
@pytest.mark.parametrize("decoder", ["gaussian", "pixelwise-gaussian", "student-t"])
def test_networks_take_one_step_for_each_of_the_data(network, decoder):
    data = load_data(waves(), sequences=True)
    vae = build_vae(data, decoder=Choice(decoder), network=network, hidden=5, latent_dim=2)
    for net in (vae.encoder.net, vae.decoder.net):
        assert (net.cell, net.hidden) == (network, 5)
    assert vae.encoder.net.bidirectional
    assert vae.decoder.net.length == T
    x = data.train.head(4).x
    assert vae.decoder(vae.encoder(x).sample()).log_prob(x).shape == (4,)


@pytest.mark.parametrize("array", [waves()[:, 0], waves()], ids=["vectors", "images"])
def test_recurrent_networks_of_other_data_are_refused(array):
    with pytest.raises(InputError, match="sequences=True"):
        build_vae(load_data(array), network="lstm")


def test_the_cell_of_a_text_decoder_is_that_of_its_encoder():
    data = load_data(np.random.default_rng(0).integers(0, 5, (30, 7)), preprocessing=AsIs())
    for options, cell in (({}, "gru"), ({"cell": "lstm"}, "lstm")):
        vae = build_vae(data, decoder=Choice("recurrent-text", options), latent_dim=2, hidden=8)
        assert vae.encoder.net.cell == vae.decoder.cell == cell


# ── The command line ─────────────────────────────────────────────────────────────────────────


QUICK = ["--latent-dim", "2", "--hidden", "8", "--batch-size", "32", "--engine", "graph"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "FINAL_SAMPLES", 10)
    np.save("waves.npy", waves())


@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_a_run_of_sequences_does_all_that_a_run_does(network, capsys):
    words = ["--data", "waves.npy", "--network", network, *QUICK, "--lr-schedule", "constant"]
    cli.main(["train", *words, "--epochs", "2", "--kl-warmup", "1", "--run-dir", "r"])
    said = capsys.readouterr().out
    assert f"waves.npy, {T} x {X}, real values, standardised" in said
    assert f"gaussian decoder, {network}" in said
    assert "log p(x)" in said

    cli.main(["resume", "r", "--epochs", "4"])
    cli.main(["train", *words, "--epochs", "4", "--kl-warmup", "1", "--run-dir", "whole"])
    run, whole = pyrovae.load("r"), pyrovae.load("whole")
    assert [m["epoch"] for m in run.metrics] == [1, 2, 3, 4]
    for name, value in whole.program.state_dict().items():
        assert torch.equal(run.program.state_dict()[name], value), name

    for verb in ("sample", "reconstruct", "traverse", "interpolate"):
        cli.main([verb, "r", "-o", f"{verb}.npz"])
        assert np.load(f"{verb}.npz")["x"].shape[2:] == (T, X)
        cli.main([verb, "r", "-o", f"{verb}.png"])
    # In the units of the data, where the third number is about a thousand.
    assert np.load("reconstruct.npz")["x"][1, :, :, 2].mean() == pytest.approx(1000, abs=100)
    cli.main(["encode", "r", "-o", "z.npz"])
    assert np.load("z.npz")["z"].shape == (8, 2)

    np.save("others.npy", waves(20, seed=1))
    capsys.readouterr()
    cli.main(["evaluate", "r", "--data", "others.npy", "--num-samples", "20", "--json"])
    assert json.loads(capsys.readouterr().out)["num_examples"] == 20
    np.save("longer.npy", np.zeros((20, T + 1, X)))
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "r", "--data", "longer.npy"])
    assert f"({T + 1}, {X})" in capsys.readouterr().err


def test_a_recurrent_vae_finds_the_phase_of_waves():
    data = load_data(waves(), sequences=True)
    torch.manual_seed(0)
    vae = build_vae(data, network="lstm", hidden=16, latent_dim=2)
    options = {"optimizer": partial(torch.optim.Adam, lr=0.01), "engine": "graph"}
    options |= {"batch_size": 16, "epochs": 60, "kl_warmup": 30, "progress": False}
    metrics = pyrovae.fit(vae, data, **options).metrics
    assert metrics[-1]["valid_elbo"] > metrics[0]["valid_elbo"] + 10
    assert metrics[-1]["kl"] > 1.5, "in the latents, and not in the decoder alone"


def test_sequences_of_other_networks_are_asked_for_by_a_word(capsys):
    words = ["--data", "waves.npy", "--sequences", *QUICK, "--epochs", "1", "--run-dir", "r"]
    cli.main(["train", *words])
    assert f"{T} x {X}, real values" in capsys.readouterr().out
    assert pyrovae.load("r").config["data"]["x_shape"] == [T, X]


def test_a_table_or_vectors_are_no_sequences(capsys):
    np.save("rows.npy", waves()[:, 0])
    Path("rows.csv").write_text("a,b\n" + "1.5,2\n2,3.25\n" * 20)
    for name in ("rows.npy", "rows.csv"):
        with pytest.raises(SystemExit):
            cli.main(["train", "--data", name, "--network", "gru"])
        assert "--network mlp" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_text_is_written_by_an_lstm(capsys):
    np.save("text.npy", np.random.default_rng(0).integers(0, 5, (60, 7)))
    words = ["--data", "text.npy", "--decoder", "recurrent-text", "--decoder.cell", "lstm"]
    cli.main(["train", *words, *QUICK, "--epochs", "1", "--run-dir", "r"])
    assert "recurrent-text decoder" in capsys.readouterr().out
    cli.main(["sample", "r", "-o", "text.npz"])
    assert set(np.unique(np.load("text.npz")["x"])) <= set(range(5))

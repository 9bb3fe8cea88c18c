"""Missing entries of arrays and of tables of numbers: a word, or none, and they are left out."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from programs_for_tests import same, weights

import pyrovae
from pyrovae import cli
from pyrovae.building import Choice, build_vae
from pyrovae.data import AsIs, load_data
from pyrovae.decoders import NanMaskedDecoder
from pyrovae.distributions import NanMasked
from pyrovae.errors import InputError
from pyrovae.networks import NanMaskedInput

RNG = np.random.default_rng(0)
QUICK = ["--hidden", "8", "--latent-dim", "2", "--epochs", "1", "--run-dir", "run"]
FACTOR = RNG.normal(size=(300, 1))
REAL = 3 + FACTOR + 0.1 * RNG.normal(size=(300, 5))
UNIT = 1 / (1 + np.exp(-FACTOR[..., None, None] + 0.1 * RNG.normal(size=(300, 1, 8, 8))))
COUNTS = RNG.poisson(np.exp(FACTOR + np.zeros((1, 5)))).astype(np.float32)
KINDS = {"real": REAL, "unit": UNIT, "counts": COUNTS, "binary": (UNIT > 0.5).astype(np.float32)}


def with_holes(array, share=0.2, first=17):
    """Entries of all examples but the first ones are missing."""
    array = np.array(array, np.float32)
    holes = np.random.default_rng(1).random(array.shape) < share
    holes[:first] = False
    array[holes] = np.nan
    return array


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.training, "FINAL_SAMPLES", 5)


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    return capsys.readouterr().err


def loaded(array, whole):
    return load_data(array, missing=True, preprocessing=AsIs() if whole else None)


# ── The parts ──

ELEMENTWISE = [
    ("bernoulli", "binary"),
    ("continuous-bernoulli", "unit"),
    ("beta", "unit"),
    ("gaussian", "real"),
    ("pixelwise-gaussian", "unit"),
    ("laplace", "real"),
    ("student-t", "real"),
    ("poisson", "counts"),
    ("negative-binomial", "counts"),
    ("zero-inflated-negative-binomial", "counts"),
    ("categorical", "counts"),
    ("discretized-logistic", "counts"),
]
JOINT = [
    ("multinomial", "counts"),
    ("pixel-cnn", "binary"),
    ("recurrent-text", "counts"),
    ("discretized-logistic-mixture", "counts"),
]


@pytest.mark.parametrize(("name", "kind"), ELEMENTWISE)
def test_a_likelihood_of_single_entries_leaves_out_what_is_missing(name, kind):
    array = with_holes(KINDS[kind])
    data = loaded(array, kind == "counts")
    vae = build_vae(data, decoder=Choice(name), hidden=8, latent_dim=2)
    assert isinstance(vae.decoder, NanMaskedDecoder)
    x, z = data.train.head(60).x, torch.randn(60, 2)
    assert x.isnan().any()
    inner = vae.decoder.decoder(z)
    value = torch.where(x.isnan(), 0.5 if kind == "unit" else 1.0, x)
    expected = torch.where(x.isnan(), 0.0, inner.base_dist.log_prob(value)).flatten(1).sum(1)
    found = vae.decoder(z).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    run = pyrovae.fit(vae, data, epochs=1, progress=False)
    assert math.isfinite(run.metrics[0]["valid_elbo"])
    assert run.evaluate(num_samples=3).log_evidence.isfinite().all()


@pytest.mark.parametrize(("name", "kind"), JOINT)
def test_a_likelihood_of_all_entries_at_once_is_refused_with_the_entry(name, kind):
    array = with_holes(KINDS[kind])
    data = loaded(array, kind == "counts")
    with pytest.raises(
        InputError, match=rf"Entry .* of example (\d+) is missing.*{name}"
    ) as error:
        build_vae(data, decoder=Choice(name), hidden=8, latent_dim=2)
    words = str(error.value)
    place, example = words.split(" of example ")
    entry = eval(place.removeprefix("Entry "))
    assert np.isnan(array[int(example.split()[0])][entry])
    assert "--decoder gaussian or bernoulli" in words


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_is_told_what_is_missing_in_units_of_its_own(kind):
    data = loaded(with_holes(KINDS[kind]), kind == "counts")
    decoder = Choice("negative-binomial") if kind == "counts" else None
    vae = build_vae(data, decoder=decoder, hidden=8, latent_dim=2)
    (inner,) = (m for m in vae.encoder.modules() if isinstance(m, NanMaskedInput))
    seen = []
    inner.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = data.train.head(50).x
    assert vae.encoder(x).mean.isfinite().all()
    values, mask = seen[0].chunk(2, -len(data.x_shape))
    assert torch.equal(mask, (~x.isnan()).float())
    shown = x.log1p() if kind == "counts" else x
    torch.testing.assert_close(values, shown.nan_to_num(0.0))


def test_what_is_whole_has_no_mask():
    for data in (load_data(REAL, missing=True), load_data(REAL)):
        vae = build_vae(data, hidden=8, latent_dim=2)
        assert not isinstance(vae.decoder, NanMaskedDecoder)
        assert not isinstance(vae.encoder.net, NanMaskedInput)


def test_a_hole_in_any_split_is_found():
    for place in range(0, 300, 13):
        array = np.array(COUNTS)
        array[place, 2] = np.nan
        data = load_data(array, missing=True, preprocessing=AsIs())
        with pytest.raises(InputError, match=rf"Entry 2 of example {place} is missing"):
            build_vae(data, decoder=Choice("multinomial"), hidden=4, latent_dim=2)


@pytest.mark.parametrize("words", [["conv", None], ["residual-conv", None], ["gated", 8]])
def test_images_with_holes_are_read_by_every_network(words):
    network, hidden = words
    data = load_data(with_holes(UNIT), missing=True)
    vae = build_vae(data, network=network, hidden=hidden, latent_dim=2)
    assert vae.encoder(data.train.head(30).x).mean.isfinite().all()


@pytest.mark.parametrize("prior", ["vamp", "exemplar"])
def test_priors_of_inputs_begin_at_examples_with_holes(prior):
    data = load_data(with_holes(REAL), missing=True)
    vae = build_vae(data, prior=Choice(prior, {"components": 20}), hidden=8, latent_dim=2)
    run = pyrovae.fit(vae, data, epochs=2, progress=False)
    assert math.isfinite(run.metrics[-1]["valid_elbo"])
    assert all(p.isfinite().all() for p in vae.parameters())


def test_pseudo_inputs_begin_at_the_mean_where_nothing_was_seen():
    prior = pyrovae.VampPrior(pyrovae.GaussianEncoder(pyrovae.MLP((3,), (4,))), (3,), components=2)
    prior.bounded = False
    x = torch.tensor([[1.0, math.nan, math.nan], [math.nan, 5.0, math.nan]])
    found = sorted(prior.start_at(x).pseudo_inputs.tolist())
    assert found == [[1.0, 5.0, 0.0]] * 2


def test_an_encoder_that_asks_the_decoder_is_given_what_leaves_entries_out():
    data = load_data(with_holes(REAL), missing=True)
    vae = build_vae(data, encoder=Choice("refined"), hidden=8, latent_dim=2)
    assert math.isfinite(pyrovae.fit(vae, data, epochs=1, progress=False).metrics[0]["loss"])


def test_training_learns_what_the_missing_entries_are():
    """A column follows from the others: where it is missing, its mean is near what it was."""
    array = with_holes(REAL, share=0.3, first=0)
    data = load_data(array, missing=True)
    vae = build_vae(data, hidden=32, latent_dim=2)
    run = pyrovae.fit(vae, data, epochs=60, progress=False)
    (names,) = {split.names.tobytes() for split in [data.test]}
    rows = np.frombuffer(names, data.test.names.dtype)
    shown = run.reconstruct(len(rows)).x[1].numpy()
    holes = np.isnan(array[rows])
    error = np.abs(shown - REAL[rows])[holes].mean()
    assert error < 0.5 * np.abs(REAL[rows] - np.nanmean(array, 0))[holes].mean()


# ── The command line ──


def test_nan_in_an_array_is_refused_until_it_is_said_what_it_means(capsys):
    np.save("x.npy", with_holes(REAL))
    assert "--missing" in fails(capsys, "train", "x.npy", *QUICK)
    cli.main(["train", "x.npy", "--missing", *QUICK])
    printed = capsys.readouterr().out
    count = np.isnan(with_holes(REAL)).sum()
    assert f"{count} of 1,500 entries are missing" in printed
    assert "gaussian decoder, missing entries left out, mlp" in printed
    config = json.loads(Path("run/config.json").read_text())
    assert config["data"]["missing"] is True
    assert config["program"]["decoder"]["part"] == "NanMaskedDecoder"
    run = pyrovae.load("run")
    assert run.splits["train"].missing
    assert run.on(with_holes(REAL[:50])).evaluate(num_samples=3).log_evidence.isfinite().all()
    for verb in ("reconstruct", "traverse", "sample", "encode", "report"):
        cli.main([verb, "run"])
    cli.main(["resume", "run", "--epochs", "2"])


def test_the_same_in_python_gives_the_same_weights(capsys):
    np.save("x.npy", with_holes(REAL))
    words = ["train", "x.npy", "--missing", "--prior", "vamp", "--prior.components", "5"]
    cli.main([*words, *QUICK[:-1], "by_python", "--dry-run"])
    text = capsys.readouterr().out
    source = text.split("The same in Python:\n\n")[1].split("\n\nNothing was trained.")[0]
    assert "missing=True" in source
    assert "pyrovae.NanMaskedDecoder(" in source
    by_python = {}
    exec(source, by_python)
    cli.main([*words, *QUICK])
    assert same(weights(by_python["run"].program), weights(pyrovae.load("run").program))


def test_a_value_outside_the_support_is_not_said_to_be_missing_where_others_are(capsys):
    np.save("data.npy", with_holes(REAL, first=0))
    said = fails(capsys, "train", "data.npy", "--missing", "--decoder", "poisson", *QUICK)
    assert re.search(r"has one outside .* Poisson likelihood, first in .* \([\d.]+\)", said)
    assert "missing" not in said


def test_no_missing_entry_is_said_to_be_none(capsys):
    np.save("x.npy", REAL.astype(np.float32))
    cli.main(["train", "x.npy", "--missing", *QUICK])
    printed = capsys.readouterr().out
    assert "0 of 1,500 entries are missing (0.0%)" in printed
    assert "left out" not in printed


def test_a_program_of_ones_own_is_given_the_entries_as_they_are(capsys):
    np.save("x.npy", with_holes(KINDS["binary"]))
    cli.main(["new", "mine.py"])
    words = ["train", "mine.py", "--data", "x.npy", "--missing", "--epochs", "1", "--quiet"]
    assert "missing entries (NaN)" in fails(capsys, *words)
    text = Path("mine.py").read_text()
    for name in ("obs=x", "encoder(x"):
        text = text.replace(f"{name})", f"{name}.nan_to_num())")
    Path("mine.py").write_text(text)
    cli.main([*words, "--run-dir", "run"])


def table(lacking):
    rows = with_holes(REAL, share=lacking)
    text = [",".join("" if math.isnan(v) else f"{v:.3f}" for v in row) for row in rows]
    Path("t.csv").write_text("\n".join(["a,b,c,d,e", *text]))


@pytest.mark.parametrize("decoder", ["gaussian", "student-t"])
def test_a_table_of_numbers_says_itself_what_is_missing(decoder, capsys):
    table(0.2)
    cli.main(["train", "t.csv", "--decoder", decoder, *QUICK])
    printed = capsys.readouterr().out
    assert f"{decoder} decoder, missing entries left out" in printed
    assert "entries are missing" in printed
    cli.main(["evaluate", "run", "--num-samples", "3"])


def test_a_whole_table_of_numbers_has_no_mask(capsys):
    table(0.0)
    cli.main(["train", "t.csv", "--decoder", "gaussian", *QUICK])
    printed = capsys.readouterr().out
    assert "missing" not in printed


def test_a_column_that_cannot_be_left_out_is_named(capsys):
    rows = with_holes(np.hstack([np.ones((300, 1)), COUNTS]), share=0.1)
    rows[:, 0] = np.arange(300) % 3
    text = [",".join("" if math.isnan(v) else f"{v:.0f}" for v in row) for row in rows]
    Path("t.csv").write_text("\n".join(["day,a,b,c,d,e", *text]))
    said = fails(capsys, "train", "t.csv", "--decoder", "multinomial", *QUICK)
    assert re.search("column '[a-e]' has missing entries, and the multinomial decoder", said)
    assert "--decoder tabular" in said
    said = fails(capsys, "train", "t.csv", "--decoder", "recurrent-text", *QUICK)
    assert re.search("column '[a-e]' has missing entries", said)


def test_the_mask_stands_for_no_other_distribution():
    """`NanMasked` of what was observed is the likelihood that was asked for, and is named so."""
    data = load_data(with_holes(REAL), missing=True)
    vae = build_vae(data, decoder=Choice("laplace"), hidden=8, latent_dim=2)
    assert isinstance(vae.decoder.decoder, pyrovae.LaplaceDecoder)
    assert isinstance(vae.decoder(torch.zeros(1, 2)).base_dist, NanMasked)

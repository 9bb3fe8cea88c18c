"""The command line: what a person types, sees, and gets wrong."""

import json
import re
import signal
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from filelock import FileLock, Timeout
from sklearn.datasets import load_digits

from pyrovae import building, catalogue, cli, data, parts, runs
from pyrovae.cli import options, parsing, planning
from pyrovae.cli import parts as cli_parts
from pyrovae.cli import training as train_module

QUICK = ["--epochs", "2", "--hidden", "8", "--latent-dim", "2"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "FINAL_SAMPLES", 10)
    monkeypatch.setattr(sys, "argv", ["pyrovae"])


def run(*words):
    """The exit code of a command."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def failing(capsys, *words):
    """What a command that fails says, with nothing left behind."""
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("pyrovae: ")
    assert "Traceback" not in said
    assert not Path("runs").exists()
    return said


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    cli.main(["train", *QUICK, "--run-dir", str(path)])
    return path


def test_train_alone_ends_with_numbers_report_and_what_to_type_next(capsys):
    assert run("train", *QUICK) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].startswith("device   cpu")
    assert "digits" in lines[1]
    assert "binarised (dynamic)" in lines[1]
    assert "1,437 / 180 / 180" in lines[2]
    assert "bernoulli decoder" in lines[3]
    assert "2 epochs" in lines[4]
    assert len(re.findall(r"^epoch   \d/2: .*ELBO", said, re.M)) == 2
    assert re.search(r"test ELBO +-\d+\.\d\d \+- \d\.\d\d nats per image", said)
    assert re.search(r"log p\(x\) +-\d+\.\d\d \+- \d\.\d\d nats per image", said)
    assert "10 importance samples for each of 180 images" in said
    path = re.search(r"^run +(.*)$", said, re.M)[1]
    assert re.match(r"runs/digits-\d{8}-\d{6}$", path)
    assert Path(re.search(r"^report +(.*)$", said, re.M)[1]).is_file()
    commands = [line.split()[1:] for line in lines if line.startswith("  pyrovae")]
    assert len(commands) == 3
    for command in commands:
        assert run(*command) == 0


@pytest.mark.parametrize(
    ("called", "on_path", "expected"),
    [
        ("/some/bin/pyrovae", "/some/bin/pyrovae", "pyrovae"),
        (".venv/bin/pyrovae", None, ".venv/bin/pyrovae"),
        (".venv/bin/pyrovae", "/other/pyrovae", ".venv/bin/pyrovae"),
        ("/site-packages/pyrovae/__main__.py", None, f"{sys.executable} -m pyrovae"),
    ],
)
def test_what_to_type_next_is_what_was_typed(called, on_path, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(train_module.shutil, "which", lambda name: on_path)
    assert train_module._own_name() == expected


def test_every_verb_writes_its_picture_and_prints_the_path(trained, capsys):
    for verb in ("sample", "reconstruct", "traverse", "interpolate"):
        assert run(verb, trained) == 0
        picture, numbers = capsys.readouterr().out.split()
        assert picture == str(trained / verb / f"{verb}.png")
        assert Path(picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert np.load(numbers)["x"].shape[2:] == (1, 8, 8)
    assert run("sample", trained, "-o", "mine.npz", "--count", 3, "--draw") == 0
    assert np.load("mine.npz")["x"].shape == (1, 3, 1, 8, 8)
    assert run("report", trained) == 0


def test_encode_writes_the_latents_in_the_order_of_the_data(trained, capsys):
    digits = data.load_data("digits").test
    assert run("encode", trained) == 0
    assert capsys.readouterr().out.strip() == str(trained / "encode" / "test.npz")
    own = np.load(trained / "encode" / "test.npz")
    assert own["z"].shape[0] == 180
    np.testing.assert_array_equal(own["y"], digits.y)
    rows = load_digits().images[own["names"]]
    np.testing.assert_array_equal(rows, digits.raw(range(180)).x[:, 0])

    np.save("some.npy", digits.raw(range(7)).x[:, 0].numpy())
    capsys.readouterr()
    assert run("evaluate", trained, "--data", "some.npy", "--num-samples", 5) == 0
    said = capsys.readouterr().out
    assert "each of 7 images of some.npy" in said
    assert "test" not in said
    assert run("encode", trained, "--data", "some.npy", "-o", "z.npz") == 0
    found = np.load("z.npz")
    assert set(found) == {"z", "names"}
    assert found["names"].tolist() == list(range(7))
    np.testing.assert_allclose(found["z"], own["z"][:7], atol=1e-5)
    assert run("encode", trained, "some.npy", "-o", "same.npz") == 0
    np.testing.assert_array_equal(np.load("same.npz")["z"], found["z"])
    assert run("encode", trained, "some.npy", "--data", "some.npy") == 2
    assert run("encode", trained, "--data", "some.npy", "--split", "train") == 0
    assert len(np.load(trained / "encode" / "some.npz")["z"]) == 7
    assert len(np.load(trained / "encode" / "test.npz")["z"]) == 180
    assert run("encode", trained, "--split", "train") == 0
    assert len(np.load(trained / "encode" / "train.npz")["z"]) == 1437
    assert run("encode", trained, "-o", "z.csv") == 2
    assert "FILE.npz" in capsys.readouterr().err


def test_evaluate_prints_one_json_object(trained, capsys):
    assert run("evaluate", trained, "--num-samples", 20, "--limit", 7, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    expected = {
        "elbo", "elbo_se", "log_evidence", "log_evidence_se", "num_samples", "num_examples",
        "active_units", "bits_per_dim",
    }  # fmt: skip
    assert expected <= set(found)
    assert (found["num_samples"], found["num_examples"]) == (20, 7)
    assert found["elbo"] < found["log_evidence"] < 0


def test_other_data_are_measured_and_shown_as_the_runs_own_were(trained, capsys):
    digits = data.load_data("digits")
    np.save("same.npy", digits.test.raw(range(180)).x[:, 0].numpy())
    words = ["--num-samples", 20, "--limit", 50, "--json"]
    found = []
    for other in ([], ["--data", "same.npy"]):
        assert run("evaluate", trained, *words, *other) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1]["elbo"] == pytest.approx(found[0]["elbo"])
    assert run("reconstruct", trained, "--data", "same.npy", "--output", "p.png") == 0
    assert run("evaluate", trained, "--data", "digits", *words) == 0
    np.save("wrong.npy", np.zeros((5, 4, 4), np.uint8))
    assert run("evaluate", trained, "--data", "wrong.npy") == 2
    assert "of shape (1, 4, 4)" in capsys.readouterr().err


@pytest.mark.parametrize("decoder", ["gaussian", "pixelwise-gaussian", "continuous-bernoulli"])
def test_a_decoder_of_grey_values_brings_their_preprocessing(decoder, capsys):
    assert run("train", *QUICK, "--decoder", decoder) == 0
    said = capsys.readouterr().out
    assert "17 levels dequantised" in said
    assert "upper bound" in said


@pytest.mark.parametrize("name", ["vectors.npy", "series.npy", "table.csv"])
@pytest.mark.parametrize("decoder", ["beta", "continuous-bernoulli"])
def test_a_decoder_of_values_in_0_to_1_takes_them_as_they_are(
    decoder, name, capsys, without_drawing
):
    unit = np.random.default_rng(0).uniform(0.01, 0.99, (60, 6))
    np.save("vectors.npy", unit)
    np.save("series.npy", unit.reshape(60, 3, 2))
    np.savetxt("table.csv", unit, delimiter=",", header="a,b,c,d,e,f", comments="")
    words = ["--data", name, "--decoder", decoder, "--prior", "vamp", "--prior.components", 3]
    words += ["--sequences"] * (name == "series.npy")
    assert run("train", *QUICK, *words, "--run-dir", "r") == 0
    assert "as they are" in capsys.readouterr().out
    config = json.loads(Path("r/config.json").read_text())
    assert config["data"]["preprocessing"] == {"part": "AsIs"}
    assert config["program"]["prior"]["bounded"], "pseudo-inputs stay where the data are"
    assert run("resume", "r", "--epochs", 3) == 0
    assert run("evaluate", "r", "--num-samples", 5, "--limit", 5) == 0


@pytest.mark.parametrize("decoder", ["beta", "continuous-bernoulli", "bernoulli"])
def test_values_outside_0_to_1_are_refused_in_their_own_units(decoder, capsys):
    np.save("wide.npy", np.linspace(-3, 40, 360).reshape(60, 6))
    said = failing(capsys, "train", "--data", "wide.npy", "--decoder", decoder)
    least, most = map(float, re.search(r"with values from (\S+) to (\S+),", said).groups())
    assert -3 <= least < most <= 40
    assert most > 5, "no standardised value is as large"
    assert "(--decoder gaussian)" in said


def test_codes_of_a_table_stay_as_they_were_loaded(capsys, without_drawing):
    bits = np.random.default_rng(0).integers(0, 2, (60, 3))
    np.savetxt("bits.csv", bits, "%d", delimiter=",", header="a,b,c", comments="")
    words = ["--data", "bits.csv", "--decoder", "bernoulli"]
    assert run("train", *QUICK, *words, "--run-dir", "r") == 0
    config = json.loads(Path("r/config.json").read_text())
    assert config["data"]["preprocessing"]["part"] == "Standardize", "as in runs of before"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.random.default_rng(0).integers(0, 256, (60, 9, 7, 3), dtype=np.uint8), "gaussian"),
        (np.random.default_rng(0).normal(5, 3, (60, 4)), "standardised"),
        (np.random.default_rng(0).integers(0, 2, (60, 12)), "bernoulli"),
        (np.random.default_rng(0).random((60, 6, 6)), "gaussian"),
    ],
)
def test_no_file_fails_on_its_own_default(array, words, capsys):
    np.save("mine.npy", array)
    assert run("train", "--data", "mine.npy", *QUICK) == 0
    said = capsys.readouterr().out
    assert words in said
    assert "log p(x)" in said


def test_options_reach_the_parts(capsys, without_drawing):
    options = [
        "--prior",
        "gaussian-mixture",
        "--network",
        "conv",
        "--beta",
        "2",
        "--kl-warmup",
        "1",
    ]
    assert run("train", *QUICK, *options, "--run-dir", "r", "--binarize", "threshold") == 0
    config = json.loads(Path("r/config.json").read_text())
    assert config["program"]["prior"]["part"] == "GaussianMixture"
    assert config["program"]["decoder"]["net"]["part"] == "DeconvNet"
    assert config["program"]["beta"] == 2
    assert config["training"]["kl_warmup"] == 1
    assert config["data"]["preprocessing"]["mode"] == "threshold"
    assert config["command"] == "pyrovae train " + " ".join(
        [*QUICK, *options, "--run-dir", "r", "--binarize", "threshold"]
    )


def test_a_bound_without_a_kl_has_no_warmup_and_takes_no_weight(capsys, without_drawing):
    assert run("train", *QUICK, "--bound", "mmd", "--run-dir", "r") == 0
    assert "warm-up" not in capsys.readouterr().out
    assert json.loads(Path("r/config.json").read_text())["training"]["kl_warmup"] == 0
    words = ("train", *QUICK, "--bound", "mmd")
    assert "--beta weighs the KL" in failing(capsys, *words, "--beta", "4")
    assert "--kl-warmup weighs the KL" in failing(capsys, *words, "--kl-warmup", "3")
    assert run(*words, "--bound.alpha", "0.5", "--beta", "4", "--dry-run") == 0
    assert "KL warm-up over" in capsys.readouterr().out


# ── A program of the user's own ──

PROGRAM = """
import pyro
import pyro.distributions as dist
from torch import nn

class Mine(nn.Module):
    def __init__(self, size, latent_dim, scale):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(latent_dim, size), nn.Linear(size, latent_dim)
        self.scale = scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * self.encoder.bias, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.flatten(1))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), self.scale).to_event(1))

def build(shape, *, latent_dim=3, scale=0.5):
    return Mine(shape[0] * shape[1] * shape[2], latent_dim, scale)
"""


def test_a_users_program_trains_and_its_keywords_are_options(capsys, without_drawing):
    Path("mine.py").write_text(PROGRAM)
    words = ["mine.py:build", "--build.latent-dim", "5", "--epochs", "2", "--run-dir", "r"]
    assert run("train", *words) == 0
    assert json.loads(Path("r/config.json").read_text())["program"]["arguments"] == {
        "latent_dim": 5,
        "scale": 0.5,
    }
    assert run("evaluate", "r", "--num-samples", 10) == 0
    capsys.readouterr()

    Path("mine.py").write_text(PROGRAM + "\nraise RuntimeError('must not run')\n")
    assert run("evaluate", "r") == 2
    assert "has changed" in capsys.readouterr().err


SHARED = (
    PROGRAM.replace('plate("data", len(x))', 'plate("data", self.num_data, subsample=x)')
    .replace(
        "    def model(self, x):\n",
        """    def shift(self):
        pyro.sample("shift", dist.Normal(0 * self.decoder.bias, 1.0).to_event(1))

    def model(self, x):
        self.shift()
""",
    )
    .replace("    def guide(self, x):\n", "    def guide(self, x):\n        self.shift()\n")
    .replace(
        "def build(shape, *, latent_dim=3, scale=0.5):", "def build(shape, num_data, scale=0.5):"
    )
    .replace(
        "return Mine(shape[0] * shape[1] * shape[2], latent_dim, scale)",
        """
    program = Mine(shape[0] * shape[1] * shape[2], 3, scale)
    program.num_data = num_data
    return program""",
    )
)


def test_a_users_program_is_given_the_number_of_training_examples(capsys, without_drawing):
    Path("mine.py").write_text(SHARED)
    assert run("train", "mine.py", "--epochs", 1, "--run-dir", "r") == 0
    assert re.search(r"shared KL +-?\d+\.\d\d nats in all, of what", capsys.readouterr().out)
    told = json.loads(Path("r/config.json").read_text())
    assert told["program"]["arguments"] == {"scale": 0.5, "num_data": 1437}
    assert run("resume", "r", "--epochs", 2) == 0
    assert run("evaluate", "r", "--num-samples", 10, "--limit", 5) == 0
    assert run("train", "mine.py", "--dry-run") == 0
    assert "build(data.x_shape, scale=0.5, num_data=len(data.train))" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "spec", "words"),
    [
        (PROGRAM, "missing.py:build", "no file"),
        (PROGRAM, "mine.py:bild", "defines no 'bild'"),
        ("1 / 0", "mine.py:build", "ZeroDivisionError"),
        ("def build(shape): return 3", "mine.py:build", "model and guide"),
    ],
)
def test_a_users_program_that_cannot_be_used_says_why(content, spec, words, capsys):
    Path("mine.py").write_text(content)
    assert words in failing(capsys, "train", spec)


def test_doctor_says_what_there_is_and_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "none"))
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert re.search(r"versions +python 3.*pyro-ppl", said)
    assert re.search(r"  digits +1,797 images of 8 x 8\n", said)
    assert re.search(r"  mnist +downloaded when", said)
    assert re.search(r"  frey-faces +not at hand\. Put frey", said)
    monkeypatch.setenv("PYROVAE_OFFLINE", "1")
    assert run("doctor") == 0
    assert re.search(r"  mnist +not at hand\. Put train-images", capsys.readouterr().out)
    monkeypatch.setattr("pyrovae.devices.cuda_problem", lambda: "driver 1.0 is too old")
    monkeypatch.setattr("pyrovae.capture.has_compiler", lambda: False)
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "driver 1.0 is too old" in said
    assert "install g++" in said


# ── Mistakes ──


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--data", "minst"], "neither a named data set"),
        (["--data", "missing.npy"], "no file"),
        (["--decoder", "bernoulli", "--binarize", "none"], "--binarize.*continuous-bernoulli"),
        (["--epochs", "0"], "epochs"),
        (["--latent-dim", "0"], "latent_dim"),
        (["--beta", "-1"], "beta"),
        (["--beta", "nan"], "beta"),
        (["--lr", "-1"], "lr"),
        (["--clip-norm", "0"], "clip_norm"),
        (["--device", "meta"], "--device cpu"),
        (["--device", "cuda:99"], "--device cpu"),
        (["--bound", "iwae", "--prior", "bernoulli", "--encoder", "bernoulli"], "--bound vimco"),
        (["--kl", "free-bits", "--prior", "gaussian-mixture"], "--kl.no-per-dim"),
        (["--prior", "nofile.py:A"], r"There is no file .*nofile\.py\. Name it as file\.py:A"),
        (["--prior", __file__ + ":A"], r"There is no class A in .*test_cli\.py"),
    ],
)
def test_bad_input_is_one_sentence_of_cause_and_one_of_remedy(words, answer, capsys):
    assert re.search(answer, failing(capsys, "train", *words))


@pytest.mark.parametrize(
    "words",
    [
        ["--bound", "iwae", "--prior", "bernoulli", "--encoder", "bernoulli"],
        ["--kl", "free-bits", "--prior", "gaussian-mixture"],
        ["--prior", "spherical-uniform"],
    ],
    ids=" ".join,
)
def test_what_three_examples_show_is_said_before_a_word_of_the_training(words, capsys):
    assert run("train", *QUICK, *words, "--run-dir", "r") == 2
    assert capsys.readouterr().out == ""
    assert not Path("r").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--limit", 0),
        ("evaluate", "--num-samples", 0),
        ("sample", "--count", 0),
        ("interpolate", "--steps", 0),
    ],
)
def test_a_count_of_nothing_is_refused(trained, words, capsys):
    verb, *options = words
    assert run(verb, trained, *options) == 2
    assert "at least 1" in capsys.readouterr().err


def test_convolutions_of_vectors_are_refused(capsys):
    np.save("mine.npy", np.random.default_rng(0).normal(size=(60, 4)))
    assert "--network mlp" in failing(capsys, "train", "--data", "mine.npy", "--network", "conv")


def test_an_unknown_option_is_answered_with_the_nearest(capsys):
    assert run("train", "--lattent-dim", 3) == 2
    assert "--latent-dim" in capsys.readouterr().err
    assert run("trian") == 2
    assert run("evaluate", "no-such-run") == 2


def test_the_words_of_the_parser_are_those_of_the_parts():
    assert catalogue.ACTIVATIONS == tuple(name.lower() for name in parts.ACTIVATIONS)
    assert list(options.Binarization.__args__) == ["none", *data.preprocessing.BINARIZE_MODES]


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_the_catalogue_is_what_the_classes_are(kind):
    """What is read from the source without running it is what Python makes of it."""
    found = catalogue.entries(kind)
    assert found
    for word, entry in found.items():
        cls = building.Choice(word).resolve(kind)
        assert cls.__name__ == entry.class_name
        parameters = signature(cls).parameters
        for option in entry.options:
            assert option.help, f"{entry.class_name} says nothing of {option.name}"
            if option.name in parameters:  # else it is one of **options
                default = parameters[option.name].default
                set_here = {
                    **catalogue.SET_BY_KIND.get(kind, {}),
                    **catalogue.SET_BY_WORD.get(word, {}),
                }
                told = set_here.get(option.name, default)
                word_of = told.__name__.lower() if isinstance(told, type) else told
                assert word_of == option.default
        needs = [p.name for p in parameters.values() if p.default is p.empty]
        assert list(entry.needs) == [n for n in needs if n not in ("args", "options", "kwargs")]


PART = """
import pyro.distributions as dist
import torch
from torch import nn


class Wide(nn.Module):
    def __init__(self, latent_dim, *, width: float = 2.0, names: str = "a"):
        super().__init__()
        self.latent_dim, self.width, self.names = latent_dim, width, names
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self):
        return dist.Normal(self.loc, self.width).to_event(1)
"""


def test_a_part_of_the_users_own_is_named_by_its_file(capsys, without_drawing):
    Path("mine.py").write_text(PART)
    words = ["--prior", "mine.py:Wide", "--prior.width", "3.5", "--run-dir", "r"]
    assert run("train", *QUICK, *words) == 0
    assert "mine.py:Wide prior" in capsys.readouterr().out
    described = json.loads(Path("r/config.json").read_text())["program"]["prior"]
    assert (described["part"], described["width"]) == ("Wide", 3.5)
    assert run("evaluate", "r", "--num-samples", 5, "--limit", 5) == 0
    Path("mine.py").write_text(PART + "# changed")
    assert run("evaluate", "r", "--num-samples", 5, "--limit", 5) == 2
    assert "so it is not run" in capsys.readouterr().err


FORGETFUL = PART.replace("self.width, self.names = latent_dim, width,", "self.names = latent_dim,")
UNTOLD = """
from torch import nn


class Mine(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
"""


@pytest.mark.parametrize(
    ("text", "words", "remedy"),
    [
        (FORGETFUL, ["--prior", "mine.py:Wide"], "Set self.width in its constructor"),
        (UNTOLD, ["--decoder", "mine.py:Mine"], r"static method net_shape\(x_shape\)"),
        (UNTOLD, ["--encoder", "mine.py:Mine"], r"static method net_shape\(latent_dim\)"),
    ],
)
def test_a_class_that_does_not_say_enough_is_refused_before_it_is_trained(
    text, words, remedy, capsys
):
    Path("mine.py").write_text(text)
    assert run("train", *QUICK, *words, "--run-dir", "r") == 2
    assert re.search(remedy, capsys.readouterr().err)
    assert not Path("r").exists()


@pytest.mark.parametrize("imported", ["import pyrovae", "from pyrovae import IWAE"])
def test_a_class_of_the_users_own_has_the_options_of_its_base(imported, capsys, without_drawing):
    base = "pyrovae.IWAE" if imported == "import pyrovae" else "IWAE"
    Path("mine.py").write_text(f"{imported}\n\n\nclass Mine({base}):\n    pass\n")
    words = ["--bound", "mine.py:Mine", "--bound.num-particles", 2, "--run-dir", "r"]
    assert run("train", *QUICK, *words) == 0
    assert "bound    Mine(num_particles=2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("imported", "base", "kind", "option"),
    [
        ("import pyrovae", "pyrovae.priors.GaussianMixture", "prior", "components"),
        ("import pyrovae", "pyrovae.bounds.ELBO", "bound", "num_particles"),
        ("import pyrovae as pv", "pv.GaussianMixture", "prior", "components"),
        ("from pyrovae import priors as p", "p.GaussianMixture", "prior", "components"),
        ("from pyrovae import GaussianMixture as Base", "Base", "prior", "components"),
        ("from pyrovae import GaussianMixture as Mine", "Mine", "prior", "components"),
        ("from pyrovae.priors import *", "GaussianMixture", "prior", "components"),
        (
            "import pyrovae.priors as p\nclass Base(p.GaussianMixture): 1",
            "Base",
            "prior",
            "spread",
        ),
    ],
)
def test_a_base_is_found_under_whatever_name_it_is_imported(imported, base, kind, option):
    Path("mine.py").write_text(f"{imported}\n\n\nclass Mine({base}):\n    pass\n")
    entry = catalogue.read_class(Path("mine.py"), "Mine", kind)
    assert option in [found.name for found in entry.options]


@pytest.mark.parametrize("imported", ["from other import GaussianMixture", "import other as pv"])
def test_a_base_of_another_library_is_not_taken_for_ours(imported):
    base = "pv.GaussianMixture" if "pv" in imported else "GaussianMixture"
    Path("mine.py").write_text(f"{imported}\nclass Mine({base}):\n    pass\n")
    assert catalogue.read_class(Path("mine.py"), "Mine", "prior").options == ()


def test_a_part_without_its_name_is_not_named_by_the_next_option(capsys):
    assert run("train", "--prior", "--quiet") == 2
    assert "Missing value for argument '--prior'" in capsys.readouterr().err


def test_a_file_that_is_no_python_is_one_sentence_of_cause(capsys):
    Path("mine.py").write_text("class Mine(:")
    assert "mine.py cannot be read" in failing(capsys, "train", "--prior", "mine.py:Mine")


UNTYPED = """
import pyro.distributions as dist
import torch
from torch import nn


class Wide(nn.Module):
    def __init__(self, latent_dim, scale=2.0, kind="a", widths=(3, 4), wide=False, count=3,
                 spans=(1, 0.5), most: "int | None" = None, other=None, empty=(), words=("a",),
                 bend=nn.Tanh):
        super().__init__()
        for name, value in locals().items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self):
        return dist.Normal(self.loc, self.scale).to_event(1)
"""


def test_an_argument_without_annotation_is_of_the_type_of_its_default(capsys, without_drawing):
    Path("mine.py").write_text(UNTYPED)
    entry = catalogue.read_class(Path("mine.py"), "Wide", "prior")
    assert {option.name: option.kind for option in entry.options} == {
        "scale": float,
        "kind": str,
        "widths": tuple[int, ...],
        "wide": bool,
        "count": int,
        "spans": tuple[float, ...],
        "most": int | None,
        "bend": Literal[catalogue.ACTIVATIONS],
    }
    words = ["--prior", "mine.py:Wide", "--prior.scale", 3, "--prior.widths", 5, 6]
    words += ["--prior.wide", "--prior.most", 7, "--run-dir", "r"]
    assert run("train", *QUICK, *words) == 0
    described = json.loads(Path("r/config.json").read_text())["program"]["prior"]
    assert [described[n] for n in ("scale", "widths", "wide", "most")] == [3.0, [5, 6], True, 7]


NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, in_shape, out_shape, hidden=8, activation: type[nn.Module] = nn.Tanh):
        super().__init__()
        self.in_shape, self.out_shape, self.hidden = in_shape, out_shape, hidden
        self.activation = activation
        (size,) = out_shape
        self.layers = nn.Sequential(
            nn.Linear(*in_shape, hidden), activation(), nn.Linear(hidden, size)
        )

    def forward(self, x):
        return self.layers(x)
"""


def test_networks_of_the_users_own_are_named_by_their_file(capsys, without_drawing):
    Path("mine.py").write_text(NETWORK)
    np.save("mine.npy", np.random.default_rng(0).normal(size=(60, 4)))
    words = ["--network", "mine.py:Net", "--network.activation", "relu", "--data", "mine.npy"]
    assert run("train", *words, *QUICK, "--run-dir", "r") == 0
    assert "mine.py:Net" in capsys.readouterr().out
    config = json.loads(Path("r/config.json").read_text())
    for part in ("encoder", "decoder"):
        net = config["program"][part]["net"]
        assert (net["part"], net["hidden"]) == ("Net", 8), "QUICK has --hidden 8"
        assert net["activation"] == {"type": "ReLU"}
    assert [file["name"] for file in config["files"]] == ["Net"]
    assert run("evaluate", "r", "--num-samples", 5, "--limit", 5) == 0

    Path("mine.py").write_text(NETWORK.replace("hidden", "width"))
    assert "no hidden layer" in failing(capsys, "train", *words, *QUICK)


@pytest.mark.parametrize(
    ("words", "encoder", "decoder"),
    [
        (["mlp", "--network.hidden", 7, 5], {"hidden": [7, 5]}, {"hidden": [7, 5]}),
        (["mlp", "--hidden", 7], {"hidden": [7]}, {"hidden": [7]}),
        (["gated", "--hidden", 7], {"hidden": [7, 7]}, {"hidden": [7, 7]}),
        (["residual", "--hidden", 7, "--network.blocks", 1], {"hidden": 7}, {"blocks": 1}),
        (["conv", "--hidden", 7], {"hidden": 7}, {"coarse": 64}),
        (
            ["conv", "--network.activation", "tanh"],
            {"activation": {"type": "Tanh"}, "hidden": 32},
            {"activation": {"type": "Tanh"}},
        ),
        (
            [
                "residual-conv",
                "--network.channels",
                8,
                16,
                "--network.strides",
                2,
                1,
            ],
            {"channels": [8, 16], "strides": [2, 1]},
            {"channels": [16, 8], "strides": [1, 2]},
        ),
        (["residual-conv", "--network.groups", 4], {"groups": 4}, {"groups": 4}),
        (
            ["conv", "--network.channels", 8, 16, "--network.strides", 1, 2],
            {"channels": [8, 16], "strides": [1, 2]},
            {"channels": [16, 8], "strides": [2, 1]},
        ),
        (
            ["conv", "--network.strides", 1, 2, 2, 1],
            {"channels": [32, 64, 64, 64], "strides": [1, 2, 2, 1]},
            {"channels": [64, 64, 64, 32], "strides": [1, 2, 2, 1]},
        ),
        (["conv"], {"channels": [32, 64, 64, 64]}, {"channels": [32], "strides": [2]}),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_options_of_networks_reach_both(words, encoder, decoder):
    command, _ = parsing.parse(["train", "--network", *map(str, words)])
    choice = cli_parts.chosen("network", command, ["--network", *map(str, words)])
    images = data.load_data("digits")
    vae = building.build_vae(images, network=choice, hidden=command.hidden, latent_dim=3)
    found = parts.to_config(vae)
    assert encoder.items() <= found["encoder"]["net"].items()
    assert decoder.items() <= found["decoder"]["net"].items()


def test_a_recurrent_network_reads_both_ways_unless_told():
    series = data.load_data(np.random.default_rng(0).normal(size=(60, 7, 2)), sequences=True)
    for told, expected in ({}, True), ({"bidirectional": False}, False):
        network = building.Choice("lstm", told)
        vae = building.build_vae(series, network=network, hidden=5, latent_dim=3)
        assert (vae.encoder.net.bidirectional, vae.encoder.net.cell) == (expected, "lstm")
        assert (vae.decoder.net.steps, vae.decoder.net.hidden) == (7, 5)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--network", "mpl"], "There is no network 'mpl'.*file.py:Class"),
        (["--network", "mlp", "--network.hidden", 3, "--hidden", 4], "given twice"),
        (["--network", "residual-conv", "--hidden", 4], "no hidden layer"),
        (["--network", "mine.py:Net"], r"There is no file .*mine\.py\. Name it as file\.py:Net"),
        (["--network", "mlp", "--network.hidden", -3], r"hidden is \(-3,\)"),
        (["--network", "residual-conv", "--network.strides", 0, 1, 1], r"strides is .*1 or more"),
    ],
)
def test_networks_that_cannot_be_are_refused(words, answer, capsys):
    assert re.search(answer, failing(capsys, "train", "--latent-dim", 2, *words))


def test_formulas_are_told_in_plain_characters():
    def told(kind, word, name):
        options = catalogue.entries(kind)[word].options
        return next(option.help for option in options if option.name == name)

    assert told("prior", "bernoulli", "learn_logits").endswith("else pi = 1/2")
    assert told("decoder", "student-t", "scale").endswith("is s sqrt(nu / (nu - 2))")


def test_options_of_parts_reach_them(capsys, without_drawing):
    words = ["--prior", "gaussian-mixture", "--prior.components", 3, "--bound=iwae"]
    words += ["--bound.num-particles", 2, "--kl", "free-bits", "--kl.no-per-dim"]
    assert run("train", *QUICK, *words, "--run-dir", "r") == 0
    assert "bound    IWAE(num_particles=2, kl=FreeBits(nats=0.1, per_dim=False))" in (
        capsys.readouterr().out
    )
    config = json.loads(Path("r/config.json").read_text())
    assert config["program"]["prior"]["components"] == 3
    assert config["training"]["bound"].startswith("IWAE(num_particles=2")


def test_a_run_goes_on_with_the_defaults_that_it_was_begun_with(monkeypatch, without_drawing):
    words = ["--decoder", "gaussian"]
    assert run("train", *QUICK, *words, "--run-dir", "r") == 0
    before = json.loads(Path("r/config.json").read_text())["program"]
    later = {"scale": 0.7, "learn_scale": False}
    with monkeypatch.context() as patch:
        patch.setitem(catalogue.SET_BY_KIND, "decoder", later)
        catalogue.entries.cache_clear()
        assert run("resume", "r", "--epochs", 3) == 0
        assert run("train", *QUICK, *words, "--run-dir", "new") == 0
    catalogue.entries.cache_clear()
    resumed, new = (json.loads(Path(r, "config.json").read_text()) for r in ("r", "new"))
    assert resumed["program"] == before
    assert later.items() <= new["program"]["decoder"].items()


@pytest.mark.parametrize(
    "words",
    [
        ["--prior", "vampire"],
        ["--bound", "elbow"],
        ["--encoder", "no_such_file.py:Mine"],
        ["--prior", "standard-normal", "--prior.components", "3"],
        ["--decoder.scale", "2.0"],
        ["--bound", "iwae", "--bound.num-particles", "0"],
    ],
    ids=" ".join,
)
def test_a_part_or_option_that_is_not_there_is_refused(words, capsys):
    assert run("train", *QUICK, *words) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said", "by_script"),
    [
        (
            ["--encoder", "iaf", "--prior", "vamp", "--prior.components", "2"],
            "A VampPrior scores",
            False,
        ),
        # For whoever has called the package, and that is the script.
        (["--engine", "cuda-graph"], "The steps cannot be recorded as a CUDA graph", True),
    ],
)
def test_a_warning_is_a_sentence_without_a_line_of_code(words, said, by_script, tmp_path):
    script = tmp_path / "pyrovae-command"  # what pip writes for an entry point
    script.write_text("import sys\nfrom pyrovae.cli import main\nsys.exit(main())\n")
    begun = [str(script)] if by_script else ["-m", "pyrovae"]
    words = ["train", "--dry-run", "--hidden", "8", "--latent-dim", "2", *words]
    found = subprocess.run(
        [sys.executable, *begun, *words, "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr.startswith(f"pyrovae: {said}")
    assert found.stderr.count("\n") == 1


def test_help_does_not_import_torch():
    code = "import sys; from pyrovae import cli; cli.main(['train', '--help'])"
    check = f"try:\n  exec({code!r})\nfinally:\n  assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", "import sys\n" + check], capture_output=True)
    assert found.returncode == 0, found.stderr
    assert b"--latent-dim INT" in found.stdout
    for kind in catalogue.KINDS:
        for word, entry in catalogue.entries(kind).items():
            shorter = ", or flow" * (word == "spline-flow")
            assert f"\n  {word}{shorter}\n".encode() in found.stdout
            for option in entry.options:
                flag = f"--{kind}.{option.name.replace('_', '-')} (default:"
                assert flag.encode() in found.stdout


@pytest.mark.parametrize(
    ("part", "option", "shown"),
    [
        ("decoder gaussian", "scale", "0.5"),
        ("decoder gaussian", "learn-scale", "True"),
        ("decoder gaussian", "min-scale", "from the data: the standard deviation within one of"),
        ("decoder student-t", "learn-scale", "True"),
        ("decoder tabular", "min-scale", "0.01"),
        ("decoder categorical", "classes", "from the data: the largest + 1"),
        ("decoder pixel-cnn", "levels", "2"),
        ("prior categorical", "classes", "10"),
        ("prior vamp", "bounded", "from the data: whether they lie within [0, 1]"),
        ("network gru", "missing", "from the data: whether entries are missing"),
    ],
)
def test_help_says_of_a_default_what_is_used(part, option, shown, capsys):
    kind, word = part.split()
    assert run("train", f"--{kind}", word, "--help") == 0
    # First of the part that is named, then of all.
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    listed = said.rpartition(f" --{kind} ")[2].partition(f" {word} ")[2]
    for text in said, listed:
        found = re.search(rf"--{kind}\.{option}\b.*?\(default: (.*?)\)", text)
        assert found[1].startswith(shown)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")],
)
def test_a_signal_saves_and_has_its_exit_code(tmp_path, number, code, word):
    words = [sys.executable, "-m", "pyrovae", "train", "--epochs", "100000", "--run-dir", "r"]
    words += ["--engine", "eager", "--hidden", "8"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, such as a CI may be, pass on that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        next(line for line in process.stdout if line.startswith("epoch   3/"))
        process.send_signal(number)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    assert "pyrovae resume r" in printed
    assert "Traceback" not in said
    assert word in said
    assert list((tmp_path / "r" / "checkpoints").glob("step-*/MANIFEST.json"))
    assert run("evaluate", "r", "--num-samples", 5, "--limit", 5) == 0


AUTOENCODER = """
import pyrovae


def build(shape, *, latent_dim=3):
    return pyrovae.Autoencoder(
        latent_dim,
        pyrovae.BernoulliDecoder(pyrovae.MLP((latent_dim,), shape, hidden=(8,))),
        pyrovae.GaussianEncoder(pyrovae.MLP(shape, (2 * latent_dim,), hidden=(8,))),
    )
"""


def test_a_program_without_a_bound_is_trained_and_shown_but_not_measured(capsys):
    Path("plain.py").write_text(AUTOENCODER)
    assert run("train", "plain.py:build", "--epochs", "1", "--run-dir", "r") == 0
    said = capsys.readouterr().out
    assert "no log p(x)" in said
    for line in (line.split()[1:] for line in said.splitlines() if line.startswith("  pyrovae")):
        assert run(*line) == 0
    assert run("evaluate", "r") == 2


def test_a_run_is_held_while_it_is_measured_and_reported(monkeypatch):
    """Two processes would write the same files."""
    seen = []

    def held(name):
        inner = getattr(runs.Run, name)

        def call(self, *args, **options):
            with pytest.raises(Timeout):
                FileLock(self.path / ".lock", timeout=0).acquire()
            seen.append(name)
            return inner(self, *args, **options)

        monkeypatch.setattr(runs.Run, name, call)

    held("evaluate")
    held("report")
    assert run("train", *QUICK, "--run-dir", "here", "--quiet") == 0
    assert seen == ["evaluate", "report"]
    with FileLock("here/.lock", timeout=0):
        pass


def test_two_runs_that_start_at_once_have_two_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    taken = []

    def new_path(data):
        path = Path("runs", f"{data}-{len(taken)}")
        taken.append(path)
        return path

    monkeypatch.setattr(planning, "_new_path", new_path)
    (tmp_path / "runs" / "digits-0").mkdir(parents=True)  # made by another in the meantime
    cli.main(["train", "--epochs", "1", "--hidden", "8", "--device", "cpu", "--quiet"])
    assert capsys.readouterr().out.strip() == str(Path("runs", "digits-1"))
    assert not any((tmp_path / "runs" / "digits-0").iterdir())


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["train", "--epochs", "1", "--batch-size", "1", "--clip-norm", "-1"])
    assert not list((tmp_path / "runs").glob("*"))


def test_evaluate_says_where_its_numbers_are_kept(trained, capsys):
    assert run("evaluate", trained, "--num-samples", 2, "--limit", 5) == 0
    *_, path = capsys.readouterr().out.split()
    assert json.loads(Path(path).read_text())["num_examples"] == 5

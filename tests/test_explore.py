"""Explore: what its page may ask of a run, and who may ask it."""

import base64
import http.client
import io
import json
import math
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from programs_for_tests import InTwo, binary, small_vae
from torch import nn

import pyrovae
from pyrovae import explore, generation
from pyrovae.data import AsIs, Binarize, Dequantize, Examples, Standardize
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.explore import Inputs, Placing, Server, Session, look_at, server
from pyrovae.inspection import inspect_program
from pyrovae.runs import Run


def run_of(program, x, y=None, preprocessing=None, **config):
    """A run on examples that were never trained on: what is explored is not how good it is."""
    examples = Examples(x, y, preprocessing=preprocessing, split="test", **config)
    data = {"name": "array", "x_shape": list(examples.x_shape)}
    told = {"data": data, "program": {"class": "Own"}}
    return Run(program, {"test": examples}, [], told, {})


@pytest.fixture(scope="module")
def trained():
    data = pyrovae.load_data("digits")
    return pyrovae.fit(small_vae(data.x_shape, latent_dim=3), data, epochs=3, progress=False)


@pytest.fixture(scope="module")
def session(trained):
    return Session(trained)


def pixels(shown):
    """The bytes of a picture of the page."""
    return np.asarray(Image.open(io.BytesIO(content(shown))))


def content(shown):
    return base64.b64decode(shown["image"].removeprefix("data:image/png;base64,"))


def png(array, **how):
    file = io.BytesIO()
    Image.fromarray(array, **how).save(file, "png")
    return file.getvalue()


def grey(raw, maximum=16):
    """Values in the data's units as a page has them, (H, W)."""
    return (255 * (raw / maximum)).round().byte().squeeze().numpy()


# ── From x to z and back ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("index", [0, 7, 179])
def test_an_example_is_encoded_and_shown_as_the_run_does(session, trained, index):
    found = session.encode_example(index)
    means = trained.encode().means["z"][index]
    torch.testing.assert_close(torch.tensor(found["latents"]["z"]), means)
    x = next(trained.measured.chosen(torch.tensor([index]), 1))
    assert (pixels(found["shown"]) == grey(16 * x.x)).all()
    assert (pixels(found["picture"]) == grey(trained.reconstruct(index + 1).x[1, -1])).all()
    assert found["by"] == "mean"


def test_the_numbers_of_an_input_are_those_of_an_evaluation(session, trained):
    name = session.encode_example(4)["input"]
    session.encode_example(5)
    found = session.measure(name)
    x = next(trained.measured.chosen(torch.tensor([4]), 1)).x
    expected = evaluate(trained.program, x, num_samples=500)
    for key in ("elbo", "log_likelihood", "kl", "log_evidence"):
        assert found[key] == pytest.approx(getattr(expected, key).item(), abs=1e-3), key
    assert found["error"] == pytest.approx(expected.log_evidence_error.item(), abs=1e-4)
    assert found["elbo"] == pytest.approx(found["log_likelihood"] - found["kl"], abs=1e-4)
    assert found["samples"] == 500
    assert found["trusted"] == (expected.pareto_k.item() <= 0.7)


def test_inputs_are_forgotten_in_the_end(session):
    name = session.encode_example(0)["input"]
    for _ in range(31):
        last = session.encode_example(1)["input"]
    assert session.measure(name)["elbo"] < 0
    session.encode_example(1)
    with pytest.raises(InputError, match="Give it again"):
        session.measure(name)
    assert session.measure(last)["elbo"] < 0


def test_moved_latents_are_decoded(session, trained):
    z = [0.5, -2.0, 7.0]
    found = session.decode({"z": z})
    with torch.no_grad():
        mean = trained.program.decoder(torch.tensor([z])).mean
    assert (pixels(found["picture"]) == grey(16 * mean)).all()


def test_an_interpolation_is_that_of_the_run(session, trained):
    ends = [session.encode_example(index)["latents"] for index in (0, 3)]
    found = session.interpolate(*ends, 6)
    expected = trained.interpolate(0, 3, steps=6).x[0]
    for shown, x in zip(found["pictures"], expected, strict=True):
        assert (pixels(shown) == grey(x)).all()


def test_draws_are_those_of_the_prior_and_come_with_their_latents(session, trained):
    found = session.draw(5, 3)
    expected = trained.sample(5, seed=3).x
    assert len(found["pictures"]) == len(found["latents"]) == 5
    for shown, latents, x in zip(
        found["pictures"], found["latents"], expected.flatten(0, 1), strict=True
    ):
        assert (pixels(shown) == grey(x)).all()
        assert session.decode(latents)["picture"] == shown
    assert session.draw(5, 4) != found


def test_thumbnails_are_the_examples_in_their_order(session, trained):
    found = session.thumbnails(170, 20)
    batch = trained.measured.head(180).x[170:]
    assert len(found["pictures"]) == 10
    for shown, x in zip(found["pictures"], batch, strict=True):
        assert (pixels(shown) == grey(16 * x)).all()


def test_a_plane_has_the_posterior_means(session, trained):
    encoded = trained.encode()
    found = session.plane("z", [2, 0])
    torch.testing.assert_close(torch.tensor(found["points"]), encoded.means["z"][:, [2, 0]])
    assert found["labels"] == encoded.y.tolist()


@pytest.mark.parametrize(
    ("question", "given", "words"),
    [
        ("decode", ({},), "no latents"),
        ("decode", ({"w": [0.0] * 3},), "no latent site 'w'"),
        ("decode", ({"z": [0.0] * 2},), "has 3 dimensions"),
        ("decode", ({"z": [0.0, 1.0, "2"]},), "not all|Not all"),
        ("decode", ({"z": [0.0, 1.0, 1e39]},), "Not all"),
        ("decode", ({"z": [0.0, 1.0, True]},), "Not all"),
        ("interpolate", ({"z": [0.0] * 3}, {"z": [0.0] * 3}, 1), "2 to 64"),
        ("interpolate", ({"z": [0.0] * 3}, {"z": [0.0] * 3}, 10**9), "2 to 64"),
        ("draw", (0, 0), "1 to 64"),
        ("draw", (10**6, 0), "1 to 64"),
        ("draw", (1, -1), "0 to"),
        ("thumbnails", (180, 1), "0 to 179"),
        ("thumbnails", ("0", 1), "0 to 179"),
        ("plane", ("z", [0, 3]), "0 to 2"),
        ("plane", ("z", [0]), "two dimensions"),
        ("plane", (["z"], [0, 1]), "no latent site"),
        ("encode_example", (180,), "0 to 179"),
        ("encode_example", (True,), "0 to 179"),
        ("measure", ("none",), "no longer kept"),
        ("encode_numbers", ([0.0] * 3,), "Give 64"),
        ("encode_numbers", ([math.inf] * 64,), "finite"),
        ("encode_numbers", ([None] * 64,), "Entry 0 is missing"),
        ("encode_numbers", ([99.0] * 64,), "scale from 0 to 16"),
        ("encode_file", (b"",), "an empty file"),
        ("encode_file", (b"no image",), "not an image"),
        ("encode_drawing", (b"no image",), "not an image"),
    ],
)
def test_what_cannot_be_asked_is_said_in_words(session, question, given, words):
    with pytest.raises(InputError, match=words):
        getattr(session, question)(*given)


# ── Files, drawings, numbers ─────────────────────────────────────────────────────────────────


def noisy(height=40, width=60, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def convolutional(shape):
    return pyrovae.VAE(
        pyrovae.StandardNormal(2),
        pyrovae.GaussianDecoder(pyrovae.MLP((2,), shape, hidden=(4,))),
        pyrovae.GaussianEncoder(pyrovae.MLP(shape, (4,), hidden=(4,))),
    )


@pytest.mark.parametrize("how", [{}, {"pad": True}, {"grey": True}], ids=str)
def test_a_file_becomes_what_a_folder_of_it_would(tmp_path, how):
    folder = tmp_path / "사진"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index}.png").write_bytes(png(np.roll(noisy(), index, axis=0)))
    data = pyrovae.load_data(folder, size="8x10", **how)
    run = pyrovae.fit(
        convolutional(data.x_shape), data, epochs=1, run_dir=tmp_path / "run", progress=False
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "one.png").write_bytes(png(noisy(50, 33)))
    expected = run.on(other)

    session = Session(run)
    assert session.describe()["shape"] == data.x_shape
    found = session.encode_file(png(noisy(50, 33)))
    torch.testing.assert_close(torch.tensor([found["latents"]["z"]]), expected.encode().means["z"])
    shown = pixels(found["shown"]).reshape(8, 10, -1).transpose(2, 0, 1)
    raw = expected.measured.raw([0]).x[0].numpy()
    # What is dequantised falls back on its own level, to within half of one.
    assert np.abs(shown.astype(int) - raw.astype(int)).max() <= 1


def units(raw, preprocessing):
    run = run_of(small_vae(tuple(raw.shape[1:])), raw, preprocessing=preprocessing)
    run.program.decoder = pyrovae.GaussianDecoder(pyrovae.MLP((2,), tuple(raw.shape[1:])))
    return Inputs(run)


RAMP = torch.arange(256).reshape(1, 1, 16, 16)


@pytest.mark.parametrize(
    ("raw", "preprocessing", "low", "high"),
    [
        (RAMP.byte(), AsIs(), 0, 255),
        ((RAMP // 16).byte(), Binarize("threshold", 15), 0, 15),
        ((RAMP // 16).byte(), Dequantize(17), 0, 16),
        ((RAMP > 99).float(), AsIs(), 0, 1),
        (RAMP / 255, AsIs(), 0, 1),
        (RAMP / 85 - 1, Standardize(torch.tensor(0.5), torch.tensor(2.0)), -1, 2),
    ],
    ids=["bytes", "binarised", "17 levels", "bits", "unit", "real"],
)
def test_a_file_is_in_the_units_of_the_data(raw, preprocessing, low, high):
    inputs = units(raw, preprocessing)
    assert (inputs.low, inputs.high) == pytest.approx((low, high))
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = inputs.file(png(grey)).x
    given = preprocessing.invert(x).flatten()
    assert given.min().item() == pytest.approx(low, abs=0.5 if high > 2 else 1e-6)
    assert given.max().item() == pytest.approx(high, abs=0.5 if high > 2 else 1e-6)
    if set(raw.unique().tolist()) == {0.0, 1.0}:
        assert set(given.unique().tolist()) == {0.0, 1.0}
    elif not isinstance(preprocessing, Binarize):
        expected = low + torch.arange(256) / 255 * (high - low)
        assert (given - expected).abs().max() <= (1.01 if high > 2 else 1e-5)


def test_numbers_are_in_the_units_of_the_data():
    raw = 100 + 10 * torch.randn(50, 6)
    preprocessing = Standardize.of(raw)
    run = run_of(small_vae((6,)), raw, preprocessing=preprocessing)
    run.program.decoder = pyrovae.GaussianDecoder(pyrovae.MLP((2,), (6,)))
    session = Session(run)
    found = session.encode_numbers(raw[3].tolist())
    means = run.encode().means["z"][3]
    torch.testing.assert_close(torch.tensor(found["latents"]["z"]), means)
    assert found["shown"]["values"] == pytest.approx(raw[3].tolist(), rel=1e-4)
    assert found["shown"]["heights"] == pytest.approx(
        preprocessing.apply(raw, None)[3].tolist(), rel=1e-3, abs=1e-4
    )
    reconstructed = run.reconstruct(4).x[1, 3]
    assert found["picture"]["values"] == pytest.approx(reconstructed.tolist(), rel=1e-4)
    assert session.describe()["shape"] is None
    with pytest.raises(InputError, match="no images"):
        session.encode_file(png(noisy()))


def test_a_missing_entry_is_none_both_ways():
    x = binary(50)
    x[0, 2] = math.nan
    vae = pyrovae.VAE(
        pyrovae.StandardNormal(2),
        pyrovae.NanMaskedDecoder(pyrovae.BernoulliDecoder(pyrovae.MLP((2,), (6,)))),
        pyrovae.GaussianEncoder(pyrovae.NanMaskedInput(pyrovae.MLP((12,), (4,)))),
    )
    session = Session(run_of(vae, x, missing=True))
    found = session.encode_example(0)
    assert [v is None for v in found["shown"]["values"]] == [False, False, True] + 3 * [False]
    again = session.encode_numbers(found["shown"]["values"])
    assert again["latents"] == found["latents"]
    assert session.measure(again["input"])["elbo"] < 0


def test_channels_that_are_no_colours_are_a_chart_and_transparency_is_on_white():
    two = units(torch.rand(5, 2, 4, 4), AsIs())
    assert two.shape is None
    assert len(two.shown(torch.zeros(2, 4, 4))["values"]) == 32
    four = units(torch.rand(5, 4, 4, 4), AsIs())
    clear = torch.zeros(4, 4, 4)
    assert pixels(four.shown(clear)).min() > 250
    assert four.file(png(noisy(4, 4))).x.shape == (1, 4, 4, 4)
    assert four.file(png(noisy(4, 4))).x[0, 3].min() > 0.99
    flat = units(torch.rand(5, 4, 6), AsIs())
    assert flat.shape == (1, 4, 6)
    assert flat.file(png(noisy(4, 6))).x.shape == (1, 4, 6)


# ── Drawings ─────────────────────────────────────────────────────────────────────────────────


def centred(bright=True):
    """Bars of 20 by 4 whose middle is that of their images, as those of MNIST are."""
    images = torch.zeros(30, 28, 28)
    images[:, 4:24, 12:16] = 1
    return images if bright else 1 - images


@pytest.mark.parametrize("bright", [True, False])
def test_a_drawing_is_put_where_the_data_have_theirs(bright):
    placing = Placing.of(centred(bright))
    assert (placing.side, placing.bright, placing.size) == (20, bright, (28, 28))
    assert placing.centre == pytest.approx((13.5, 13.5), abs=1e-3)
    drawing = np.zeros((280, 280), np.uint8)
    drawing[10:60, 200:260] = 255
    placed = placing.place(drawing if bright else 255 - drawing)
    ink = placed if bright else 255 - placed
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert (columns[0], columns[-1]) == (4, 23)
    assert len(rows) == 17
    assert rows.mean() == pytest.approx(13.5, abs=0.5)


def test_a_drawing_is_centred_by_its_mass_rather_than_its_box():
    drawing = np.zeros((280, 280), np.uint8)
    drawing[100:120, 100:200] = 255
    drawing[50:170, 100:120] = 255
    ink = Placing.of(centred()).place(drawing).astype(float)
    down, across = (ink.sum(axis) @ np.arange(28) / ink.sum() for axis in (1, 0))
    assert down == pytest.approx(13.5, abs=0.51)
    assert across == pytest.approx(13.5, abs=0.51)


def test_no_ink_stays_no_ink():
    assert not Placing.of(centred()).place(np.zeros((280, 280), np.uint8)).any()
    assert Placing.of(centred(False)).place(np.full((280, 280), 255, np.uint8)).min() == 255


def test_photographs_and_things_anywhere_are_not_placed():
    assert Placing.of(torch.rand(30, 28, 28)) is None
    assert Placing.of(torch.zeros(30, 28, 28)) is None
    anywhere = torch.zeros(30, 28, 28)
    for index, image in enumerate(anywhere):
        image[index % 20 : index % 20 + 5, 3:9] = 1
    assert Placing.of(anywhere) is None


def test_mnist_is_placed_as_its_authors_say(data_dir):
    data = pyrovae.load_data("mnist", data_dir=data_dir)
    found = Placing.of(data.test.raw(torch.arange(1000)).x[:, 0] / 255)
    assert found.side == 20
    assert found.bright
    assert found.centre == pytest.approx((14, 14), abs=0.3)


def test_a_drawing_of_a_digit_is_encoded_as_the_digit(session, trained):
    raw = trained.measured.raw([3]).x[0, 0]
    drawn = np.zeros((280, 280), np.uint8)
    large = Image.fromarray(grey(raw)).resize((160, 160), Image.Resampling.NEAREST)
    drawn[20:180, 100:260] = np.asarray(large)
    placed = session.inputs.placing.place(drawn)
    assert np.abs(placed.astype(int) - grey(raw)).max() <= 1
    found = session.encode_drawing(png(drawn))
    assert found["latents"] == session.encode_file(png(placed))["latents"]
    assert session.describe()["placed"]
    assert session.describe()["paper"] == 0


# ── Latents ──────────────────────────────────────────────────────────────────────────────────


def test_latents_stand_in_the_order_of_their_kl_and_collapsed_ones_last():
    run, latent = looked_at(Graded(), torch.randn(500, 3))
    assert latent.order == [2, 0, 1]
    assert latent.active == 2
    expected = evaluate(run.program, run.measured, num_samples=1).kl_per_dim["z"]
    torch.testing.assert_close(latent.kl, expected)
    assert latent.direct
    assert (latent.low.tolist(), latent.high.tolist()) == ([-3.0] * 3, [3.0] * 3)


def looked_at(program, x):
    run = run_of(program, x)
    structure = inspect_program(run.program, run.measured.head(3))
    return run, look_at(run.program, run.measured, structure)["z"]


class Graded(nn.Module):
    """Three latents: some, none, and much of x."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 0.0, 0.9]))
        self.scale = scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), self.scale).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            spread = (1 - self.weight**2).sqrt()
            # The second tells nothing of x, and yet has a KL that is the largest.
            loc = self.weight * x + torch.tensor([0.0, 9.0, 0.0])
            pyro.sample("z", dist.Normal(loc, spread).to_event(1))


def test_sliders_of_other_priors_go_between_quantiles_of_the_aggregate_posterior():
    _, latent = looked_at(Graded(scale=2.0), torch.randn(1000, 3))
    # Each is normal of variance one about its mean.
    reach = 2.576
    assert latent.low.tolist() == pytest.approx([-reach, 9 - reach, -reach], abs=0.6)
    assert latent.high.tolist() == pytest.approx([reach, 9 + reach, reach], abs=0.6)


def test_a_flow_over_a_standard_normal_is_no_standard_normal():
    vae = small_vae((6,), latent_dim=2)
    vae.prior = pyrovae.RealNVPPrior(2)
    _, latent = looked_at(vae, binary(100))
    assert latent.kl is None
    assert max(map(abs, latent.low.tolist() + latent.high.tolist())) != 3


def flat(size):
    return pyrovae.MLP((6,), (size,), hidden=(8,))


OTHERS = {
    "mixture": lambda: (
        pyrovae.GaussianMixture(4, components=3),
        pyrovae.GaussianEncoder(flat(8)),
    ),
    "flow": lambda: (pyrovae.SplineFlowPrior(4), pyrovae.GaussianEncoder(flat(8))),
    "heavy tails": lambda: (pyrovae.StudentTPrior(4), pyrovae.GaussianEncoder(flat(8))),
    "sphere": lambda: (pyrovae.SphericalUniformPrior(4), pyrovae.VonMisesFisherEncoder(flat(5))),
    "bits": lambda: (pyrovae.BernoulliPrior(4), pyrovae.BernoulliEncoder(flat(4))),
    "codes": lambda: (
        pyrovae.CategoricalPrior(4, classes=2),
        pyrovae.CategoricalEncoder(flat(4), classes=2),
    ),
    "autoregressive": lambda: (
        pyrovae.StandardNormal(4),
        pyrovae.IAFEncoder(flat(pyrovae.IAFEncoder.net_shape(4)[0])),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_whatever_the_prior_and_the_encoder_all_can_be_asked_and_is_json(kind):
    prior, encoder = OTHERS[kind]()
    decoder = pyrovae.BernoulliDecoder(pyrovae.MLP((4,), (6,)))
    session = Session(run_of(pyrovae.VAE(prior, decoder, encoder), binary(80)))
    (site,) = session.describe()["sites"]
    assert sorted(site["order"]) == [0, 1, 2, 3]
    assert all(a < b for a, b in zip(site["low"], site["high"], strict=True))
    if kind in ("bits", "codes"):
        assert (site["low"], site["high"]) == ([0] * 4, [1] * 4)
    found, drawn = session.encode_example(3), session.draw(2, 0)
    numbers = session.measure(found["input"])
    assert numbers["elbo"] <= numbers["log_evidence"] < 0
    line = session.interpolate(found["latents"], drawn["latents"][1], 3)["pictures"]
    for end, own in ((line[0], found["picture"]), (line[-1], drawn["pictures"][1])):
        # A product of three rows rounds its last digit otherwise than that of one.
        assert end.keys() == own.keys() == {"values"}
        assert end["values"] == pytest.approx(own["values"], abs=2e-6)
    json.dumps([session.describe(), found, drawn, numbers, line], allow_nan=False)


class Hierarchy(nn.Module):
    """top -> z -> x, the guide from below."""

    def __init__(self):
        super().__init__()
        self.down, self.out = nn.Linear(2, 3), nn.Linear(3, 5)
        self.up, self.upper = nn.Linear(5, 3), nn.Linear(3, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1).to_event(1))
            z = pyro.sample("z", dist.Normal(self.down(top), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(self.out(z), 0.3).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.up(x), 0.5).to_event(1))
            pyro.sample("top", dist.Normal(self.upper(z), 0.1).to_event(1))


def test_a_hierarchy_has_its_sites_in_the_models_order_and_those_below_may_follow():
    session = Session(run_of(Hierarchy(), torch.randn(40, 5)))
    sites = session.describe()["sites"]
    assert [(site["name"], site["direct"]) for site in sites] == [("top", False), ("z", True)]
    held = session.encode_example(0)["latents"]
    moved = {**held, "top": [3.0, -3.0]}
    assert session.decode(moved)["picture"] == session.decode(held)["picture"]
    below = session.decode({"top": [3.0, -3.0]})["picture"]["values"]
    assert below != session.decode({"top": held["top"]})["picture"]["values"]
    expected = generation.decode(
        session.program, {"top": torch.tensor([[3.0, -3.0]])}, session.run.measured.head(1)
    ).x
    assert below == pytest.approx(expected[0].tolist(), rel=1e-4)
    with pytest.raises(InputError, match="not of the same latents"):
        session.interpolate(held, {"top": held["top"]}, 3)


class Global(Hierarchy):
    """A latent that all examples share."""

    def model(self, x):
        shift = pyro.sample("shift", dist.Normal(torch.zeros(5), 1).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1).to_event(1))
            pyro.sample("x", dist.Normal(self.out(z) + shift, 0.3).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("shift", dist.Normal(torch.arange(5.0), 0.01).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.up(x), 0.5).to_event(1))


def test_a_latent_of_all_examples_is_held_at_its_posterior_mean():
    session = Session(run_of(Global(), torch.randn(40, 5)))
    assert [site["name"] for site in session.describe()["sites"]] == ["z"]
    assert session.describe()["measured"] is None
    found = session.decode({"z": [1.0, 2.0, 3.0]})["picture"]["values"]
    with torch.no_grad():
        mean = session.program.out(torch.tensor([1.0, 2.0, 3.0])) + torch.arange(5.0)
    assert found == pytest.approx(mean.tolist(), rel=1e-4)
    drawn = session.draw(3, 0)
    again = [session.decode(latents)["picture"] for latents in drawn["latents"]]
    assert drawn["pictures"] == again
    encoded = session.encode_example(1)
    assert encoded["latents"].keys() == {"z"}
    assert session.measure(encoded["input"])["log_evidence"] is not None


def test_an_autoencoder_is_explored_without_numbers_and_without_draws():
    vae = small_vae()
    auto = pyrovae.Autoencoder(2, vae.decoder, vae.encoder)
    session = Session(run_of(auto, binary(60)))
    told = session.describe()
    assert not told["draws"]
    assert "no bound" in told["measured"]
    (site,) = told["sites"]
    assert site["kl"] is None
    assert site["low"][0] < site["high"][0]
    assert session.encode_example(0)["picture"]["values"]
    with pytest.raises(InputError, match="improper"):
        session.draw(3, 0)
    with pytest.raises(InputError, match="log p"):
        session.measure(session.encode_example(0)["input"])


class Conditional(nn.Module):
    """x given a label and a latent; without a label there is no mean."""

    def __init__(self):
        super().__init__()
        self.out, self.up = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            loc = self.out(z) + 10.0 * y[:, None]
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.up(x) + y[:, None], 1.0).to_event(1))


def test_a_label_is_chosen_where_the_program_takes_one(session):
    y = torch.arange(40) % 3 * 2
    own = Session(run_of(Conditional(), torch.randn(40, 4), y))
    assert own.describe()["labels"] == [0, 2, 4]
    first, second = (own.decode({"z": [0.0, 0.0]}, label)["picture"]["values"] for label in (0, 4))
    assert [b - a for a, b in zip(first, second, strict=True)] == pytest.approx([40] * 4, rel=1e-3)
    encoded = [own.encode_numbers([0.0] * 4, label) for label in (2, 4)]
    shifts = [b - a for a, b in zip(*(found["latents"]["z"] for found in encoded), strict=True)]
    assert shifts == pytest.approx([2, 2], abs=1e-4)
    assert [found["label"] for found in encoded] == [2, 4]
    assert own.encode_example(1)["label"] == 2
    line = own.interpolate({"z": [0.0, 0.0]}, {"z": [0.0, 0.0]}, 2, 4)
    assert line["pictures"][0]["values"] == second
    assert min(own.draw(2, 0, 4)["pictures"][1]["values"]) > 20
    with pytest.raises(InputError, match="no label 3"):
        own.decode({"z": [0.0, 0.0]}, 3)
    assert session.describe()["labels"] is None


class Codes(nn.Module):
    """A code of two classes out of four for each example, and one of bits."""

    def __init__(self):
        super().__init__()
        self.out, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def model(self, x):
        with pyro.plate("data", len(x)):
            logits = torch.zeros(2, 4)
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))
            pyro.sample("x", dist.Normal(self.out(z.flatten(-2)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = self.up(x).unflatten(-1, (2, 4))
            pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))


def test_latents_of_any_shape_are_laid_out_in_a_row():
    session = Session(run_of(Codes(), torch.randn(60, 4)))
    (site,) = session.describe()["sites"]
    assert sorted(site["order"]) == list(range(8))
    assert site["kl"] is None
    latents = session.encode_example(2)["latents"]
    assert len(latents["z"]) == 8
    with torch.no_grad():
        mean = session.program.out(torch.tensor(latents["z"]))
    assert session.decode(latents)["picture"]["values"] == pytest.approx(mean.tolist(), rel=1e-4)


def test_a_program_without_local_latents_is_refused():
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(4))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pass

    with pytest.raises(InputError, match="no latent"):
        Session(run_of(Nothing(), torch.randn(9, 4)))


def test_a_program_that_draws_parts_of_examples_is_refused():
    with pytest.raises(InputError, match=r"a part of an example.*whole examples"):
        Session(run_of(InTwo(), torch.randn(9, 4)))


# ── The server ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def served(session):
    with Server(session) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(served, path, body=b"{}", *, method="POST", **headers):
    """The status, the headers and the content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port, timeout=20)
    named = {"X-Pyrovae-Token": served.token}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        if value is not None:
            connection.putheader(name, value)
    if method == "POST" and "Content-Length" not in named:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body if method == "POST" else None)
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return found


def said(answer):
    return json.loads(answer[2])["error"]


def test_the_page_is_served_to_who_has_the_address(served):
    assert served.url.startswith("http://127.0.0.1:")
    path = served.url.removeprefix(f"http://127.0.0.1:{served.server_port}")
    status, headers, text = asked(served, path, method="GET")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert text.count(nonce.encode()) == 2
    assert b"{{" not in text
    assert b"--accent" in text
    assert b"--muted: #616875" in text
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    again = asked(served, f"/?token={served.token}", method="GET")[1]
    assert again["Content-Security-Policy"] != policy
    assert b"://" not in text.replace(b"http://www.w3.org/2000/svg", b"")


def test_it_listens_on_the_loopback_alone(served):
    assert served.socket.getsockname()[0] == "127.0.0.1"


def test_questions_are_answered_by_the_session(served, session):
    latents = {"z": [0.1, -0.2, 0.3]}
    body = json.dumps({"latents": latents}).encode()
    status, headers, found = asked(served, "/decode", body)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert json.loads(found) == session.decode(latents)
    for name, body in [
        ("describe", {}),
        ("thumbnails", {"start": 0, "count": 2}),
        ("plane", {"site": "z", "dims": [0, 1]}),
        ("example", {"index": 1}),
        ("numbers", {"values": [0.0] * 64, "label": None}),
        ("interpolate", {"start": latents, "end": latents, "steps": 2, "label": None}),
        ("draw", {"count": 2, "seed": 0, "label": None}),
    ]:
        assert asked(served, f"/{name}", json.dumps(body).encode())[0] == 200, name
    last = json.loads(asked(served, "/file", png(noisy()))[2])["input"]
    drawn = json.loads(asked(served, "/drawing", png(noisy(280, 280, 1)))[2])
    assert drawn["latents"].keys() == {"z"}
    assert asked(served, "/measure", json.dumps({"name": last}).encode())[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.e:80", "", "localhost@e:1"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_name_is_refused_whatever_the_token(served, host, method):
    path = f"/?token={served.token}" if method == "GET" else "/describe"
    assert asked(served, path, method=method, Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "localhost"])
def test_a_forwarded_port_is_served(served, host):
    assert asked(served, "/describe", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:1", ""])
def test_another_page_is_refused_whatever_the_token(served, origin):
    assert asked(served, "/describe", Origin=origin)[0] == 403


@pytest.mark.parametrize("token", [None, "", "wrong", "한글".encode()])
def test_nobody_asks_without_the_token(served, token):
    assert asked(served, "/describe", X_Pyrovae_Token=token)[0] == 403
    assert asked(served, "/file", png(noisy()), X_Pyrovae_Token=token)[0] == 403
    query = "" if token is None else "?token=" + (token if isinstance(token, str) else "%ED%95")
    answer = asked(served, "/" + query, method="GET")
    assert answer[0] == 403
    assert "address that pyrovae explore printed" in said(answer)


@pytest.mark.parametrize(
    "path", ["/nothing", "/etc/passwd", "/../../etc/passwd", "//[", "/page.html", "/%2e%2e/a"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_route_is_not_found(served, path, method):
    answer = asked(served, path, method=method)
    assert answer[0] == 404
    assert said(answer) == "There is nothing here."


def test_too_large_a_file_is_refused_before_it_is_read(served):
    started = time.perf_counter()
    answer = asked(served, "/file", b"", Content_Length=str(server.UPLOAD_LIMIT + 1))
    assert time.perf_counter() - started < 10
    assert answer[0] == 413
    assert "more than the 32" in said(answer)
    assert asked(served, "/decode", b"", Content_Length=str(2**23))[0] == 413


@pytest.mark.parametrize("length", [None, "-1", "many", "1e3", "9" * 30])
def test_a_length_that_is_none_is_refused(served, length):
    assert asked(served, "/decode", b"", Content_Length=length)[0] == 411


def bomb():
    """The head of an image of 20,000 by 20,000 pixels."""
    import struct
    import zlib

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<svg/>", "not an image"),
        (png(noisy())[:900], "cannot be read"),
        (png(noisy())[:40] + b"\0" * 200, "cannot be read"),
        (bomb(), "decompression bomb"),
        (b"/etc/passwd", "not an image"),
    ],
    ids=["empty", "svg", "truncated", "damaged", "bomb", "a path"],
)
def test_a_bad_image_is_an_error_in_words(served, content, words):
    for kind in ("file", "drawing"):
        answer = asked(served, f"/{kind}", content)
        assert answer[0] == 422
        assert words in said(answer)
        assert said(answer).endswith("Give an image, such as a PNG or a JPEG.")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"latents": {"z": [NaN, 0, 0]}}',
        b'{"latents": {"z": [1e999, 0, 0]}}',
        b'{"other": 1}',
        b'{"self": 1}',
        b"{}",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"latents": "z"}',
        b'{"latents": {"z": "abc"}}',
        b'{"latents": {"z": [[1], 2, 3]}}',
        b'{"latents": {"z": [1, 2, 3]}, "label": {"a": 1}}',
    ],
    ids=lambda body: body[:40].decode("latin1"),
)
def test_a_question_that_is_none_is_an_error_in_words(served, body):
    answer = asked(served, "/decode", body)
    if b"label" in body:  # the program takes none
        assert answer[0] == 200
    else:
        assert answer[0] == 422
        assert said(answer)


def test_a_label_that_is_none_is_an_error_in_words(served):
    answer = asked(served, "/file?label=a", png(noisy()))
    assert answer[0] == 422
    assert "no label 'a'" in said(answer)


def test_what_goes_wrong_is_said_and_the_next_question_answered(served, monkeypatch, capsys):
    def broken(session):
        raise ZeroDivisionError("<b>by zero</b>")

    monkeypatch.setitem(server.QUESTIONS, "describe", broken)
    answer = asked(served, "/describe")
    assert answer[0] == 500
    assert said(answer) == "This went wrong (ZeroDivisionError: <b>by zero</b>)."
    assert "Traceback" in capsys.readouterr().err
    assert asked(served, "/example", b'{"index": 0}')[0] == 200


def test_one_question_is_answered_at_a_time(served, monkeypatch):
    running, most = [], []

    def slow(session):
        running.append(1)
        most.append(len(running))
        time.sleep(0.05)
        running.pop()
        return {}

    monkeypatch.setitem(server.QUESTIONS, "describe", slow)
    threads = [threading.Thread(target=asked, args=(served, "/describe")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_a_port_that_is_taken_is_an_error(served, session):
    with pytest.raises(InputError, match=f"Port {served.server_port} cannot be used"):
        Server(session, served.server_port)
    with pytest.raises(InputError, match="Port 70000"):
        Server(session, 70000)


def test_serving_prints_the_address_opens_it_and_ends_quietly(trained, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    explore.serve(trained)
    printed = capsys.readouterr().out.splitlines()
    assert opened == [printed[0]]
    assert printed[0].startswith("http://127.0.0.1:")
    explore.serve(trained, open_browser=False)
    assert len(opened) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_serves_until_a_signal_and_ends_quietly(tmp_path, number, code):
    data = pyrovae.load_data("digits")
    program = small_vae(data.x_shape)
    pyrovae.fit(program, data, epochs=1, run_dir=tmp_path / "run", progress=False)
    words = [sys.executable, "-m", "pyrovae", "explore", tmp_path / "run", "--no-open"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = urlsplit(process.stdout.readline().strip())
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
        connection.request("GET", f"/?{url.query}")
        answer = connection.getresponse()
        assert answer.status == 200
        assert b"<canvas" in answer.read()
        headers = {"X-Pyrovae-Token": url.query.removeprefix("token=")}
        connection.request("POST", "/example", b'{"index": 0}', headers)
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        connection.close()
    assert process.returncode == code
    assert errors == ("" if code == 0 else "pyrovae: Terminated.\n")


# ── Tables ──

COLUMNS = {"height": "numeric", "age": "whole", "smokes": ["no", "yes"], "job": ["a", "b", "c"]}


def table_run():
    """A run on rows of a table of which some entries are missing."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(60, generator=rng)
    raw = torch.stack([170 + 8 * z, (40 + 9 * z).round(), (z > 0).float(), (z > 0.5) * 2.0], 1)
    raw[3, 0] = raw[4, 3] = math.nan
    codes = [0, 0, 2, 3]
    torch.manual_seed(0)
    decoder, encoder = pyrovae.TabularDecoder, pyrovae.networks.TabularInput
    net = pyrovae.MLP(encoder.net_shape((4,), columns=codes), (4,), hidden=(8,))
    vae = pyrovae.VAE(
        pyrovae.StandardNormal(2),
        decoder(pyrovae.MLP((2,), decoder.net_shape((4,), columns=codes)), columns=codes),
        pyrovae.GaussianEncoder(encoder(net, columns=codes)),
    )
    run = run_of(vae, raw, preprocessing=Standardize.of(raw, columns=codes), missing=True)
    run.config["data"] |= {"name": "people.csv", "columns": COLUMNS}
    return run


def test_a_row_of_a_table_is_shown_by_names_in_its_own_units_and_words():
    session = Session(table_run())
    told = session.describe()
    assert told["shape"] is None
    assert told["missing"] is True
    assert [column["name"] for column in told["columns"]] == list(COLUMNS)
    assert [list(c["categories"]) for c in told["columns"]] == [[], [], ["no", "yes"], [*"abc"]]
    raw = session.run.measured.raw(range(60)).x
    for place, column in enumerate(told["columns"]):
        seen = raw[:, place][~raw[:, place].isnan()]
        assert column["low"] == pytest.approx(seen.min().item(), rel=1e-5)
        assert column["high"] == pytest.approx(seen.max().item(), rel=1e-5)

    height, age, smokes, _ = raw[5].tolist()
    given = session.encode_example(5)["shown"]
    assert given["texts"][:3] == [f"{height:.4g}", str(int(age)), ["no", "yes"][int(smokes)]]
    assert given["values"][1] == age
    assert "heights" not in given
    assert session.encode_example(3)["shown"]["texts"][0] == ""
    assert session.encode_example(4)["shown"]["values"][3] is None

    found = session.decode({"z": [0.5, -0.5]})["picture"]
    numbers = [float(text) for text in found["texts"][:2]]
    assert numbers[0] == pytest.approx(found["values"][0], abs=0.06)
    assert numbers[1] == round(found["values"][1])
    category, share = found["texts"][2].split(", ")
    probability = found["values"][2]
    assert category == ("yes" if probability > 0.5 else "no")
    assert share == f"{max(probability, 1 - probability):.0%}"
    assert found["texts"][3] in "abc"


def test_a_row_is_given_in_codes_and_what_is_left_out_is_missing():
    session = Session(table_run())
    found = session.encode_numbers([171.5, 44, 1, None])
    assert found["shown"]["texts"] == ["171.5", "44", "yes", ""]
    assert found["shown"]["values"] == [171.5, 44, 1, None]
    with pytest.raises(InputError, match="support"):
        session.encode_numbers([171.5, 44, 1, 3])


def test_what_is_no_table_has_no_columns(session):
    assert session.describe()["columns"] is None
    assert session.describe()["missing"] is False
    assert "texts" not in session.encode_example(0)["shown"]


# ── Likelihoods without a mean ──


@pytest.mark.parametrize("kind", ["text", "pixels"])
def test_what_has_no_mean_is_shown_by_a_draw(kind):
    torch.manual_seed(0)
    if kind == "text":
        x, net = torch.randint(0, 5, (40, 6)), pyrovae.MLP((2,), (8,), hidden=(8,))
        decoder = pyrovae.RecurrentTextDecoder(net, (6,), symbols=5, hidden=8)
        seen = pyrovae.networks.TokenEncoderNet((6,), (4,), symbols=5)
    else:
        x, net = torch.randint(0, 2, (40, 1, 5, 4)), pyrovae.MLP((2,), (4, 5, 4), hidden=(8,))
        decoder = pyrovae.PixelCNNDecoder(net, (1, 5, 4), features=4)
        seen = pyrovae.MLP((1, 5, 4), (4,), hidden=(8,))
    encoder = pyrovae.GaussianEncoder(seen)
    vae = pyrovae.VAE(pyrovae.StandardNormal(2), decoder, encoder)
    session = Session(run_of(vae, x.float() if kind == "pixels" else x))
    found = session.encode_example(3)
    assert found["by"] == session.decode(found["latents"])["by"] == "draw"
    assert session.draw(2, 0)["by"] == "draw"
    assert len(session.interpolate(found["latents"], {"z": [1.0, 1.0]}, 3)["pictures"]) == 3
    assert session.measure(found["input"])["log_evidence"] < 0
    if kind == "text":
        assert found["shown"]["values"] == x[3].tolist()
        assert set(found["picture"]["values"]) <= set(range(5))
    else:
        assert set(np.unique(pixels(found["picture"]))) <= {0, 255}

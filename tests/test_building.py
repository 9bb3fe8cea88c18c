"""Building out of words: what the data decide where nothing is said."""

import re
from inspect import signature

import numpy as np
import pytest
import torch
from composition import data_for
from torch import nn

from pyrovae import catalogue
from pyrovae.building import OF_SEQUENCES, Choice, build_vae
from pyrovae.data import AsIs, load_data
from pyrovae.errors import InputError
from pyrovae.inspection import inspect_program

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(100, 6)).astype(np.float32)
BINARY = (REAL > 0).astype(np.float32)


def vamp(x, **options):
    data = load_data(x)
    return data, build_vae(data, prior=Choice("vamp", options), latent_dim=2, hidden=8).prior


@pytest.mark.parametrize("x", [BINARY, REAL], ids=["binary", "real"])
def test_pseudo_inputs_start_at_training_examples(x):
    data, prior = vamp(x, components=7)
    examples = data.train.head(len(data.train)).x
    if x is BINARY:
        examples = examples.clamp(0.01, 0.99)
    distances = torch.cdist(prior.pseudo_inputs.detach(), examples).min(1).values
    assert prior.bounded == (x is BINARY)
    assert distances.max() < 1e-3


def test_pseudo_inputs_are_bounded_as_was_said():
    _, prior = vamp(BINARY, components=7, bounded=False)
    assert not prior.bounded


def test_more_pseudo_inputs_than_examples_are_refused():
    with pytest.raises(InputError, match="fewer components"):
        vamp(BINARY)


TABLE = "size,job\n" + "".join(f"{i / 7:.2f},{'abc'[i % 3]}\n" for i in range(40))


@pytest.mark.parametrize(
    ("decoder", "inputs"), [("recurrent-text", "symbols"), ("tabular", "categories")]
)
def test_pseudo_inputs_that_no_gradient_reaches_are_refused(decoder, inputs, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    text = load_data(RNG.integers(0, 5, (40, 7)), preprocessing=AsIs())
    data = text if inputs == "symbols" else load_data(path)
    chosen = {"decoder": Choice(decoder), "latent_dim": 2}
    with pytest.raises(InputError, match=f"{inputs} cannot be learned") as refused:
        build_vae(data, prior=Choice("vamp", {"components": 5}), **chosen)
    for word in re.findall(r"--prior ([\w-]+)", refused.value.remedy):
        vae = build_vae(data, prior=Choice(word), **chosen)
        inspect_program(vae, data.train.head(3))


@pytest.mark.parametrize(
    "name", ["poisson", "negative-binomial", "zero-inflated-negative-binomial"]
)
def test_a_latent_size_starts_at_that_of_the_data_and_is_not_for_the_network(name):
    counts = RNG.poisson(9.0, size=(60, 5)).astype(np.float32)
    data = load_data(counts, preprocessing=AsIs())
    choice = Choice(name, {"latent_size": True})
    decoder = build_vae(data, decoder=choice, latent_dim=3).decoder
    assert decoder.net.in_shape == (2,)
    totals = data.train.head(len(data.train)).x.sum(1)
    assert decoder.size.loc.item() == pytest.approx(totals.log().mean().item(), rel=1e-4)
    with pytest.raises(InputError, match="one of bits, whose last dimension is no size"):
        build_vae(data, decoder=choice, encoder=Choice("bernoulli"), prior=Choice("bernoulli"))
    with pytest.raises(InputError, match="latent_dim of 2 or more"):
        build_vae(data, decoder=choice, latent_dim=1)


@pytest.mark.parametrize(
    ("encoder", "cost"), [("iaf", "every latent dimension"), ("flow", "every coupling")]
)
def test_a_slow_density_under_a_vamp_prior_is_warned_of(encoder, cost):
    with pytest.warns(UserWarning, match=f"all 3 .* {cost}.* GaussianEncoder"):
        build_vae(
            load_data(REAL),
            prior=Choice("vamp", {"components": 3}),
            encoder=Choice(encoder),
            latent_dim=2,
        )


@pytest.mark.parametrize(
    ("prior", "encoder"),
    [
        ("standard-normal", "gaussian"),
        ("bernoulli", "bernoulli"),
        ("categorical", "straight-through-categorical"),
        ("relaxed-categorical", "relaxed-categorical"),
        ("relaxed-bernoulli", "relaxed-bernoulli"),
        ("spherical-uniform", "power-spherical"),
        ("spherical-uniform", "von-mises-fisher"),
    ],
)
def test_a_decoder_reads_latents_of_every_kind_on_the_scale_of_one(prior, encoder):
    chosen = {"prior": Choice(prior), "encoder": Choice(encoder)}
    vae = build_vae(load_data(BINARY), **chosen, latent_dim=20, hidden=8)
    read = []
    first = next(module for module in vae.decoder.modules() if isinstance(module, nn.Linear))
    first.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    vae.decoder(vae.prior().sample((5000,)))
    relaxed = prior.startswith("relaxed")
    assert read[0].square().mean().item() == pytest.approx(1.0, abs=0.5 if relaxed else 0.05)
    assert read[0].var() > 0.4, "and not about an offset"


OWN = """
import pyrovae
import torch
from torch import nn


class Prior(nn.Module):
    def __init__(self, latent_dim, scale=2.0, levels=7, bounded=False):
        super().__init__()
        self.scale, self.levels, self.bounded = scale, levels, bounded
        self.standard = pyrovae.StandardNormal(latent_dim)

    def forward(self):
        return self.standard()


class Decoder(pyrovae.GaussianDecoder):
    pass


class Levels(pyrovae.CategoricalDecoder):
    def __init__(self, net, classes=5):
        super().__init__(net, classes=classes)

    @staticmethod
    def net_shape(x_shape, classes):
        return (classes * x_shape[0],)
"""


def test_what_the_data_decide_is_decided_for_our_own_constructors_alone(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    data = load_data(BINARY)
    parts = {"prior": Choice(f"{path}:Prior"), "decoder": Choice(f"{path}:Decoder")}
    vae = build_vae(data, **parts, latent_dim=2, hidden=8)
    assert (vae.prior.scale, vae.prior.levels, vae.prior.bounded) == (2.0, 7, False)
    assert (vae.decoder.scale, vae.decoder.learn_scale) == (0.5, True), "its constructor is ours"
    counted = build_vae(data, decoder=Choice(f"{path}:Levels"), latent_dim=2, hidden=8).decoder
    assert counted.classes == 5, "its own default, which its net is told of too"
    for kind, name, part in (
        ("prior", "Prior", vae.prior),
        ("decoder", "Decoder", vae.decoder),
        ("decoder", "Levels", counted),
    ):
        for option in catalogue.read_class(path, name, kind).options:
            from_data = (name, option.name) == ("Decoder", "min_scale")
            assert bool(option.from_data) == from_data
            assert from_data or getattr(part, option.name) == option.default


def test_an_argument_of_an_own_class_that_has_no_default_may_be_given_from_python(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN.replace("classes=5", "classes"))
    data, decoder = load_data(BINARY), f"{path}:Levels"
    vae = build_vae(data, decoder=Choice(decoder, {"classes": 4}), latent_dim=2, hidden=8)
    assert vae.decoder.classes == 4
    with pytest.raises(InputError, match=r"needs 'classes', .*Give it a default"):
        build_vae(data, decoder=Choice(decoder), latent_dim=2, hidden=8)


def built(kind, word):
    """A part of a program of words of which nothing else is said."""
    few = {"components": 3} if word == "vamp" else {}
    if kind == "network":
        x = np.where(RNG.uniform(size=(60, 8, 8)) < 0.1, np.nan, RNG.normal(size=(60, 8, 8)))
        data = load_data(x, missing=True, sequences=word in OF_SEQUENCES)
        net = build_vae(data, network=word).encoder.net
        return net.net if word not in OF_SEQUENCES else net
    # Of five levels, so that a prior's and an encoder's classes are seen not to be theirs.
    decoder = Choice(word if kind == "decoder" else "categorical")
    parts = {"decoder": decoder} | {kind: Choice(word, few)}
    return getattr(build_vae(data_for(decoder), **parts), kind)


@pytest.mark.parametrize(
    ("kind", "word"),
    [(k, w) for k in ("prior", "encoder", "decoder", "network") for w in catalogue.entries(k)],
)
def test_help_shows_the_defaults_that_are_used(kind, word):
    part = built(kind, word)
    defaults = {n: p.default for n, p in signature(type(part)).parameters.items()}
    for option in catalogue.entries(kind)[word].options:
        used = getattr(part, option.name)
        if option.from_data:
            assert used != defaults[option.name]
        elif (word, option.name) != ("vamp", "components"):
            shown = used.__name__.lower() if isinstance(used, type) else used
            assert shown == option.default, option.name


@pytest.mark.parametrize(
    ("prior", "encoder", "partners"),
    [
        (
            "spherical-uniform",
            "gaussian",
            ["--encoder power-spherical", "--prior standard-normal"],
        ),
        ("standard-normal", "von-mises-fisher", ["--encoder gaussian", "--prior spherical-uni"]),
        ("bernoulli", "full-covariance-gaussian", ["--encoder bernoulli", "--prior standard-n"]),
        ("bernoulli", "relaxed-bernoulli", ["--encoder bernoulli", "--prior relaxed-bernoulli"]),
        ("relaxed-bernoulli", "straight-through-bernoulli", ["--encoder relaxed-b", "--prior b"]),
        ("categorical", "relaxed-categorical", ["--encoder categorical", "--prior relaxed-cat"]),
        ("uniform", "iaf", ["--encoder beta", "--prior standard-normal"]),
        ("uniform", "relaxed-bernoulli", ["--encoder beta", "--prior relaxed-bernoulli"]),
        ("standard-normal", "relaxed-bernoulli", ["--encoder gaussian", "--prior relaxed-b"]),
        ("relaxed-bernoulli", "beta", ["--encoder relaxed-bernoulli", "--prior uniform"]),
        ("gaussian-mixture", "categorical", ["--encoder gaussian", "--prior categorical"]),
    ],
)
def test_a_pair_over_other_values_is_answered_with_a_partner_of_each(prior, encoder, partners):
    data = load_data(BINARY)
    pair = {"prior": Choice(prior), "encoder": Choice(encoder)}
    vae = build_vae(data, **pair, latent_dim=20, hidden=8)
    with pytest.raises(InputError) as refused:
        inspect_program(vae, data.train.head(3))
    for partner in partners:
        assert partner in refused.value.remedy


def test_a_uniform_prior_is_over_the_box_that_its_encoder_draws_in():
    data = load_data(BINARY)
    pair = {"prior": Choice("uniform"), "encoder": Choice("beta")}
    vae = build_vae(data, **pair, latent_dim=20, hidden=8)
    inspect_program(vae, data.train.head(3))
    ends = vae.prior().support.base_constraint
    encoded = vae.encoder(data.train.head(3).x).support.base_constraint
    assert (ends.lower_bound, ends.upper_bound) == (encoded.lower_bound, encoded.upper_bound)


@pytest.mark.parametrize(("low", "high", "fits"), [(-1.0, 1.001, False), (-0.7, 1.0, True)])
def test_a_box_that_goes_beyond_that_of_the_prior_is_refused_whatever_is_drawn(low, high, fits):
    data = load_data(BINARY)
    pair = {"prior": Choice("uniform"), "encoder": Choice("beta", {"low": low, "high": high})}
    vae = build_vae(data, **pair, latent_dim=1, hidden=8)
    if fits:
        inspect_program(vae, data.train.head(3))
        return
    with pytest.raises(InputError, match=r"'z' from -1 to 1\.001, .* is from -1 to 1\."):
        inspect_program(vae, data.train.head(3))


@pytest.mark.parametrize("kind", ["categorical", "relaxed-categorical"])
def test_codes_of_other_numbers_of_classes_are_refused_by_their_numbers(kind):
    data = load_data(BINARY)
    pair = {"prior": Choice(kind, {"classes": 4}), "encoder": Choice(kind, {"classes": 10})}
    vae = build_vae(data, **pair, latent_dim=20, hidden=8)
    with pytest.raises(InputError, match=r"4 classes in the model and of 10 .*encoder.classes 4"):
        inspect_program(vae, data.train.head(3))


@pytest.mark.parametrize(
    ("kind", "word", "option", "value", "said"),
    [
        ("encoder", "mixture", "components", -1, r"components is -1"),
        ("encoder", "low-rank-gaussian", "rank", -2, r"rank is -2"),
        ("encoder", "iaf", "context", -9, r"context is -9"),
        ("encoder", "iaf", "hidden", -3, r"hidden is -3"),
        ("encoder", "spline-flow", "hidden", 0, r"hidden is \(0,\)"),
        ("prior", "exemplar", "keep", 0, r"keep is 0"),
        ("prior", "real-nvp", "hidden", 0, r"hidden is 0"),
        ("decoder", "categorical", "classes", 0, r"classes is 0"),
        ("decoder", "discretized-logistic-mixture", "components", 0, r"components is 0"),
        ("decoder", "recurrent-text", "hidden", -4, r"hidden is -4"),
        ("decoder", "recurrent-text", "embedding", 0, r"embedding is 0"),
        ("network", "mlp", "hidden", (0,), r"hidden is \(0,\)"),
    ],
)
def test_a_size_below_one_is_refused_by_the_name_of_its_option(kind, word, option, value, said):
    data = load_data(RNG.integers(0, 5, (60, 6)), preprocessing=AsIs())
    with pytest.raises(InputError, match=said):
        build_vae(data, **{kind: Choice(word, {option: value})}, latent_dim=4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latent_dim": 10**9}, r"latent_dim is 1000000000, .*at most 16,777,216"),
        ({"hidden": 10**9}, r"hidden is 1000000000"),
        ({"prior": Choice("exemplar", {"keep": 10**8})}, r"keep is 100000000"),
        ({"decoder": Choice("multinomial", {"total": 10**8})}, r"total is 100000000"),
    ],
)
def test_a_number_with_which_no_run_could_be_loaded_is_refused(options, said):
    data = load_data(RNG.integers(0, 5, (60, 6)), preprocessing=AsIs())
    with pytest.raises(InputError, match=said):
        build_vae(data, **{"latent_dim": 4, **options})


def test_two_levels_for_data_of_more_are_refused_by_their_number():
    images = RNG.integers(0, 256, (60, 5, 6)).astype(np.uint8)
    with pytest.raises(InputError, match=r"of 2 levels, .* 256\. .*--decoder.levels 256"):
        build_vae(load_data(images), decoder=Choice("pixel-cnn"))
    vae = build_vae(
        load_data(images, preprocessing=AsIs()), decoder=Choice("pixel-cnn", {"levels": 256})
    )
    assert vae.decoder.levels == 256
    with pytest.raises(InputError, match=r"as they are .*AsIs.*--decoder.levels 256"):
        inspect_program(vae, load_data(images).train.head(3))

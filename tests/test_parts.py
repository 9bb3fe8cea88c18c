"""Parts as plain data, and what single parts promise beyond the common contract."""

import copy
import json
import math
import random
import warnings

import mpmath
import pytest
import torch
from torch import nn

from pyrovae.data import AsIs, Binarize, Dequantize, Standardize
from pyrovae.decoders import (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    GaussianDecoder,
    MultinomialDecoder,
)
from pyrovae.distributions import ContinuousBernoulli
from pyrovae.encoders import GaussianEncoder, IAFEncoder
from pyrovae.errors import InputError
from pyrovae.models import VAE
from pyrovae.networks import MLP, ConvNet, DeconvNet
from pyrovae.parts import PARTS, from_config, to_config
from pyrovae.priors import DiagonalGaussian, GaussianMixture, StandardNormal, VampPrior


def image_vae():
    return VAE(
        GaussianMixture(2, components=3),
        GaussianDecoder(DeconvNet((2,), (1, 5, 7), coarse=2, channels=(3,)), learn_scale=True),
        GaussianEncoder(ConvNet((1, 5, 7), (4,), channels=(2,), strides=(2,), activation=nn.GELU)),
        beta=0.5,
    )


def again(value):
    return from_config(json.loads(json.dumps(to_config(value))))


# ── Configurations ───────────────────────────────────────────────────────────────────────────


def test_a_part_that_is_built_again_advises_nothing():
    encoder = IAFEncoder(MLP((3,), IAFEncoder.net_shape(2)))
    with pytest.warns(UserWarning, match="steps will be slow"):
        prior = VampPrior(encoder, (3,), components=2)
    again(prior)  # warnings are errors here


def test_a_whole_vae_is_built_again_from_plain_data():
    vae = image_vae()
    built = again(vae)
    built.load_state_dict(vae.state_dict())
    assert to_config(built) == to_config(vae)
    assert built.beta == 0.5
    assert built.encoder.net.activation is nn.GELU
    x = torch.randn(3, 1, 5, 7)
    torch.testing.assert_close(built.encoder(x).mean, vae.encoder(x).mean)


@pytest.mark.parametrize(
    "preprocessing",
    [AsIs(), Binarize("dynamic", maximum=16.0), Dequantize(32)],
    ids=lambda p: type(p).__name__,
)
def test_a_preprocessing_is_built_again(preprocessing):
    assert again(preprocessing) == preprocessing


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_standardisation_keeps_its_moments_bit_for_bit(shape):
    raw = torch.randn(7, 3) * 100 if shape else torch.randn(7, 1, 4, 4)
    standard = Standardize.of(raw)
    built = again(standard)
    assert standard.mean.shape == shape
    assert torch.equal(built.mean, standard.mean)
    assert torch.equal(built.scale, standard.scale)
    assert torch.equal(built.apply(raw, None), standard.apply(raw, None))


class Twice(nn.Module):
    """A part that is given another, as a VampPrior is given the encoder."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second


def test_a_module_in_two_places_is_one_again(monkeypatch):
    monkeypatch.setitem(PARTS, "Twice", Twice)
    net = MLP((2,), (2,), hidden=())
    built = again(Twice([net, StandardNormal(2)], Twice(net, StandardNormal(2))))
    assert built.second.first is built.first[0]
    assert built.second.second is not built.first[1]


@pytest.mark.parametrize("place", [["second"], ["nowhere"], [], "first", 3, [{}]], ids=str)
def test_a_place_that_holds_no_module_is_refused(place, monkeypatch):
    monkeypatch.setitem(PARTS, "Twice", Twice)
    with pytest.raises(InputError, match="refers to"):
        from_config({"part": "Twice", "first": {"same": place}, "second": 1})


class Stranger(nn.Module):
    def __init__(self, latent_dim=2):
        super().__init__()
        self.latent_dim = latent_dim


class Heir(StandardNormal):
    """A subclass is another class: its own arguments and behaviour would be lost."""


class ReLU(nn.ReLU):
    """Not torch's."""


class Namesake(nn.Module):
    """A stranger under the name of one of ours."""


Namesake.__name__ = "StandardNormal"


@pytest.mark.parametrize(
    "value",
    [Stranger(), Heir(2), Namesake(), MLP((2,), (3,), activation=ReLU), nn.Linear(2, 3), print],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_ours_is_refused_by_name(value):
    parts = VAE(StandardNormal(2), BernoulliDecoder(nn.Identity()), nn.Identity())
    parts.prior = value if isinstance(value, nn.Module) else parts.prior
    for refused in (value, [value]):
        with pytest.raises(InputError, match="not one of pyrovae's own parts"):
            to_config(refused)
    with pytest.raises(InputError, match="program="):
        to_config(parts)


def test_a_number_that_is_not_built_again_is_not_described():
    with pytest.raises(InputError, match=r"total is 100000000, more than any part's"):
        to_config(MultinomialDecoder(MLP((2,), (3,)), total=10**8))


@pytest.mark.parametrize(
    "config",
    [
        {"part": "Stranger"},
        {"part": "os.system", "command": "true"},
        {"part": "torch.nn.Linear", "in_features": 1, "out_features": 1},
        {"part": "__import__"},
        {"part": None},
        {"part": ["MLP"]},
        {},
        {"latent_dim": 2},
        {"type": "Linear"},
        {"type": "Module"},
        {"type": {}},
    ],
    ids=str,
)
def test_a_name_that_is_in_no_table_is_refused(config):
    for wrapped in (config, {"part": "GaussianEncoder", "net": config}):
        with pytest.raises(InputError, match="no part of pyrovae"):
            from_config(wrapped)


@pytest.mark.parametrize(
    "config",
    [
        {"part": "StandardNormal"},
        {"part": "StandardNormal", "latent_dim": 2, "extra": 1},
        {"part": "StandardNormal", "latent_dim": "two"},
        {"part": "StandardNormal", "latent_dim": -1},
        {"part": "Binarize", "mode": "sometimes"},
        {"part": "GaussianDecoder", "net": None, "scale": -1.0},
        {"part": "GaussianDecoder", "net": None, "scale": "wide"},
        {"part": "MLP", "in_shape": None, "out_shape": [2]},
        {"part": "MLP", "in_shape": [2], "out_shape": [2], "activation": "ReLU"},
        {"part": "ConvNet", "in_shape": [1, 4], "out_shape": [2]},
        {"part": "ConvNet", "in_shape": [1, 4, 4], "out_shape": [2], "strides": [0, 1, 1, 1]},
        {"part": "ConvNet", "in_shape": [1, 4, 4], "out_shape": [2], "strides": [1]},
        {"part": "Standardize", "mean": {"tensor": "zero"}, "scale": {"tensor": 1.0}},
        {"part": "Standardize", "mean": {"tensor": [[1.0], []]}, "scale": {"tensor": 1.0}},
    ],
    ids=str,
)
def test_arguments_that_a_part_does_not_take_are_refused(config):
    with pytest.raises(InputError, match="cannot be built"):
        from_config(config)


def nodes_of(config):
    """Every list and mapping of a configuration."""
    if isinstance(config, dict | list):
        yield config
        for value in config.values() if isinstance(config, dict) else config:
            yield from nodes_of(value)


ODD = [None, True, -1, 0, 3, 1.5, "", "MLP", [], {}, [0], {"part": "MLP"}, {"tensor": "x"}]


def test_a_mutated_configuration_builds_a_part_or_is_refused():
    draw = random.Random(0)
    original = json.loads(json.dumps(to_config(image_vae())))
    refused = 0
    for _ in range(300):
        config = copy.deepcopy(original)
        node = draw.choice([node for node in nodes_of(config) if node])
        key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
        if draw.random() < 0.2:
            del node[key]
        else:
            node[key] = copy.deepcopy(draw.choice(ODD))
        try:
            with warnings.catch_warnings(action="ignore"):
                from_config(config)
        except InputError:
            refused += 1
    assert 50 < refused < 300


def test_the_table_names_classes_by_their_own_names():
    assert all(cls.__name__ == name for name, cls in PARTS.items())
    assert all(cls.__module__.startswith("pyrovae.") for cls in PARTS.values())


# ── Decoders ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("scale", "floor"), [(0.0, 0.0), (-1.0, 0.0), (1e-4, 1e-3), (1e-3, 1e-3)])
def test_a_scale_that_is_not_above_its_floor_is_refused(scale, floor):
    options = {"learn_scale": True, "min_scale": floor} if floor else {}
    with pytest.raises(InputError, match="not above"):
        GaussianDecoder(MLP((2,), (3,)), scale=scale, **options)


def test_a_fixed_scale_is_no_parameter_and_no_floor_holds_it():
    decoder = GaussianDecoder(nn.Identity(), scale=1e-5)
    assert list(decoder.parameters()) == []
    assert decoder(torch.zeros(2)).base_dist.scale.tolist() == pytest.approx([1e-5] * 2)


def test_a_learned_scale_keeps_a_gradient_below_its_floor():
    decoder = GaussianDecoder(nn.Identity(), learn_scale=True)
    with torch.no_grad():
        decoder.shared_scale.log_value.fill_(-15.0)
    decoder(torch.zeros(2)).log_prob(torch.ones(2)).backward()
    assert decoder.shared_scale.log_value.grad.isfinite()
    assert decoder.shared_scale.log_value.grad > 0


def test_a_net_that_does_not_say_its_shape_emits_vectors():
    assert BernoulliDecoder(nn.Linear(2, 5))(torch.zeros(3, 2)).event_shape == (5,)


def test_a_mixtures_components_start_apart():
    prior = GaussianMixture(2, components=5)
    assert len(prior.loc.unique(dim=0)) == 5
    assert torch.equal(prior().mixture_distribution.probs, torch.full((5,), 0.2))


def test_a_learned_prior_starts_as_the_standard_normal():
    z = torch.randn(7, 3)
    torch.testing.assert_close(DiagonalGaussian(3)().log_prob(z), StandardNormal(3)().log_prob(z))


# ── The continuous Bernoulli over all logits, against mpmath ─────────────────────────────────

NEAR_HALF = [
    sign * size for size in (0.0, 1e-7, 1e-4, 3e-3, 4.1e-3, 0.02, 0.3) for sign in (1, -1)
]
LOGITS = [*NEAR_HALF, *(float(logit) for logit in range(-100, 101, 4))]
every_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)], ids=str
)


def continuous_bernoulli(dtype):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    return logits, ContinuousBernoulliDecoder(nn.Identity())(logits[:, None])


def exact_log_density(logit, x):
    """log of exp(logit x) over its integral on [0, 1]."""
    with mpmath.workdps(60):
        logit = mpmath.mpf(logit)
        integral = mpmath.expm1(logit) / logit if logit else mpmath.mpf(1)
        return float(logit * x - mpmath.log(integral))


def exact_mean(logit):
    with mpmath.workdps(60):
        logit = mpmath.mpf(logit)
        return float(-1 / mpmath.expm1(-logit) - 1 / logit) if logit else 0.5


def exact_variance(logit):
    with mpmath.workdps(60):
        logit = mpmath.mpf(logit)
        half = logit / 2
        return float(1 / logit**2 - 1 / (4 * mpmath.sinh(half) ** 2)) if logit else 1 / 12


@every_precision
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_the_continuous_bernoulli_is_normalised_at_any_logit(x, dtype, tolerance):
    logits, density = continuous_bernoulli(dtype)
    expected = [exact_log_density(logit, x) for logit in logits.tolist()]
    found = density.log_prob(torch.full((len(LOGITS), 1), x, dtype=dtype)).tolist()
    assert found == pytest.approx(expected, abs=tolerance, rel=1e-6)


@every_precision
def test_the_continuous_bernoullis_mean_is_right_at_any_logit(dtype, tolerance):
    logits, density = continuous_bernoulli(dtype)
    expected = [exact_mean(logit) for logit in logits.tolist()]
    assert density.mean[:, 0].tolist() == pytest.approx(expected, abs=tolerance)


@every_precision
def test_the_continuous_bernoullis_variance_is_right_at_any_logit(dtype, tolerance):
    logits, density = continuous_bernoulli(dtype)
    expected = [exact_variance(logit) for logit in logits.tolist()]
    assert density.variance[:, 0].tolist() == pytest.approx(expected, abs=tolerance)


@every_precision
def test_the_continuous_bernoullis_gradient_is_its_residual_at_any_logit(dtype, tolerance):
    """The derivative of log p(x) by the logit is x minus the mean."""
    logits, density = continuous_bernoulli(dtype)
    density.log_prob(torch.full((len(LOGITS), 1), 0.3, dtype=dtype)).sum().backward()
    expected = [0.3 - exact_mean(logit) for logit in logits.tolist()]
    assert logits.grad.isfinite().all()
    assert logits.grad.tolist() == pytest.approx(expected, abs=tolerance)


def test_the_continuous_bernoulli_checks_its_support_expanded_as_before():
    density = ContinuousBernoulli(torch.zeros(3))
    for checking in (density, density.expand((2, 3))):
        with pytest.raises(ValueError, match="support"):
            checking.log_prob(torch.full((3,), 7.0))


def test_draws_of_the_continuous_bernoulli_have_its_mean():
    logits = torch.tensor([-60.0, -8.0, 0.0, 2.0, 60.0])
    draws = ContinuousBernoulliDecoder(nn.Identity())(logits).sample((20000,))
    expected = [exact_mean(logit) for logit in logits.tolist()]
    error = 5 * draws.std(0).max().item() / math.sqrt(20000)
    assert draws.mean(0).tolist() == pytest.approx(expected, abs=error)
    assert ((draws >= 0) & (draws <= 1)).all()

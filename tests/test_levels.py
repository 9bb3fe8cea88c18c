"""Likelihoods of levels: whole numbers whose probabilities are computed one by one."""

import math
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from pyrovae.data import AsIs, load_data
from pyrovae.decoders import (
    CategoricalDecoder,
    DiscretizedLogisticDecoder,
    DiscretizedLogisticMixtureDecoder,
)
from pyrovae.distributions import Categorical, DiscretizedLogistic
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.generation import sample
from pyrovae.models import VAE
from pyrovae.networks import MLP, Centred
from pyrovae.priors import StandardNormal
from pyrovae.supports import check_support

LOCS = [-1e3, -40.0, -0.5, 0.0, 3.2, 127.5, 254.5, 255.0, 300.0, 1e4]
SCALES = [0.1, 0.5, 3.0, 60.0, 2e3]
every_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str
)


def grid(dtype):
    return torch.tensor(list(product(LOCS, SCALES)), dtype=dtype).T


def column(levels, dtype=torch.float32):
    return torch.arange(levels, dtype=dtype)[:, None]


def exact_logistic(x, loc, scale, levels):
    with mpmath.workdps(400):
        loc, scale = mpmath.mpf(loc), mpmath.mpf(scale)

        def below(edge):
            return 1 / (1 + mpmath.exp((loc - edge) / scale))

        half = mpmath.mpf(1) / 2
        high = below(x + half) if x < levels - 1 else 1
        low = below(x - half) if x > 0 else 0
        return float(mpmath.log(high - low))


# ── One discretised logistic ─────────────────────────────────────────────────────────────────


@every_precision
def test_all_levels_sum_to_one_wherever_the_logistic_lies(dtype, tolerance):
    loc, scale = grid(dtype)
    for levels in (2, 17, 256):
        found = DiscretizedLogistic(loc, scale, levels=levels).log_prob(column(levels, dtype))
        torch.testing.assert_close(
            found.logsumexp(0), torch.zeros_like(loc), atol=20 * tolerance, rtol=0
        )


@pytest.mark.parametrize("x", [0, 1, 100, 254, 255])
def test_a_level_far_in_a_tail_keeps_its_digits(x):
    loc, scale = torch.tensor(
        [(m, s) for m in (-20.0, 0.0, 128.0, 260.0) for s in (0.5, 3.0, 60.0)]
    ).T
    found = DiscretizedLogistic(loc, scale).log_prob(torch.tensor(float(x))).tolist()
    pairs = zip(loc.tolist(), scale.tolist(), strict=True)
    expected = [exact_logistic(x, *pair, 256) for pair in pairs]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("x", [0.0, 1.0, 128.0, 254.0, 255.0])
def test_extreme_outputs_leave_numbers_and_gradients_finite(x):
    outputs = list(product([-1e5, -1.0, 0.0, 1.0, 1e5], repeat=2))
    output = torch.tensor(outputs).requires_grad_()
    log_prob = DiscretizedLogisticDecoder(nn.Identity())(output).log_prob(torch.full((25, 1), x))
    assert log_prob.isfinite().all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), output)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("levels", [2, 256])
def test_the_mean_is_the_expected_level(levels):
    loc, scale = grid(torch.float64)
    distribution = DiscretizedLogistic(loc, scale, levels=levels)
    x = column(levels, torch.float64)
    expected = (distribution.log_prob(x).exp() * x).sum(0)
    torch.testing.assert_close(distribution.mean, expected)


def test_the_network_speaks_of_a_scale_from_minus_one_to_one():
    output = torch.tensor([-1.0, 0.0, 1.0, -2.0, -2.0, -2.0])
    found = DiscretizedLogisticDecoder(nn.Identity())(output).base_dist
    torch.testing.assert_close(found.loc, torch.tensor([0.0, 127.5, 255.0]))
    scale = torch.full((3,), 127.5 * math.exp(-2))
    torch.testing.assert_close(found.scale, scale, rtol=0.02, atol=0)
    output = torch.tensor([0.0, 0.0, -1e4, 1e4])
    found = DiscretizedLogisticDecoder(nn.Identity(), levels=17)(output).base_dist
    torch.testing.assert_close(found.scale, torch.tensor([0.1, 160.0]), rtol=1e-2, atol=0)


# ── Draws ────────────────────────────────────────────────────────────────────────────────────


def chi_square_score(draws, probabilities):
    """By how many standard deviations Pearson's statistic is above its mean."""
    counts = torch.bincount(draws.long(), minlength=len(probabilities)).double()
    expected = len(draws) * probabilities.double()
    likely = expected > 5
    statistic = ((counts - expected).square() / expected)[likely].sum().item()
    # What is left of the unlikely cells, as one.
    rest, rest_counts = expected[~likely].sum().item(), counts[~likely].sum().item()
    freedom = int(likely.sum()) - 1
    if rest > 5:
        statistic, freedom = statistic + (rest_counts - rest) ** 2 / rest, freedom + 1
    else:
        assert rest_counts < 30
    return (statistic - freedom) / math.sqrt(2 * max(freedom, 1))


@pytest.mark.parametrize(
    ("loc", "scale"), [(3.2, 0.4), (-3.0, 2.0), (128.0, 20.0), (254.0, 9.0), (90.0, 500.0)]
)
def test_draws_are_as_frequent_as_they_are_probable(loc, scale):
    distribution = DiscretizedLogistic(torch.tensor(loc), torch.tensor(scale))
    draws = distribution.sample((50000,))
    assert chi_square_score(draws, distribution.log_prob(column(256)[:, 0]).exp()) < 4.5


def test_levels_of_a_categorical_are_real_numbers_with_a_mean():
    distribution = Categorical(logits=torch.randn(3, 6))
    draws = distribution.sample((50000,))
    assert draws.dtype == torch.float32
    x = column(6)
    p = distribution.log_prob(x).exp()
    torch.testing.assert_close(distribution.mean, (p * x).sum(0))
    variance = (p * (x - distribution.mean) ** 2).sum(0)
    torch.testing.assert_close(distribution.variance, variance)
    for row in range(3):
        assert chi_square_score(draws[:, row], p[:, row]) < 4.5


# ── Decoders ─────────────────────────────────────────────────────────────────────────────────


def test_maps_of_a_categorical_are_level_by_level():
    output = torch.randn(4, 4 * 2, 5, 7)
    decoder = CategoricalDecoder(MLP((3,), (8, 5, 7)), classes=4)
    decoder.net.forward = lambda z: output
    x = torch.randint(0, 4, (4, 2, 5, 7))
    expected = torch.zeros(4)
    for n, c, i, j in product(range(4), range(2), range(5), range(7)):
        logits = torch.stack([output[n, level * 2 + c, i, j] for level in range(4)])
        expected[n] += logits.log_softmax(0)[x[n, c, i, j]]
    torch.testing.assert_close(decoder(torch.zeros(4, 3)).log_prob(x.float()), expected)


def pixel_mixture(maps, components, channels, x, levels):
    """PixelCNN++'s probability of one pixel, from its maps, with Python's own numbers."""
    half, places = (levels - 1) / 2, 1 + 2 * channels + channels * (channels - 1) // 2
    maps = np.array(maps).reshape(components, places)
    weights = np.exp(maps[:, 0]) / np.exp(maps[:, 0]).sum()
    total = 0.0
    for k in range(components):
        loc, log_scale = maps[k, 1 : 1 + channels], maps[k, 1 + channels : 1 + 2 * channels]
        slopes = np.tanh(maps[k, 1 + 2 * channels :])
        centred = [value / half - 1 for value in x]
        shift = [
            sum(slopes[c * (c - 1) // 2 + b] * centred[b] for b in range(c))
            for c in range(channels)
        ]
        low, high = math.log(0.1 / half), math.log(20.0)
        p = weights[k]
        for c in range(channels):
            floored = low + math.log1p(math.exp(log_scale[c] - low))
            scale = math.exp(high - math.log1p(math.exp(high - floored)))
            p *= math.exp(
                exact_logistic(x[c], half * (1 + loc[c] + shift[c]), half * scale, levels)
            )
        total += p
    return math.log(total)


@pytest.mark.parametrize(
    ("shape", "places"), [((3, 2, 2), 10), ((4, 1, 2), 15), ((1, 2, 3), 3), ((4,), 3)]
)
def test_a_mixture_is_pixelcnns(shape, places):
    components, channels = 2, shape[0] if len(shape) == 3 else 1
    pixels = shape[1:] if len(shape) == 3 else shape
    net_shape = DiscretizedLogisticMixtureDecoder.net_shape(shape, components=components)
    assert net_shape == (components * places, *pixels)

    output = torch.randn(net_shape, dtype=torch.float64)
    decoder = DiscretizedLogisticMixtureDecoder(
        MLP((3,), net_shape), shape, components=components, levels=256
    )
    decoder.net.forward = lambda z: output
    x = torch.randint(0, 256, shape)
    expected = 0.0
    for place in product(*map(range, pixels)):
        maps = output[(slice(None), *place)].tolist()
        values = x[(slice(None), *place)].tolist() if len(shape) == 3 else [x[place].item()]
        expected += pixel_mixture(maps, components, channels, values, 256)
    found = decoder(torch.zeros(3, dtype=torch.float64)).log_prob(x.double())
    assert found.item() == pytest.approx(expected, rel=1e-10)


def mixture(shape, components, levels, **options):
    net_shape = DiscretizedLogisticMixtureDecoder.net_shape(shape, components=components)
    decoder = DiscretizedLogisticMixtureDecoder(
        MLP((3,), net_shape), shape, components=components, levels=levels
    )
    decoder.net.forward = lambda z: 2 * torch.randn(net_shape, **options)
    return decoder(torch.zeros(3, **options))


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((3, 1, 1), 6), ((1, 1, 2), 16), ((2,), 16), ((4, 1, 1), 3), ((3, 2, 1), 2)],
)
def test_a_mixture_sums_to_one_over_all_images(shape, levels):
    likelihood = mixture(shape, 3, levels, dtype=torch.float64)
    images = torch.tensor(list(product(range(levels), repeat=math.prod(shape))))
    p = likelihood.log_prob(images.reshape(-1, *shape).double()).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("shape", "levels"), [((3, 1, 1), 4), ((2,), 8), ((3, 1, 2), 2)])
def test_images_are_drawn_as_often_as_they_are_probable(shape, levels):
    """All of a pixel's channels together: a component drawn anew for each would be found."""
    likelihood = mixture(shape, 3, levels)
    size = math.prod(shape)
    images = torch.tensor(list(product(range(levels), repeat=size)))
    p = likelihood.log_prob(images.reshape(-1, *shape).float()).exp()
    draws = likelihood.sample((50000,)).reshape(-1, size)
    index = (draws * levels ** torch.arange(size - 1, -1, -1)).sum(-1)
    assert chi_square_score(index, p) < 4.5


def test_a_mixture_of_one_channel_has_a_mean_and_one_of_colours_is_shown_by_a_draw():
    for shape in ((2,), (1, 1, 2)):
        likelihood = mixture(shape, 3, 16, dtype=torch.float64)
        images = torch.tensor(list(product(range(16), repeat=2))).reshape(-1, *shape).double()
        p = likelihood.log_prob(images).exp().reshape(-1, *[1] * len(shape))
        torch.testing.assert_close(likelihood.mean, (p * images).sum(0))

    decoder = DiscretizedLogisticMixtureDecoder(MLP((2,), (100, 2, 2)), (3, 2, 2))
    encoder = GaussianEncoder(Centred(MLP((3, 2, 2), (4,))))
    vae = VAE(StandardNormal(2), decoder, encoder)
    x = load_data(colour_images(), preprocessing=AsIs()).train.head(2)
    assert sample(vae, x, 3).shown_by == "draw"


@pytest.mark.parametrize("value", [0.0, 1.0, 255.0])
def test_a_mixture_is_finite_whatever_its_network_says(value):
    for size in (1.0, 1e4):
        output = (size * torch.randn(20, 10, 2, 2)).requires_grad_()
        decoder = DiscretizedLogisticMixtureDecoder(MLP((2,), (10, 2, 2)), (3, 2, 2), components=1)
        decoder.net.forward = lambda z, output=output: output
        log_prob = decoder(torch.zeros(20, 2)).log_prob(torch.full((20, 3, 2, 2), value))
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), output)[0].isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: CategoricalDecoder(nn.Identity(), classes=1),
        lambda: DiscretizedLogisticDecoder(nn.Identity(), levels=1),
        lambda: DiscretizedLogisticMixtureDecoder(nn.Identity(), (3,), levels=0),
        lambda: DiscretizedLogisticMixtureDecoder(nn.Identity(), (3,), components=0),
    ],
)
def test_too_few_levels_or_components_are_refused(make):
    with pytest.raises(InputError, match=r"(levels|components|classes) is"):
        make()


# ── From bytes to bits per dim ───────────────────────────────────────────────────────────────


def colour_images():
    return np.random.default_rng(0).integers(0, 256, (30, 3, 2, 2)).astype(np.uint8)


def test_bytes_left_as_they_are_are_the_levels_and_their_bits_need_no_cells():
    data = load_data(colour_images(), preprocessing=AsIs())
    raw = data.test.raw(torch.arange(3)).x
    assert raw.dtype == torch.uint8
    assert torch.equal(data.test.head(3).x, raw.float())

    encoder = GaussianEncoder(Centred(MLP((3, 2, 2), (4,))))
    decoder = CategoricalDecoder(MLP((2,), (256 * 3, 2, 2), hidden=()))
    nn.init.zeros_(decoder.net.layers[0].weight)
    nn.init.zeros_(decoder.net.layers[0].bias)
    vae = VAE(StandardNormal(2), decoder, encoder)
    nn.init.zeros_(encoder.net.net.layers[-1].weight)
    found = evaluate(vae, data, num_samples=5)
    assert found.log_likelihood.tolist() == pytest.approx([-12 * math.log(256)] * 3)
    uniform = 8 - found.log_evidence.add(12 * math.log(256)).mean().item() / 12 / math.log(2)
    assert found.bits_per_dim == pytest.approx(uniform)


@pytest.mark.parametrize("value", [-1.0, 0.5, 256.0])
def test_what_is_no_level_is_refused(value):
    encoder = GaussianEncoder(MLP((5,), (4,)))
    vae = VAE(StandardNormal(2), DiscretizedLogisticDecoder(MLP((2,), (10,))), encoder)
    x = torch.full((4, 5), 255.0)
    x[1, 2] = value
    words = rf"IntegerInterval\(lower_bound=0, upper_bound=255\).*column 2 \({value:g}\)"
    with pytest.raises(InputError, match=words):
        check_support(vae, load_batches(x))


def load_batches(x):
    return load_data(torch.cat([x] * 5), preprocessing=AsIs()).train.in_order(20)


def test_levels_enter_a_network_centred():
    net = MLP((3,), (4,))
    x = torch.tensor([0.0, 8.0, 16.0])
    expected = net(torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(Centred(net, levels=17)(x), expected)
    assert (Centred(net).in_shape, Centred(net).out_shape) == ((3,), (4,))

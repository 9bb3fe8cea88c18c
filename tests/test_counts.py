"""Likelihoods of counts against mpmath, where torch's own lose their digits."""

import math
from itertools import product

import mpmath
import pytest
import torch
from pyro.distributions import ZeroInflatedDistribution as PyroZeroInflated
from torch import nn
from torch.distributions import Multinomial as TorchMultinomial
from torch.distributions import NegativeBinomial as TorchNegativeBinomial

from pyrovae.data import Examples, load_data
from pyrovae.data.preprocessing import AsIs
from pyrovae.decoders import (
    MultinomialDecoder,
    NegativeBinomialDecoder,
    PoissonDecoder,
    ZeroInflatedNegativeBinomialDecoder,
)
from pyrovae.distributions import Multinomial, NegativeBinomial, Poisson, ZeroInflated
from pyrovae.distributions.stirling import stirling_error
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.generation import sample
from pyrovae.models import VAE
from pyrovae.networks import MLP, Log1p
from pyrovae.priors import StandardNormal
from pyrovae.supports import check_support

COUNTS = [0.0, 1.0, 2.0, 15.0, 16.0, 17.0, 1000.0, 99700.0, 1e5]
MEANS = [1e-6, 0.3, 7.0, 1000.0, 1e5, 1e6]
CONCENTRATIONS = [1e-3, 0.5, 3.0, 16.0, 1000.0, 1e5, 1e7]
every_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str
)


def every(*axes, dtype):
    return torch.tensor(list(product(*axes)), dtype=dtype).T


def lists(*tensors):
    return zip(*(tensor.tolist() for tensor in tensors), strict=True)


def agree(draws, distribution):
    """Whether draws have the distribution's mean and variance, within 4.5 standard errors."""
    mean, variance = distribution.mean.double(), distribution.variance.double()
    squares = (draws.double() - mean).square()
    errors = torch.stack([variance, squares.var(0)]) / len(draws)
    found = torch.stack([draws.double().mean(0) - mean, squares.mean(0) - variance])
    return (found / errors.sqrt()).abs().max() < 4.5


# ── Exact values ─────────────────────────────────────────────────────────────────────────────


@every_precision
def test_stirlings_error_is_right_on_both_sides_of_its_seam(dtype, tolerance):
    x = torch.tensor([1e-6, 0.1, 1.0, 2.5, 7.99, 8.0, 8.01, 16.0, 300.0, 1e7], dtype=dtype)
    with mpmath.workdps(50):
        expected = [
            float(
                mpmath.loggamma(n + 1)
                - (n + mpmath.mpf(1) / 2) * mpmath.log(n)
                + n
                - mpmath.log(2 * mpmath.pi) / 2
            )
            for n in map(mpmath.mpf, x.tolist())
        ]
    assert stirling_error(x).tolist() == pytest.approx(expected, abs=10 * tolerance)


@every_precision
def test_the_derivative_of_stirlings_error_is_right_on_its_seam_too(dtype, tolerance):
    x = torch.tensor([0.1, 1.0, 7.99, 8.0, 8.01, 16.0, 300.0], dtype=dtype, requires_grad=True)
    (found,) = torch.autograd.grad(stirling_error(x).sum(), x)
    with mpmath.workdps(50):
        expected = [
            float(mpmath.digamma(n + 1) - mpmath.log(n) - 1 / (2 * n))
            for n in map(mpmath.mpf, x.tolist())
        ]
    assert found.tolist() == pytest.approx(expected, abs=10 * tolerance)


def exact_poisson(x, mean):
    with mpmath.workdps(50):
        x, mean = mpmath.mpf(x), mpmath.mpf(mean)
        return float(x * mpmath.log(mean) - mean - mpmath.loggamma(x + 1))


def exact_negative_binomial(x, theta, logits):
    with mpmath.workdps(50):
        x, theta, logits = mpmath.mpf(x), mpmath.mpf(theta), mpmath.mpf(logits)
        log_choices = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        share = 1 / (1 + mpmath.exp(-logits))
        return float(log_choices + theta * mpmath.log(1 - share) + x * mpmath.log(share))


@every_precision
def test_poisson_probabilities_keep_their_digits(dtype, tolerance):
    x, mean = every(COUNTS, MEANS, dtype=dtype)
    expected = [exact_poisson(*numbers) for numbers in lists(x, mean)]
    found = Poisson(mean).log_prob(x).tolist()
    # The last digit of log μ, times how far x is from μ.
    slack = (tolerance * (x - mean).abs() * mean.log().abs().clamp(min=1)).tolist()
    for ours, exact, more in zip(found, expected, slack, strict=True):
        assert ours == pytest.approx(exact, abs=20 * tolerance + more, rel=tolerance)


@every_precision
def test_negative_binomial_probabilities_keep_their_digits(dtype, tolerance):
    x, mean, theta = every(COUNTS, MEANS, CONCENTRATIONS, dtype=dtype)
    logits = mean.log() - theta.log()
    expected = [exact_negative_binomial(*numbers) for numbers in lists(x, theta, logits)]
    found = NegativeBinomial(theta, logits=logits).log_prob(x).tolist()
    for ours, exact, numbers in zip(found, expected, lists(x, mean, theta), strict=True):
        assert ours == pytest.approx(exact, abs=2000 * tolerance, rel=4 * tolerance), numbers


def test_a_likely_count_of_a_hundred_thousand_is_right_to_a_thousandth_in_float32():
    x, mean = torch.tensor([99700.0, 1e5]), torch.tensor(1e5)
    expected = [exact_poisson(number, 1e5) for number in x.tolist()]
    assert Poisson(mean).log_prob(x).tolist() == pytest.approx(expected, abs=1e-3)
    torchs_own = torch.distributions.Poisson(mean).log_prob(x).tolist()
    assert torchs_own != pytest.approx(expected, abs=1e-2)


def test_probabilities_sum_to_one():
    x = torch.arange(3000.0, dtype=torch.float64)
    poisson = Poisson(torch.tensor(40.0).double())
    binomial = NegativeBinomial(torch.tensor(0.7).double(), logits=torch.tensor(3.0).double())
    gate = torch.tensor(-0.3).double()
    inflated = ZeroInflated(binomial, gate_logits=gate)
    for distribution in (poisson, binomial, inflated):
        assert distribution.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_further_zeros_are_as_likely_after_a_draw_as_before():
    counts = Poisson(torch.tensor([2.0, 2.0, 2.0]))
    inflated = ZeroInflated(counts, gate_logits=torch.tensor([-15.0, 0.5, 14.7]))
    x = torch.tensor([[0.0], [3.0]])
    before = inflated.log_prob(x)
    draws, gate = inflated.sample((20000,)), inflated.gate_logits.sigmoid()
    torch.testing.assert_close(inflated.mean, 2 * (1 - gate))
    assert (draws == 0).float().mean(0)[1].item() == pytest.approx(
        gate[1].item() + (1 - gate[1].item()) * math.exp(-2), abs=0.02
    )
    torch.testing.assert_close(inflated.log_prob(x), before, rtol=0, atol=0)
    torch.testing.assert_close(inflated.expand((5, 3)).log_prob(x[0]), before[0].expand(5, 3))


def test_the_moments_of_what_is_nearly_always_a_further_zero_keep_their_digits():
    gate, rate = torch.tensor([25.0, 14.7, 0.5, -15.0]), torch.tensor(2.0)
    found = ZeroInflated(Poisson(rate), gate_logits=gate)
    share = (-gate.double()).sigmoid()
    torch.testing.assert_close(found.mean.double(), 2 * share, rtol=1e-6, atol=0)
    variance = share * (2 + (1 - share) * 4)
    torch.testing.assert_close(found.variance.double(), variance, rtol=1e-6, atol=0)
    theirs = PyroZeroInflated(Poisson(rate.double()), gate_logits=gate.double()).variance
    torch.testing.assert_close(theirs[2:], variance[2:])


@pytest.mark.parametrize("total", [0, 1, 4])
def test_a_multinomial_sums_to_one_over_the_events_of_any_total(total):
    events = [x for x in product(range(total + 1), repeat=3) if sum(x) == total]
    x = torch.tensor(events, dtype=torch.float64)
    logits = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)
    found = Multinomial(7, logits=logits).log_prob(x)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(found, TorchMultinomial(total, logits=logits).log_prob(x))


def test_a_multinomial_of_twenty_thousand_genes_keeps_its_digits():
    logits = 2 * torch.randn(3, 20000)
    x = torch.poisson(1e7 * logits.softmax(-1))
    found = Multinomial(1, logits=logits).log_prob(x)
    expected = TorchMultinomial(1, logits=logits.double(), validate_args=False)
    expected = expected.log_prob(x.double())
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_multinomial_survives_a_feature_that_it_rules_out():
    logits = torch.tensor([0.0, -200.0], requires_grad=True)
    log_prob = Multinomial(1, logits=logits).log_prob(torch.tensor([3.0, 2.0]))
    log_prob.backward()
    assert log_prob.item() == pytest.approx(math.log(10) - 400, rel=1e-5)
    assert logits.grad.tolist() == pytest.approx([-2.0, 2.0], rel=1e-5)


# ── Gradients ────────────────────────────────────────────────────────────────────────────────


def test_gradients_are_those_of_the_textbook_formulas():
    x = torch.tensor([0.0, 1.0, 5.0, 16.0, 300.0], dtype=torch.float64)
    for theta in (0.01, 2.0, 50.0):
        numbers = torch.tensor([[theta] * 5, [-1.0, 0.0, 0.5, 2.0, 3.0]], dtype=torch.float64)
        numbers = numbers.requires_grad_()
        ours = NegativeBinomial(numbers[0], logits=numbers[1]).log_prob(x).sum()
        theirs = TorchNegativeBinomial(numbers[0], logits=numbers[1]).log_prob(x).sum()
        found, expected = (torch.autograd.grad(f, numbers)[0] for f in (ours, theirs))
        torch.testing.assert_close(found, expected)

    rate = torch.rand(5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(Poisson(rate).log_prob(x).sum(), rate)
    torch.testing.assert_close(found, (x / rate - 1).detach())

    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(Multinomial(1, logits=logits).log_prob(x), logits)
    torch.testing.assert_close(found, (x - x.sum() * logits.softmax(-1)).detach())


DECODERS = {
    "poisson": (PoissonDecoder, 1),
    "negative binomial": (lambda net: NegativeBinomialDecoder(net, (1,)), 1),
    "zero-inflated": (lambda net: ZeroInflatedNegativeBinomialDecoder(net, (1,)), 2),
}
every_decoder = pytest.mark.parametrize(("make", "outputs"), DECODERS.values(), ids=DECODERS)


@every_decoder
@pytest.mark.parametrize("log_concentration", [-50.0, 0.0, 50.0])
def test_numbers_and_gradients_are_finite_whatever_the_network_says(
    make, outputs, log_concentration
):
    decoder = make(nn.Identity())
    for parameter in decoder.parameters():
        parameter.data.fill_(log_concentration)
    for sign in (-1, 1):
        output = torch.tensor([-1e4, -5.0, 0.0, 11.5, 13.8, 1e4])[:, None]
        output = torch.cat([output, sign * output], -1)[:, :outputs].requires_grad_()
        for x in (0.0, 1.0, 1e5):
            log_prob = decoder(output).log_prob(torch.full((6, 1), x))
            assert log_prob.isfinite().all()
            inputs = (output, *decoder.parameters())
            assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob.sum(), inputs))


# ── Decoders ─────────────────────────────────────────────────────────────────────────────────


def test_networks_say_the_log_of_the_mean():
    output = torch.tensor([0.3, -2.0, 5.0])
    for decoder in (PoissonDecoder(nn.Identity()), NegativeBinomialDecoder(nn.Identity(), (3,))):
        torch.testing.assert_close(decoder(output).mean, output.exp())


def test_the_variance_of_a_negative_binomial_is_that_of_its_concentration():
    decoder = NegativeBinomialDecoder(nn.Identity(), (2,))
    decoder.concentration.log_value.data.copy_(torch.tensor([0.5, 4.0]).log())
    mean = torch.tensor([3.0, 20.0])
    likelihood = decoder(mean.log())
    expected = mean + mean**2 / torch.tensor([0.5, 4.0])
    torch.testing.assert_close(likelihood.variance, expected, rtol=1e-3, atol=0)
    assert agree(likelihood.sample((50000,)), likelihood)


def test_concentrations_start_at_one_for_every_feature():
    decoder = NegativeBinomialDecoder(nn.Identity(), (2, 3))
    torch.testing.assert_close(decoder.concentration(), torch.ones(2, 3))


SHAPE = (3, 2)
SIZED = [PoissonDecoder, NegativeBinomialDecoder, ZeroInflatedNegativeBinomialDecoder]


def sized(cls, **options):
    net = MLP((2,), cls.net_shape(SHAPE))
    return cls(net, **options) if cls is PoissonDecoder else cls(net, SHAPE, **options)


@pytest.mark.parametrize("cls", SIZED)
def test_a_size_is_shared_out_by_the_softmax(cls):
    decoder = sized(cls)
    net = decoder.net
    z, size = torch.randn(3, 2), torch.tensor([0.0, 10.0, 1e6])
    likelihood = decoder(z, size)
    eta, gates = net(z)[:, :3].flatten(1), net(z)[:, 3:].flatten(1)
    expected = size[:, None] * eta.softmax(-1)
    if cls is ZeroInflatedNegativeBinomialDecoder:
        expected = expected * (1 - gates.sigmoid())
    torch.testing.assert_close(likelihood.mean.flatten(1), expected, rtol=1e-4, atol=1e-6)
    log_prob = likelihood.log_prob(torch.zeros(3, *SHAPE))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.parametrize("cls", SIZED)
def test_the_last_dimension_of_a_latent_may_be_the_size(cls):
    decoder, plain = sized(cls, latent_size=True), sized(cls)
    plain.load_state_dict(decoder.state_dict(), strict=False)
    decoder.size.loc.data.fill_(2.0)
    decoder.size.log_scale.data.fill_(-1.0)
    z, x = torch.randn(4, 3), torch.poisson(torch.full((4, *SHAPE), 2.0))
    size = (2.0 + math.exp(-1.0) * z[:, 2]).exp()
    torch.testing.assert_close(decoder(z).log_prob(x), plain(z[:, :2], size).log_prob(x))
    with pytest.raises(InputError, match="takes it from the latent"):
        decoder(z, size)


@pytest.mark.parametrize("cls", SIZED)
def test_latent_sizes_start_at_those_of_examples(cls):
    x = torch.poisson(torch.full((50, *SHAPE), 9.0) * torch.linspace(0.5, 4, 50)[:, None, None])
    totals = x.sum((1, 2)).log()
    x[0, 0, 0] = totals[0] = math.nan
    totals[0] = x[0].nansum().log()
    decoder = sized(cls, latent_size=True)
    assert decoder.start_at(x) is decoder
    assert decoder.size.loc.item() == pytest.approx(totals.mean().item())
    assert decoder.size.log_scale.exp().item() == pytest.approx(totals.std(correction=0).item())
    assert sized(cls).start_at is None


def test_equal_and_empty_examples_have_sizes_too():
    decoder = sized(PoissonDecoder, latent_size=True).start_at(torch.zeros(5, *SHAPE))
    assert decoder.size.loc.item() == 0
    assert decoder.size.log_scale.exp().item() == pytest.approx(0.01)


def test_further_zeros_are_those_of_the_gate():
    decoder = ZeroInflatedNegativeBinomialDecoder(nn.Identity(), (1,))
    output = torch.tensor([1.2, 0.4])
    plain = NegativeBinomialDecoder(nn.Identity(), (1,))(output[:1])
    gate, zero, three = output[1].sigmoid(), torch.zeros(1), torch.tensor([3.0])
    expected = (gate + (1 - gate) * plain.log_prob(zero).exp()).log()
    torch.testing.assert_close(decoder(output).log_prob(zero), expected)
    expected = (1 - gate).log() + plain.log_prob(three)
    torch.testing.assert_close(decoder(output).log_prob(three), expected)
    assert agree(decoder(output).sample((50000,)), decoder(output))


def test_draws_have_the_moments_of_their_likelihoods():
    poisson = PoissonDecoder(nn.Identity())(torch.tensor([-1.0, 2.0, 6.0]))
    assert agree(poisson.sample((50000,)), poisson)
    multinomial = MultinomialDecoder(nn.Identity(), total=20)(torch.tensor([-1.0, 2.0, 1.0]))
    draws = multinomial.sample((20000,))
    assert agree(draws, multinomial)
    assert (draws.sum(-1) == 20).all()


def test_a_model_of_the_users_own_passes_the_size():
    """The same program, whether a batch of sizes stands in its plate or a particle more."""
    decoder = NegativeBinomialDecoder(MLP((2,), (5,)), (5,))
    x = torch.poisson(torch.full((7, 5), 9.0))
    z = torch.randn(4, 7, 2)
    together = decoder(z, x.sum(-1)).log_prob(x)
    alone = decoder(z[2, 3], x[3].sum()).log_prob(x[3])
    assert together.shape == (4, 7)
    torch.testing.assert_close(together[2, 3], alone)


@pytest.mark.parametrize("value", [-1.0, 0.5])
@pytest.mark.parametrize("make", [PoissonDecoder, MultinomialDecoder])
def test_what_is_no_count_is_refused(make, value):
    encoder = GaussianEncoder(MLP((5,), (4,)))
    vae = VAE(StandardNormal(2), make(MLP((2,), (5,))), encoder)
    x = torch.ones(4, 5)
    x[1, 2] = value
    words = rf"outside IntegerGreaterThan.*example 1, column 2 \({value:g}\).*AsIs"
    with pytest.raises(InputError, match=words):
        check_support(vae, Examples(x).in_order(4))


def test_a_multinomial_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="total is 0"):
        MultinomialDecoder(nn.Identity(), total=0)
    with pytest.raises(InputError, match="vector"):
        MultinomialDecoder(MLP((2,), (1, 4, 4)))


def test_counts_are_loaded_as_they_are_and_drawn_as_counts():
    counts = torch.poisson(torch.rand(60, 5) * 1000)
    data = load_data(counts, preprocessing=AsIs())
    raw = data.train.raw(torch.arange(3)).x
    assert torch.equal(data.train.head(3).x, raw.float())
    encoder = GaussianEncoder(Log1p(MLP((5,), (4,))))
    vae = VAE(StandardNormal(2), MultinomialDecoder(MLP((2,), (5,)), total=50), encoder)
    drawn = sample(vae, data.train.head(2), 4, draw=True)
    assert drawn.x.sum(-1).tolist() == [50.0] * 4
    assert sample(vae, data.train.head(2), 4).shown_by == "mean"


def test_counts_enter_a_network_as_logarithms():
    net = MLP((5,), (4,))
    x = torch.tensor([0.0, 1.0, 10.0, 1e3, 1e5])
    assert torch.equal(Log1p(net)(x), net((1 + x).log()))
    assert (Log1p(net).in_shape, Log1p(net).out_shape) == ((5,), (4,))

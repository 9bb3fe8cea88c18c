"""Likelihoods of real data against mpmath, and every likelihood in a whole VAE."""

import math
from copy import deepcopy

import mpmath
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyrovae import CompiledSVI
from pyrovae.data import AsIs, Dequantize, Examples
from pyrovae.decoders import (
    BetaDecoder,
    CategoricalDecoder,
    DiscretizedLogisticDecoder,
    DiscretizedLogisticMixtureDecoder,
    GaussianDecoder,
    LaplaceDecoder,
    MultinomialDecoder,
    NegativeBinomialDecoder,
    PixelwiseGaussianDecoder,
    PoissonDecoder,
    StudentTDecoder,
    TabularDecoder,
    ZeroInflatedNegativeBinomialDecoder,
)
from pyrovae.distributions import Beta, ContinuousBernoulli, StudentT
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE
from pyrovae.networks import MLP, Centred, Log1p
from pyrovae.priors import StandardNormal
from pyrovae.supports import check_support

every_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-13)], ids=str
)


def agree(draws, distribution):
    """Whether draws have the distribution's mean and variance, within 4.5 standard errors."""
    mean, variance = distribution.mean.double(), distribution.variance.double()
    squares = (draws.double() - mean).square()
    errors = torch.stack([variance, squares.var(0)]) / len(draws)
    found = torch.stack([draws.double().mean(0) - mean, squares.mean(0) - variance])
    return (found / errors.sqrt()).abs().max() < 4.5


# ── The beta ─────────────────────────────────────────────────────────────────────────────────

SHAPES = [
    (a, b)
    for a in (1e-4, 0.3, 1.0, 7.0, 15.9, 16.1, 5e4, 1e6)
    for b in (1e-4, 0.3, 1.0, 15.9, 5e4, 1e6)
]
POINTS = [1e-9, 1e-3, 0.3, 0.5, 0.501, 1 - 2**-12, 1 - 2**-24]


def exact_beta(x, a, b):
    with mpmath.workdps(50):
        x, a, b = (mpmath.mpf(number) for number in (x, a, b))
        constant = mpmath.loggamma(a + b) - mpmath.loggamma(a) - mpmath.loggamma(b)
        return float(constant + (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log(1 - x))


@every_precision
def test_the_beta_is_right_for_any_concentration(dtype, tolerance):
    a, b = torch.tensor(SHAPES, dtype=dtype).T
    for x in torch.tensor(POINTS, dtype=dtype):
        found = Beta(a, b).log_prob(x.expand_as(a)).tolist()
        expected = [exact_beta(x.item(), *shape) for shape in torch.stack([a, b]).T.tolist()]
        # An error of x's or of the mean's last digit, seen at the slope of the density.
        assert found == pytest.approx(expected, rel=10 * tolerance, abs=100 * tolerance)


def test_a_beta_as_narrow_as_a_level_keeps_its_digits_in_float32():
    a = torch.tensor([3e4, 5e4, 99000.0])
    b = 1e5 - a
    x = a / 1e5 + torch.tensor([0.001, 0.0, -0.0005])
    expected = [exact_beta(*numbers) for numbers in torch.stack([x, a, b]).T.tolist()]
    assert Beta(a, b).log_prob(x).tolist() == pytest.approx(expected, abs=1e-3)


def test_the_beta_has_the_gradients_of_torchs_own():
    numbers = torch.rand(3, 50, dtype=torch.float64) * torch.tensor([[90.0], [90.0], [1.0]])
    a, b, x = numbers.requires_grad_()
    ours = torch.autograd.grad(Beta(a, b).log_prob(x).sum(), numbers)[0]
    theirs = torch.distributions.Beta(a, b).log_prob(x).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, numbers)[0])


@pytest.mark.parametrize("size", [1e3, 1.0])
def test_a_beta_decoder_is_finite_whatever_its_network_says(size):
    output = torch.tensor([[a, b] for a in (-size, size) for b in (-size, size)])
    output = output.requires_grad_()
    for x in (2**-33, 0.5, 1 - 2**-24):
        log_prob = BetaDecoder(nn.Identity())(output).log_prob(torch.full((4, 1), x)).sum()
        assert log_prob.isfinite()
        assert torch.autograd.grad(log_prob, output)[0].isfinite().all()
    draws = BetaDecoder(nn.Identity())(output).sample((1000,))
    assert ((draws > 0) & (draws < 1)).all()


def test_the_network_of_a_beta_says_its_mean_and_its_concentration():
    output = torch.tensor([0.4, -1.0, 1.5, 3.0])
    density = BetaDecoder(nn.Identity())(output)
    mean = output[:2].sigmoid()
    torch.testing.assert_close(density.mean, mean, atol=1e-5, rtol=0)
    variance = mean * (1 - mean) / (output[2:].exp() + 1)
    torch.testing.assert_close(density.variance, variance, rtol=0.02, atol=0)
    assert agree(density.sample((20000,)), density)


def test_dequantised_bytes_are_within_the_support_of_a_beta_and_its_ends_are_not():
    vae = small_vae(BetaDecoder(MLP((2,), (10,), hidden=(4,))))
    edges = torch.tensor([[0, 255, 0, 255, 3]], dtype=torch.uint8).expand(4, 5)
    for noise in (0.0, 1 - 2**-24):
        x = Dequantize().apply(edges, torch.full(edges.shape, noise))
        check_support(vae, Examples(x).in_order(5))
    for end in (0.0, 1.0):
        x = torch.full((4, 5), 0.5)
        x[2, 3] = end
        words = rf"OpenInterval.*Beta.*example 2, column 3 \({end:.0f}\).*dequantise"
        with pytest.raises(InputError, match=words):
            check_support(vae, Examples(x).in_order(5))


# ── The continuous Bernoulli ─────────────────────────────────────────────────────────────────


def test_a_continuous_bernoulli_has_finite_gradients_for_every_logit():
    logits = torch.tensor([-1e30, -1e6, -0.1, 0.0, 1e-3, 20.0, 1e6, 1e30], requires_grad=True)
    density = ContinuousBernoulli(logits)
    for number in (density.log_prob(torch.tensor(0.3)), density.mean, density.variance):
        assert torch.autograd.grad(number.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("end", [0.2, 1e-3])
def test_a_continuous_bernoulli_has_its_gradient_also_where_its_series_end(end):
    """It is that of the numbers just below."""
    found = []
    for logit in (end, -end, end * (1 - 1e-9), -end * (1 - 1e-9)):
        logits = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
        density = ContinuousBernoulli(logits)
        torch.manual_seed(0)
        numbers = (
            density.log_prob(torch.tensor(0.3).double()),
            density.mean,
            density.variance,
            density.rsample(),
        )
        found.append(torch.stack([torch.autograd.grad(n, logits)[0] for n in numbers]))
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("logit", [-2.0, -9e-4, 0.0, 9e-4, 2.0])
def test_draws_of_a_continuous_bernoulli_move_with_their_mean(logit):
    logits = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    density = ContinuousBernoulli(logits)
    draws = density.rsample((20000,))
    assert agree(draws.detach(), density)
    (moved,) = torch.autograd.grad(draws.mean(), logits)
    (expected,) = torch.autograd.grad(density.mean, logits)
    assert moved.item() == pytest.approx(expected.item(), rel=0.02)


# ── Laplace and Student ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("decoder", "output"),
    [
        (BetaDecoder(nn.Identity()), [0.3, 1.5]),
        (LaplaceDecoder(nn.Identity(), scale=0.7), [0.4]),
        (StudentTDecoder(nn.Identity(), df=3.0, scale=0.7), [0.4]),
    ],
    ids=lambda part: type(part).__name__,
)
def test_densities_integrate_to_one(decoder, output):
    density = decoder.double()(torch.tensor(output, dtype=torch.float64))
    axis, weights = np.polynomial.legendre.leggauss(300)
    if isinstance(decoder, BetaDecoder):
        # The ends stretched, where it may be steep.
        weights, x = weights * 0.75 * (1 - axis**2), 0.5 + 0.75 * axis - 0.25 * axis**3
    else:
        # The whole line.
        weights, x = weights * (1 + axis**2) / (1 - axis**2) ** 2, axis / (1 - axis**2)
    p = density.log_prob(torch.as_tensor(x)[:, None]).exp()
    assert (torch.as_tensor(weights) @ p).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.7, 30.0])
def test_a_laplace_density_is_that_of_the_formula(scale):
    decoder = LaplaceDecoder(nn.Identity(), scale=scale)
    loc, x = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.5, 2.0, -30.0])
    expected = (-(x - loc).abs() / scale - math.log(2 * scale)).sum()
    torch.testing.assert_close(decoder(loc).log_prob(x), expected)


def exact_student(x, df):
    with mpmath.workdps(50):
        x, df = mpmath.mpf(x), mpmath.mpf(df)
        constant = mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2)
        constant -= mpmath.log(df * mpmath.pi) / 2
        return float(constant - (df + 1) / 2 * mpmath.log1p(x**2 / df))


@every_precision
def test_students_t_is_right_for_any_degrees_of_freedom(dtype, tolerance):
    df = torch.tensor([0.01, 0.5, 1.0, 4.0, 31.9, 32.1, 1e3, 1e6, 1e9], dtype=dtype)
    for x in torch.tensor([0.0, 0.3, -5.0, 1e3], dtype=dtype):
        expected = [exact_student(x.item(), number) for number in df.tolist()]
        found = StudentT(df, torch.tensor(0.0).to(df), torch.tensor(1.0).to(df)).log_prob(x)
        assert found.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_a_student_decoder_moves_and_stretches_the_density():
    decoder = StudentTDecoder(nn.Identity(), df=5.0, scale=0.2)
    found = decoder(torch.tensor([3.0])).log_prob(torch.tensor([3.5]))
    assert found.item() == pytest.approx(exact_student(2.5, 5.0) - math.log(0.2), rel=1e-5)


@pytest.mark.parametrize("decoder", [LaplaceDecoder, lambda net: StudentTDecoder(net, df=12.0)])
def test_draws_of_heavy_tails_have_their_moments(decoder):
    likelihood = decoder(nn.Identity())(torch.tensor([-3.0, 0.0, 5.0]))
    assert agree(likelihood.sample((20000,)), likelihood)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: LaplaceDecoder(nn.Identity(), **options),
        lambda **options: StudentTDecoder(nn.Identity(), **options),
        lambda **options: StudentTDecoder(nn.Identity(), learn_df=True, **options),
    ],
)
def test_shared_numbers_start_where_they_are_told_and_stay_above_their_floor(make):
    decoder = make(scale=0.2, learn_scale=True, min_scale=0.1)
    assert decoder(torch.zeros(2)).base_dist.scale.tolist() == pytest.approx([0.2] * 2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(-50.0)
    assert decoder(torch.zeros(2)).base_dist.scale.tolist() == pytest.approx([0.1] * 2)
    if decoder.state_dict().keys() > {"shared_scale.log_value"}:
        assert decoder(torch.zeros(2)).base_dist.df.tolist() == pytest.approx([1.0] * 2)
    for options in ({"scale": 0.1}, {"scale": -1.0}):
        with pytest.raises(InputError, match=r"scale .* is not above 0\.1.*lower min_scale"):
            make(learn_scale=True, min_scale=0.1, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianDecoder(nn.Identity(), scale=math.inf), r"scale is infinite"),
        (lambda: StudentTDecoder(nn.Identity(), df=math.inf), r"df is infinite"),
        (
            lambda: LaplaceDecoder(nn.Identity(), learn_scale=True, min_scale=0.0),
            r"min_scale is 0\.0\. Give a finite number above 0",
        ),
        (
            lambda: PixelwiseGaussianDecoder(nn.Identity(), min_scale=5.0, max_scale=1.0),
            r"between the min_scale 5\.0 and the max_scale 1\.0",
        ),
        (lambda: PixelwiseGaussianDecoder(nn.Identity(), min_scale=-5.0), r"min_scale -5\.0"),
        (lambda: PixelwiseGaussianDecoder(nn.Identity(), max_scale=math.inf), r"max_scale inf"),
        (
            lambda: TabularDecoder(nn.Identity(), columns=(0,), min_scale=0.0),
            r"min_scale 0\.0 and the max_scale 100\.0",
        ),
    ],
)
def test_scales_without_bounds_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_degrees_of_freedom_that_are_not_above_their_floor_are_refused():
    larger = r"is not above 0\.0\. Give a larger df\.$"
    fixed = r"is not above 1\.0\. Give a larger df, or do not learn it\.$"
    for df, learned, said in ((0.0, False, larger), (1.0, True, fixed)):
        with pytest.raises(InputError, match=said):
            StudentTDecoder(nn.Identity(), df=df, learn_df=learned)
    assert StudentTDecoder(nn.Identity(), df=0.5)(torch.zeros(2)).base_dist.df[0] == 0.5


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("decoder", [LaplaceDecoder, StudentTDecoder])
def test_far_out_values_leave_gradients_finite(decoder, learned):
    made = decoder(nn.Identity(), scale=0.01, learn_scale=learned)
    loc = torch.tensor([-1e6, 0.0, 1e6], requires_grad=True)
    made(loc).log_prob(torch.zeros(3)).backward()
    assert loc.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (PixelwiseGaussianDecoder, (3,)),
        (PixelwiseGaussianDecoder, (3, 2, 2)),
        (BetaDecoder, (3,)),
        (DiscretizedLogisticDecoder, (3,)),
        (lambda net: ZeroInflatedNegativeBinomialDecoder(net, (2,)), (3,)),
    ],
)
def test_an_odd_output_is_no_two_parameters_of_every_entry(make, shape):
    with pytest.raises(InputError, match=r"puts out 3 numbers for two .*net_shape"):
        make(MLP((2,), shape))(torch.zeros(4, 2))


# ── Every likelihood in a VAE ────────────────────────────────────────────────────────────────

D, X, IMAGE = 2, (5,), (3, 2, 3)


def small_vae(decoder, x_shape=X, wrap=lambda net: net):
    encoder = GaussianEncoder(wrap(MLP(x_shape, (2 * D,), hidden=(4,))))
    return VAE(StandardNormal(D), decoder, encoder)


def up(*shape):
    return MLP((D,), shape, hidden=(4,))


def counts(*shape):
    return torch.poisson(torch.rand(shape) * 50)


def levels(*shape):
    return torch.randint(0, 256, shape).float()


LIKELIHOODS = {
    "beta": lambda: (small_vae(BetaDecoder(up(10))), torch.rand(12, *X).clamp(1e-6)),
    "laplace": lambda: (small_vae(LaplaceDecoder(up(5), learn_scale=True)), torch.randn(12, *X)),
    "student": lambda: (
        small_vae(StudentTDecoder(up(5), learn_df=True, learn_scale=True)),
        torch.randn(12, *X),
    ),
    "gaussian": lambda: (
        small_vae(GaussianDecoder(up(*IMAGE), learn_scale=True), IMAGE),
        torch.randn(12, *IMAGE),
    ),
    "categorical": lambda: (
        small_vae(CategoricalDecoder(up(256 * 5)), wrap=Centred),
        levels(12, *X),
    ),
    "logistic": lambda: (
        small_vae(DiscretizedLogisticDecoder(up(6, 2, 3)), IMAGE, Centred),
        levels(12, *IMAGE),
    ),
    "logistic mixture": lambda: (
        small_vae(
            DiscretizedLogisticMixtureDecoder(up(20, 2, 3), IMAGE, components=2), IMAGE, Centred
        ),
        levels(12, *IMAGE),
    ),
    "poisson": lambda: (small_vae(PoissonDecoder(up(5)), wrap=Log1p), counts(12, *X)),
    "negative binomial": lambda: (
        small_vae(NegativeBinomialDecoder(up(5), X), wrap=Log1p),
        counts(12, *X),
    ),
    "of latent sizes": lambda: (
        small_vae(PoissonDecoder(MLP((D - 1,), X), latent_size=True), wrap=Log1p),
        counts(12, *X),
    ),
    "zero-inflated": lambda: (
        small_vae(ZeroInflatedNegativeBinomialDecoder(up(10), X), wrap=Log1p),
        counts(12, *X) * (torch.rand(12, *X) < 0.5),
    ),
    "multinomial": lambda: (small_vae(MultinomialDecoder(up(5)), wrap=Log1p), counts(12, *X)),
}
every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


def losses(make, vae, x):
    pyro.clear_param_store()
    vae = deepcopy(vae)
    svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(num_particles=2))
    found = []
    for step in range(5):
        torch.manual_seed(step)
        found.append(float(svi.step(x)))
    return found, svi


@every_likelihood
def test_a_vae_trains_alike_under_pyro_and_compiled(name):
    vae, x = LIKELIHOODS[name]()
    expected, _ = losses(SVI, vae, x)
    found, svi = losses(lambda *args: CompiledSVI(*args, engine="graph"), vae, x)
    assert svi.engines == ["graph"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found)) == 5


@every_likelihood
def test_a_vae_is_evaluated_with_particles_on_the_left(name):
    vae, x = LIKELIHOODS[name]()
    examples = Examples(x, preprocessing=AsIs())
    assert inspect_program(vae, examples.head(3)).vectorizes
    found = evaluate(vae, examples, num_samples=10)
    assert found.log_evidence.isfinite().all()
    discrete = vae.decoder(torch.zeros(D)).support.is_discrete
    assert (found.bits_per_dim is not None) == discrete


@every_likelihood
def test_parameters_of_each_particle_act_as_in_a_loop(name):
    """A Bayesian decoder's: the values of sites outside a plate of 12, under 4 particles."""
    vae, x = LIKELIHOODS[name]()
    decoder, z = vae.decoder, torch.randn(12, D)
    drawn = {k: v + 0.1 * torch.randn(4, 1, *v.shape) for k, v in decoder.named_parameters()}
    found = torch.func.functional_call(decoder, drawn, z).log_prob(x)
    assert found.shape == (4, 12)
    for k in range(4):
        alone = {key: value[k, 0] for key, value in drawn.items()}
        expected = torch.func.functional_call(decoder, alone, z).log_prob(x)
        torch.testing.assert_close(found[k], expected)

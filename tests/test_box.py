"""An encoder over a box: its density, its draws, its KL and what it makes of a uniform prior."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64
from torch.distributions import kl_divergence

from pyrovae.bounds import ELBO
from pyrovae.decoders import BernoulliDecoder, GaussianDecoder
from pyrovae.distributions import Mixture, RelaxedBernoulli, StretchedBeta, exact_kl
from pyrovae.distributions.stretched_beta import MARGIN
from pyrovae.encoders import BetaEncoder, RelaxedBernoulliEncoder
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.models import VAE
from pyrovae.networks import MLP
from pyrovae.priors import RelaxedBernoulliPrior, StandardNormal, UniformPrior, VampPrior
from pyrovae.training import fit

CONCENTRATIONS = [(1.001, 1.001), (2.0, 5.0), (30.0, 1.5), (4000.0, 9000.0)]
every_shape = pytest.mark.parametrize(("alpha", "beta"), CONCENTRATIONS)


def stretched(alpha, beta, low=-2.0, high=0.5):
    return StretchedBeta(torch.as_tensor(alpha), torch.as_tensor(beta), low, high)


def grid(low, high, count=2_000_001):
    edges = torch.linspace(low, high, count, dtype=torch.float64)
    return (edges[1:] + edges[:-1]) / 2, (high - low) / (count - 1)


@every_shape
def test_a_stretched_beta_integrates_to_one_and_draws_agree(alpha, beta):
    with float64():
        found = stretched(alpha, beta)
    points, step = grid(-2.0, 0.5)
    density = found.log_prob(points).exp()
    assert (density.sum() * step).item() == pytest.approx(1, abs=1e-5)
    mean, square = (density * points).sum() * step, (density * points**2).sum() * step
    assert found.mean.item() == pytest.approx(mean.item(), abs=1e-5)
    assert found.variance.item() == pytest.approx((square - mean**2).item(), rel=1e-3)
    torch.manual_seed(0)
    draws = found.rsample((100_000,))
    assert abs(draws.mean() - mean) < 5 * found.variance.sqrt() / math.sqrt(len(draws))
    assert draws.var().item() == pytest.approx(found.variance.item(), rel=0.03)


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_kl_from_a_uniform_distribution_is_the_integral(alpha, beta, dtype):
    found = stretched(torch.tensor(alpha, dtype=dtype), torch.tensor(beta, dtype=dtype))
    prior = dist.Uniform(torch.tensor(-3.0, dtype=dtype), torch.tensor(1.0, dtype=dtype))
    points, step = grid(-2.0, 0.5)
    log_density = stretched(alpha, beta).log_prob(points)
    expected = (log_density.exp() * (log_density + math.log(4))).sum() * step
    kl = exact_kl(found, prior)
    assert kl.dtype == dtype
    assert kl.item() == pytest.approx(expected.item(), abs=1e-4)
    assert kl_divergence(found, dist.Uniform(-1.0, 1.0)) == math.inf


def test_draws_stay_within_the_box_and_its_ends_have_a_density():
    sharp = stretched(torch.tensor([1.0, 1e5]), torch.tensor([1e5, 1.0]))
    draws = sharp.sample((10_000,))
    assert sharp.support.check(draws).all()
    assert (draws > -2.0).all()
    assert (draws < 0.5).all()
    assert torch.isfinite(sharp.log_prob(draws)).all()
    assert torch.isfinite(sharp.log_prob(torch.tensor([[-2.0], [0.5]]))).all()
    nearest = (draws.sub(torch.tensor([-2.0, 0.5])).abs() / 2.5).amin()
    assert nearest >= MARGIN / 2


def test_a_collapsed_posterior_over_a_box_costs_nothing():
    encoder = BetaEncoder(MLP((4,), (6,), hidden=()))
    with torch.no_grad():
        weight, bias = encoder.parameters()
        weight.zero_()
        bias.fill_(-40.0)
    q = encoder(torch.randn(5, 4))
    kl = kl_divergence(q.base_dist, UniformPrior(3)().base_dist)
    assert (kl >= -1e-6).all()
    assert (kl < 1e-5).all()


@pytest.mark.parametrize("high", [1.0, math.inf, math.nan])
def test_an_empty_or_infinite_box_is_refused(high):
    with pytest.raises(InputError, match="is empty, or of no density"):
        BetaEncoder(MLP((4,), (6,)), low=1.0, high=high)


def test_a_uniform_prior_and_its_encoder_find_where_x_was():
    """x = 3 z + noise of 0.3, z uniform: the evidence is known, and the posterior on its way."""
    torch.manual_seed(0)
    z = torch.rand(2000, 1) * 2 - 1
    x = 3 * z + 0.3 * torch.randn(2000, 1)
    decoder = torch.nn.Linear(1, 1)
    with torch.no_grad():
        decoder.weight.fill_(3.0)
        decoder.bias.zero_()
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    encoder = BetaEncoder(MLP((1,), (2,), hidden=(32,)))
    vae = VAE(UniformPrior(1), GaussianDecoder(decoder, scale=0.3), encoder)
    bound, adam = ELBO(exact_kl=True), partial(torch.optim.Adam, lr=0.02)
    run = fit(vae, x, bound=bound, epochs=30, batch_size=100, optimizer=adam, progress=False)
    # p(x) of a uniform smeared by a Gaussian.
    normal = dist.Normal(0.0, 0.3)
    evidence = ((normal.cdf(x + 3) - normal.cdf(x - 3)) / 6).log().squeeze(-1)
    found = evaluate(run.program, x, num_samples=500)
    assert abs((found.log_evidence - evidence).mean()) < 0.02
    gap = (evidence - found.elbo).mean()
    assert 0 < gap < 0.1


@pytest.mark.parametrize(
    ("prior", "encoder", "remedy"),
    [
        (UniformPrior(3, low=0.0), RelaxedBernoulliEncoder, "BetaEncoder.*RelaxedBernoulliPrior"),
        (StandardNormal(3), RelaxedBernoulliEncoder, "GaussianEncoder.*RelaxedBernoulliPrior"),
        (RelaxedBernoulliPrior(3), BetaEncoder, "RelaxedBernoulliEncoder.*UniformPrior"),
    ],
)
def test_a_density_is_no_match_for_ends_that_have_a_probability(prior, encoder, remedy):
    """Of a relaxed bit the ends have one: its ratio to a density there would be none."""
    x = torch.rand(20, 6).round()
    options = {"low": 0.0} if encoder is BetaEncoder else {}
    made = encoder(MLP((6,), encoder.net_shape(3)), **options)
    vae = VAE(prior, BernoulliDecoder(MLP((3,), (6,))), made)
    with pytest.raises(InputError, match=f"one of another kind.*{remedy}"):
        fit(vae, x, epochs=1, progress=False)


def test_a_mixture_of_relaxed_bits_is_one_of_their_kind():
    """A VampPrior has its encoder's distributions."""
    x = torch.rand(20, 6).round()
    encoder = RelaxedBernoulliEncoder(MLP((6,), (3,)))
    vae = VAE(VampPrior(encoder, (6,), components=4), BernoulliDecoder(MLP((3,), (6,))), encoder)
    assert isinstance(vae.prior(), Mixture)
    assert isinstance(encoder(x).base_dist, RelaxedBernoulli)
    fit(vae, x, epochs=1, progress=False)

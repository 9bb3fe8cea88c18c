"""Closed forms: what must be exactly right, and the classic bugs of VAEs that it kills.

T1 to T7 are the tests of the same numbers in the mutation study; `test_mutants.py` plants the
bugs in the package and counts on this file to find them.
"""

import copy
import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LATENT_DIM, SCALE, AsGiven, float64, linear_gaussian, unclamp
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.ops.stats import fit_generalized_pareto
from torch import nn

from pyrovae import evaluation
from pyrovae.data import Batch, Binarize, Dequantize, Examples
from pyrovae.decoders import (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    GaussianDecoder,
    PixelwiseGaussianDecoder,
)
from pyrovae.encoders import GaussianEncoder
from pyrovae.evaluation import evaluate, pareto_k
from pyrovae.handlers import kl_weight
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE
from pyrovae.networks import MLP, ConvNet, DeconvNet
from pyrovae.priors import DiagonalGaussian, GaussianMixture, StandardNormal
from pyrovae.programs import evaluating, trace_pair
from pyrovae.structure import Structure
from pyrovae.terms import draw_terms, sum_terms

DECODERS = (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    GaussianDecoder,
    PixelwiseGaussianDecoder,
)

ONE_LATENT = Structure(
    latents=("z",),
    global_latents=(),
    observed=("x",),
    full_size=None,
    depth=1,
    vectorizes=True,
)


def terms_of(program, x, num_particles, structure=None):
    batch = Batch(x)
    structure = structure or inspect_program(program, batch)
    with evaluating(program):
        return draw_terms(program, batch, num_particles, structure)


def loss(elbo, program, x):
    pyro.set_rng_seed(1)
    return float(elbo.loss(program.model, program.guide, x))


def with_encoder(vae, make):
    """The same VAE, its encoder's Gaussian replaced by what `make` makes of it."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = vae.encoder

        def forward(self, x):
            return make(self.inner(x).base_dist)

    return VAE(vae.prior, vae.decoder, Encoder())


def five_errors(values):
    """Five standard errors of the mean over the first dimension."""
    return 5 * values.std(0) / math.sqrt(len(values))


def near(value, **tolerance):
    """`pytest.approx` of a tensor of one number."""
    return pytest.approx(float(value), **{k: float(v) for k, v in tolerance.items()})


@pytest.fixture
def exact():
    return linear_gaussian()


@pytest.fixture
def perturbed():
    return linear_gaussian(shift=0.4, stretch=math.exp(0.25))


# ── T1: at the exact posterior every particle weighs the evidence ────────────────────────────


def test_every_particle_weighs_the_evidence_at_the_exact_posterior(exact):
    weights = terms_of(exact.vae, exact.x, 11).log_weight
    torch.testing.assert_close(weights, exact.log_evidence.expand(11, 5), atol=1e-8, rtol=0)


@pytest.mark.parametrize("particles", [1, 11])
def test_trace_elbo_is_the_evidence_at_the_exact_posterior(exact, particles):
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1)
    assert -loss(elbo, exact.vae, exact.x) == near(exact.log_evidence.sum(), abs=1e-8)


# ── T2: so does the bound with the analytic KL ───────────────────────────────────────────────


@pytest.mark.parametrize("fixture", ["exact", "perturbed"])
def test_the_analytic_kl_bound_is_the_closed_form(fixture, request):
    case = request.getfixturevalue(fixture)
    elbo = TraceMeanField_ELBO(num_particles=1000, vectorize_particles=True)
    error = five_errors(terms_of(case.vae, case.x, 1000).log_likelihood.sum(1))
    assert -loss(elbo, case.vae, case.x) == near(case.elbo.sum(), abs=error)


def test_evaluation_is_the_evidence_at_the_exact_posterior(exact):
    found = evaluate(exact.vae, exact.examples, num_samples=7)
    for value in (found.elbo, found.log_evidence):
        torch.testing.assert_close(value, exact.log_evidence, atol=1e-8, rtol=0)
    assert found.log_evidence_error.max() < 1e-8


def test_evaluated_elbo_splits_into_likelihood_and_kl(perturbed):
    found = evaluate(perturbed.vae, perturbed.examples, num_samples=1000)
    weights = terms_of(perturbed.vae, perturbed.x, 1000)
    torch.testing.assert_close(found.elbo, found.log_likelihood - found.kl)
    assert (found.elbo - perturbed.elbo).abs().le(five_errors(weights.log_weight)).all()
    kl_error = five_errors(weights.log_posterior - weights.log_prior)
    assert (found.kl - perturbed.kl_per_dim.sum(1)).abs().le(kl_error).all()


def test_kl_per_dimension_is_the_closed_form(perturbed):
    found = evaluate(perturbed.vae, perturbed.examples, num_samples=2)
    torch.testing.assert_close(found.kl_per_dim["z"], perturbed.kl_per_dim.mean(0))


def test_kl_per_dimension_falls_back_on_draws_where_it_has_no_closed_form(perturbed):
    vae = with_encoder(perturbed.vae, lambda q: dist.Logistic(q.loc, q.scale).to_event(1))
    found = terms_of(vae, perturbed.x, 100)
    by_draws = (found.log_posterior - found.log_prior).mean(0)
    torch.testing.assert_close(found.kl_per_dim["z"].sum(1), by_draws)


# ── T3: the guide's sampler ──────────────────────────────────────────────────────────────────


def standardised_draws(case, count):
    with evaluating(case.vae):
        particles = pyro.plate("particles", count, dim=-2)
        _, guide_trace = trace_pair(case.vae, Batch(case.x), within=particles)
    return (guide_trace.nodes["z"]["value"] - case.loc) / case.scale


def test_guide_draws_have_the_moments_of_the_posterior(perturbed):
    z = standardised_draws(perturbed, 4000)
    assert z.mean(0).abs().max() < 5 / math.sqrt(4000)
    assert (z.square().mean(0) - 1).abs().max() < 5 * math.sqrt(2 / 4000)


def test_guide_draws_are_independent_over_rows_dimensions_and_particles(perturbed):
    columns = standardised_draws(perturbed, 4000).flatten(1)
    lagged = torch.cat([columns[1:], columns[:-1]], dim=1)
    apart = torch.corrcoef(lagged.T) - torch.eye(lagged.shape[1])
    assert apart.abs().max() < 5.5 / math.sqrt(4000)


def test_latent_means_are_those_of_the_guide(perturbed):
    found = evaluate(perturbed.vae, perturbed.examples, num_samples=2)
    torch.testing.assert_close(found.latent_means["z"], perturbed.loc)


def test_evaluation_draws_anew_for_every_batch(perturbed, monkeypatch):
    monkeypatch.setitem(evaluation.CHUNK, "cpu", perturbed.x[0].numel())
    twice = Examples(perturbed.x[:1].expand(2, -1), preprocessing=AsGiven())
    first, second = evaluate(perturbed.vae, twice, num_samples=3).log_likelihood
    assert first != second


# ── T4: batches ──────────────────────────────────────────────────────────────────────────────


def test_the_loss_of_a_batch_is_the_sum_over_its_examples(exact):
    vae, x = exact.vae, exact.x
    singles = [loss(Trace_ELBO(), vae, row[None]) for row in x]
    assert loss(Trace_ELBO(), vae, x) == near(sum(singles), abs=1e-8)


@pytest.mark.parametrize("batch_size", [1, 5, 13])
def test_dataset_metrics_do_not_depend_on_the_batch_size(monkeypatch, batch_size):
    case = linear_gaussian(13)
    monkeypatch.setitem(evaluation.CHUNK, "cpu", batch_size * case.x[0].numel())
    found = evaluate(case.vae, case.examples, num_samples=3)
    summary = found.summary()
    assert summary["elbo"] == near(case.log_evidence.mean())
    assert summary["log_evidence"] == near(case.log_evidence.mean())
    assert summary["elbo_se"] == near(case.log_evidence.std() / math.sqrt(13))
    assert summary["num_examples"] == 13
    torch.testing.assert_close(found.kl_per_dim["z"], case.kl_per_dim.mean(0))
    torch.testing.assert_close(found.latent_means["z"], case.loc)


@pytest.mark.parametrize("batch_size", [1, 5, 13])
def test_means_over_batches_are_means_over_examples(batch_size):
    case = linear_gaussian(13)
    with evaluating(case.vae):
        batches = map(Batch, case.x.split(batch_size))
        *sums, count = sum_terms(case.vae, batches, ONE_LATENT).tolist()
    assert count == 13
    elbo, log_likelihood, kl, global_kl = (total / count for total in sums)
    assert global_kl == 0
    assert elbo == near(case.log_evidence.mean())
    assert elbo == near(log_likelihood - kl)


@pytest.mark.parametrize("particles", [1, 2, 7, 8])
def test_evaluation_draws_as_many_particles_as_asked_in_any_chunks(monkeypatch, particles):
    case = linear_gaussian(5)
    monkeypatch.setitem(evaluation.CHUNK, "cpu", 3 * 5 * case.x[0].numel())
    found = evaluate(case.vae, case.examples, num_samples=particles)
    torch.testing.assert_close(found.log_evidence, case.log_evidence)
    torch.testing.assert_close(found.latent_means["z"], case.loc)


# ── T5: importance sampling ──────────────────────────────────────────────────────────────────


def test_the_bounds_are_ordered_and_tighten_to_the_evidence(perturbed):
    few = evaluate(perturbed.vae, perturbed.examples, num_samples=20)
    many = evaluate(perturbed.vae, perturbed.examples, num_samples=4000)
    assert (many.elbo < many.log_evidence - 0.05).all()
    assert (few.elbo < few.log_evidence).all()
    assert ((many.log_evidence - perturbed.log_evidence).abs() < 0.1).all()
    assert many.elbo.mean() < few.log_evidence.mean() < perturbed.log_evidence.mean() + 0.1


def test_one_particle_makes_the_importance_bound_the_elbo(perturbed):
    found = evaluate(perturbed.vae, perturbed.examples, num_samples=1)
    torch.testing.assert_close(found.log_evidence, found.elbo)
    assert found.log_evidence_error.isnan().all()


def test_the_reported_error_is_the_spread_over_independent_estimates(perturbed):
    copies = Examples(perturbed.x[:1].expand(400, -1), preprocessing=AsGiven())
    found = evaluate(perturbed.vae, copies, num_samples=200)
    reported = found.log_evidence_error.square().mean().sqrt()
    assert found.log_evidence.std() == near(reported, rel=0.2)
    assert found.monte_carlo_error == near(reported / 20)


# ── T6: every likelihood is normalised, and is the one that its docstring says ───────────────


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_bernoulli_probabilities_sum_to_one(shape):
    decoder = BernoulliDecoder(MLP((2,), shape, hidden=(3,)))
    x = torch.tensor(list(product([0.0, 1.0], repeat=6))).reshape(-1, *shape)
    assert decoder(torch.randn(2)).log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("decoder", "outputs", "low", "high"),
    [
        (ContinuousBernoulliDecoder, 2, 0.0, 1.0),
        (GaussianDecoder, 2, -20.0, 20.0),
        (PixelwiseGaussianDecoder, 4, -20.0, 20.0),
    ],
)
def test_densities_integrate_to_one(decoder, outputs, low, high):
    with float64():
        density = decoder(MLP((2,), (outputs,), hidden=(3,)))(torch.randn(2))
    axis, weights = np.polynomial.legendre.leggauss(300)
    axis = torch.as_tensor(low + (high - low) * (axis + 1) / 2)
    weights = torch.as_tensor(weights) * (high - low) / 2
    p = density.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(300, 300)
    assert (weights @ p @ weights).item() == pytest.approx(1, abs=1e-6)


def scale_of(decoder):
    return decoder(torch.zeros(2)).base_dist.scale


def test_a_learned_scale_starts_where_it_is_told_and_stays_above_its_floor():
    decoder = GaussianDecoder(MLP((2,), (3,)), scale=0.2, learn_scale=True, min_scale=0.1)
    assert scale_of(decoder).tolist() == pytest.approx([0.2] * 3)
    with torch.no_grad():
        decoder.shared_scale.log_value.fill_(-50.0)
    assert scale_of(decoder).tolist() == pytest.approx([0.1] * 3)


def test_pixelwise_scales_stay_between_their_floor_and_their_ceiling():
    net = MLP((2,), (4,), hidden=())
    decoder = PixelwiseGaussianDecoder(net, min_scale=1e-3, max_scale=50.0)
    with torch.no_grad():
        net.layers[0].bias.copy_(torch.tensor([0.0, 0.0, -1e4, 1e4]))
    assert scale_of(decoder).tolist() == pytest.approx([1e-3, 50.0], rel=1e-4)


def normal_log_density(x, loc, scale):
    return -(((x - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2


def clamped(value, low, high):
    floored = low + torch.log1p(torch.exp(value - low))
    return high - torch.log1p(torch.exp(high - floored))


def by_hand(decoder, output, x):
    """log p(x | z) as a sum over x, from the network's output for z."""
    if isinstance(decoder, PixelwiseGaussianDecoder):
        loc, log_scale = output[: len(x)], output[len(x) :]
        scale = clamped(log_scale, math.log(1e-3), math.log(1e3)).exp()
        return normal_log_density(x, loc, scale).sum()
    if isinstance(decoder, GaussianDecoder):
        return normal_log_density(x, output, torch.tensor(decoder.scale)).sum()

    probability = torch.sigmoid(output)
    relaxed = x * probability.log() + (1 - x) * torch.log1p(-probability)
    if isinstance(decoder, BernoulliDecoder):
        return relaxed.sum()
    normaliser = 2 * torch.atanh(1 - 2 * probability) / (1 - 2 * probability)
    return (relaxed + normaliser.log()).sum()


# ── T7: with every size a different prime, no axis passes for another ────────────────────────

ROWS, CHANNELS, HEIGHT, WIDTH, LATENTS, HIDDEN, PARTICLES = 3, 2, 5, 7, 11, 13, 17


def image_vae(decoder, convolutional):
    x_shape = (CHANNELS, HEIGHT, WIDTH)
    outputs = (2 * CHANNELS, HEIGHT, WIDTH) if decoder is PixelwiseGaussianDecoder else x_shape
    if convolutional:
        down = ConvNet(x_shape, (2 * LATENTS,), channels=(2, 3), strides=(1, 2), hidden=HIDDEN)
        up = DeconvNet((LATENTS,), outputs, coarse=3, channels=(2,), strides=(2,))
    else:
        down = MLP(x_shape, (2 * LATENTS,), hidden=(HIDDEN,))
        up = MLP((LATENTS,), outputs, hidden=(HIDDEN,))
    options = {"scale": 0.7} if decoder is GaussianDecoder else {}
    return VAE(DiagonalGaussian(LATENTS), decoder(up, **options), GaussianEncoder(down))


@pytest.mark.parametrize("convolutional", [False, True], ids=["mlp", "conv"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_terms_are_those_of_one_particle_and_one_example_alone(decoder, convolutional):
    with float64():
        vae = image_vae(decoder, convolutional)
        torch.nn.init.normal_(vae.prior.loc)
        torch.nn.init.normal_(vae.prior.log_scale)
        x = torch.rand(ROWS, CHANNELS, HEIGHT, WIDTH)
        x = x.round() if decoder is BernoulliDecoder else x
    structure = inspect_program(vae, Batch(x))
    assert structure.vectorizes

    pyro.set_rng_seed(2)
    found = terms_of(vae, x, PARTICLES, structure)
    pyro.set_rng_seed(2)
    with evaluating(vae):
        particles = pyro.plate("particles", PARTICLES, dim=-2)
        z = trace_pair(vae, Batch(x), within=particles)[1].nodes["z"]["value"]
        assert z.shape == (PARTICLES, ROWS, LATENTS)
        for k, n in ((0, 0), (4, 1), (16, 2)):
            likelihood = by_hand(vae.decoder, vae.decoder.net(z[k, n]), x[n])
            loc, log_scale = vae.encoder.net(x[n]).split(LATENTS)
            guide = normal_log_density(z[k, n], loc, clamped(log_scale, -7, 3.5).exp()).sum()
            prior = normal_log_density(z[k, n], vae.prior.loc, vae.prior.log_scale.exp()).sum()
            assert found.log_likelihood[k, n] == near(likelihood, rel=1e-5)
            assert found.log_prior[k, n] == near(prior)
            assert found.log_posterior[k, n] == near(guide)
    assert found.log_weight.shape == (PARTICLES, ROWS)
    assert found.kl_per_dim["z"].shape == found.latent_means["z"].shape == (ROWS, LATENTS)


@pytest.mark.parametrize("convolutional", [False, True], ids=["mlp", "conv"])
def test_pyros_loss_is_the_sum_of_the_terms(convolutional):
    with float64():
        vae = image_vae(BernoulliDecoder, convolutional)
        x = torch.rand(ROWS, CHANNELS, HEIGHT, WIDTH).round()
    structure = inspect_program(vae, Batch(x))
    pyro.set_rng_seed(1)
    weights = terms_of(vae, x, PARTICLES, structure).log_weight
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    assert -loss(elbo, vae, x) == near(weights.mean(0).sum())


def test_a_mixture_prior_is_the_weighted_sum_of_its_gaussians():
    prior = GaussianMixture(2, components=3)
    torch.nn.init.normal_(prior.logits)
    torch.nn.init.normal_(prior.log_scale)
    z = torch.randn(5, 1, 2)
    components = normal_log_density(z, prior.loc, prior.log_scale.exp()).sum(-1).exp()
    by_components = (torch.softmax(prior.logits, 0) * components).sum(-1).log()
    torch.testing.assert_close(prior().log_prob(z[:, 0]), by_components)


# ── Weights, scales and masks ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
def test_beta_weights_the_kl_alone(estimator):
    def loss_at(beta):
        case = linear_gaussian(shift=0.4, stretch=1.3, beta=beta)
        elbo = estimator(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
        return loss(elbo, case.vae, case.x)

    case = linear_gaussian(shift=0.4, stretch=1.3)
    terms = terms_of(case.vae, case.x, 1000)
    kl = terms.log_posterior - terms.log_prior
    error = 1e-8 if estimator is TraceMeanField_ELBO else five_errors(kl.sum(1))
    without, once, thrice = (loss_at(beta) for beta in (0.0, 1.0, 3.0))
    likelihood = terms.log_likelihood.sum(1)
    assert without == near(-likelihood.mean(), abs=five_errors(likelihood))
    assert once - without == near(case.kl_per_dim.sum(), abs=error)
    assert thrice - once == near(2 * (once - without))


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_a_weight_round_the_whole_program_multiplies_beta(estimator, weight, perturbed):
    def weighted(function):
        return kl_weight(weight)(function)

    parts = (perturbed.vae.prior, perturbed.vae.decoder, perturbed.vae.encoder)
    vae, by_beta = VAE(*parts, beta=3.0), VAE(*parts, beta=3.0 * weight)
    program = SimpleNamespace(model=weighted(vae.model), guide=weighted(vae.guide))
    expected = loss(estimator(), by_beta, perturbed.x)
    assert loss(estimator(), program, perturbed.x) == pytest.approx(expected)


def test_beta_has_a_gradient_of_zero_at_a_weight_of_zero(perturbed):
    vae = VAE(perturbed.vae.prior, perturbed.vae.decoder, perturbed.vae.encoder, beta=0.0)
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, perturbed.x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def assert_same_evaluation(one, other):
    for name in ("elbo", "log_likelihood", "kl", "log_evidence", "log_evidence_error"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("beta", [0.0, 7.0])
def test_evaluation_is_at_weight_one_whatever_beta(perturbed, beta):
    vae = VAE(perturbed.vae.prior, perturbed.vae.decoder, perturbed.vae.encoder, beta=beta)
    assert_same_evaluation(
        evaluate(vae, perturbed.examples, num_samples=5),
        evaluate(perturbed.vae, perturbed.examples, num_samples=5),
    )


def test_evaluation_leaves_scales_out(perturbed):
    vae = perturbed.vae
    scaled = SimpleNamespace(
        model=poutine.scale(vae.model, scale=3.0),
        guide=poutine.scale(vae.guide, scale=0.5),
        vae=vae,
    )
    assert_same_evaluation(
        evaluate(scaled, perturbed.examples, num_samples=5),
        evaluate(vae, perturbed.examples, num_samples=5),
    )


def test_evaluation_counts_masks(perturbed):
    observed = torch.tensor([True, False, True, True, False])
    vae = perturbed.vae

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            with poutine.mask(mask=observed):
                pyro.sample("x", vae.decoder(z), obs=x)

    masked = SimpleNamespace(model=model, guide=vae.guide, vae=vae)
    pyro.set_rng_seed(3)
    whole = terms_of(vae, perturbed.x, 4, ONE_LATENT)
    pyro.set_rng_seed(3)
    found = terms_of(masked, perturbed.x, 4, ONE_LATENT)
    torch.testing.assert_close(
        found.log_likelihood, torch.where(observed, whole.log_likelihood, 0.0)
    )
    torch.testing.assert_close(found.log_prior, whole.log_prior)


@pytest.mark.parametrize("inner_dim", [-1, -2])
def test_a_plate_inside_data_is_summed(perturbed, inner_dim):
    vae, x = perturbed.vae, perturbed.x
    data_dim = -3 - inner_dim

    def arrange(value):
        return value if inner_dim == -1 else value.mT

    def model(x):
        with pyro.plate("data", len(x), dim=data_dim):
            z = pyro.sample("z", vae.prior())
            features = arrange(vae.decoder.net(z.reshape(*z.shape[:-3], len(x), LATENT_DIM)))
            with pyro.plate("features", x.shape[-1], dim=inner_dim):
                pyro.sample("x", dist.Normal(features, SCALE), obs=arrange(x))

    def guide(x):
        q = vae.encoder(x).base_dist
        if inner_dim == -1:
            q = dist.Normal(q.loc[:, None], q.scale[:, None])
        with pyro.plate("data", len(x), dim=data_dim):
            pyro.sample("z", q.to_event(1))

    split = SimpleNamespace(model=model, guide=guide, vae=vae)
    structure = replace(ONE_LATENT, depth=2)
    pyro.set_rng_seed(3)
    found = terms_of(split, x, 4, structure)
    pyro.set_rng_seed(3)
    whole = terms_of(vae, x, 4, ONE_LATENT)
    torch.testing.assert_close(found.log_weight, whole.log_weight)
    torch.testing.assert_close(found.latent_means["z"], perturbed.loc)


# ── A program that is not linear, by quadrature ──────────────────────────────────────────────

NODES_1D, WEIGHTS_1D = np.polynomial.hermite_e.hermegauss(60)


class QuadratureNormal(dist.Normal):
    """Its 3600 "draws" are the nodes of the Gauss-Hermite rule in two dimensions."""

    def rsample(self, sample_shape=()):
        nodes = torch.as_tensor(NODES_1D)
        return self.loc + self.scale * torch.cartesian_prod(nodes, nodes)[:, None]


def test_the_evidence_is_the_elbo_and_the_kl_to_the_posterior():
    with float64():
        vae = vae_of_two_latents()
        x = (torch.rand(3, 5) < 0.5).double()
    by_nodes = with_encoder(vae, lambda q: QuadratureNormal(q.loc, q.scale).to_event(1))
    log_weight = terms_of(by_nodes, x, 3600, ONE_LATENT).log_weight
    weights = torch.as_tensor(np.outer(WEIGHTS_1D, WEIGHTS_1D).ravel())
    elbo = weights @ log_weight / weights.sum()

    axis = torch.linspace(-9, 9, 241, dtype=torch.float64)
    z, cell = torch.cartesian_prod(axis, axis)[:, None], (axis[1] - axis[0]) ** 2
    with torch.no_grad():
        joint = vae.prior().log_prob(z) + vae.decoder(z).log_prob(x)
        log_evidence = joint.logsumexp(0) + cell.log()
        guide = vae.encoder(x).log_prob(z)
        kl = cell * (guide.exp() * (guide - joint + log_evidence)).sum(0)

    assert (kl > 0.01).all()
    torch.testing.assert_close(elbo + kl, log_evidence, atol=1e-3, rtol=0)
    sampled = terms_of(vae, x, 4000).log_weight
    assert (sampled.mean(0) - elbo).abs().le(five_errors(sampled)).all()


def vae_of_two_latents():
    encoder = GaussianEncoder(MLP((5,), (4,), hidden=(7,), activation=nn.Tanh))
    decoder = BernoulliDecoder(MLP((2,), (5,), hidden=(7,), activation=nn.Tanh))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return VAE(StandardNormal(2), decoder, encoder)


# ── Numbers read off the weights ─────────────────────────────────────────────────────────────


def test_a_dimension_whose_posterior_mean_stands_still_is_not_active():
    case = linear_gaussian(60, strengths=(1.5, 0.7, 0.0), stretch=2.0)
    found = evaluate(case.vae, case.examples, num_samples=2)
    assert (found.active_units, found.latent_dims) == (2, LATENT_DIM)


@pytest.mark.parametrize(("variance", "active"), [(0.0099, 0), (0.0101, 1)])
def test_a_unit_is_active_above_a_variance_of_one_hundredth(exact, variance, active):
    found = evaluate(exact.vae, exact.examples, num_samples=2)
    means = math.sqrt(variance) * torch.tensor([[1.0], [-1.0]])
    object.__setattr__(found, "latent_means", {"z": means})
    assert found.active_units == active


def constant_vae(decoder, x_shape):
    """A VAE whose decoder ignores z, emitting zeros, and whose guide is its prior."""
    encoding, decoding = MLP(x_shape, (4,), hidden=()), MLP((2,), x_shape, hidden=())
    with torch.no_grad():
        for parameter in (*encoding.parameters(), *decoding.parameters()):
            parameter.zero_()
        encoding.layers[0].bias[2:] = unclamp(torch.zeros(2, dtype=torch.float64)).float()
    return VAE(StandardNormal(2), decoder(decoding), GaussianEncoder(encoding))


def test_fair_coins_cost_one_bit_each():
    raw = torch.randint(0, 256, (4, 1, 2, 3))
    coins = Examples(raw, preprocessing=Binarize("static"))
    found = evaluate(constant_vae(BernoulliDecoder, (1, 2, 3)), coins, num_samples=3)
    assert found.bits_per_dim == pytest.approx(1, abs=1e-5)
    assert found.log_evidence.mean().item() == pytest.approx(-6 * math.log(2), abs=1e-5)


@pytest.mark.parametrize("bits", [3, 8])
def test_uniform_bytes_cost_as_many_bits_as_they_have(bits):
    raw = torch.randint(0, 2**bits, (4, 1, 2, 3))
    grey = Examples(raw, preprocessing=Dequantize(2**bits))
    found = evaluate(constant_vae(ContinuousBernoulliDecoder, (1, 2, 3)), grey, num_samples=3)
    assert found.bits_per_dim == pytest.approx(bits, abs=1e-5)


def test_real_data_have_no_bits(exact):
    assert evaluate(exact.vae, exact.examples, num_samples=3).bits_per_dim is None


@pytest.mark.parametrize("count", [25, 200, 1000])
def test_pareto_k_is_that_of_pyros_fit(count):
    log_weight = 2 * torch.randn(count, 6, dtype=torch.float64) - 300
    size = int(min(count / 5, 3 * math.sqrt(count)))
    top = log_weight.sort(0).values[-size - 1 :]
    exceedances = (top - top[-1]).exp()[1:] - (top - top[-1]).exp()[0]
    expected = [fit_generalized_pareto(column)[0] for column in exceedances.T]
    assert pareto_k(log_weight).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [-0.4, 0.2, 0.5, 1.0])
def test_pareto_k_finds_the_tail_of_a_generalised_pareto(shape):
    uniform = torch.rand(20000, 20, dtype=torch.float64)
    weight = 1 + (uniform.pow(-shape) - 1) / shape
    assert pareto_k(weight.log()).mean().item() == near(shape, abs=0.08)


def test_pareto_k_of_too_few_draws_is_unknown():
    assert pareto_k(torch.randn(24, 2)).isnan().all()


# ── Training by stock Pyro ───────────────────────────────────────────────────────────────────


def small_vae():
    return VAE(
        GaussianMixture(2, components=3),
        GaussianDecoder(MLP((2,), (5,), hidden=(7,)), learn_scale=True),
        GaussianEncoder(MLP((5,), (4,), hidden=(7,))),
    )


def test_two_models_and_a_copy_all_learn_under_stock_svi():
    x = torch.randn(11, 2) @ torch.randn(2, 5)
    first, second = small_vae(), small_vae()
    vaes = [first, second, copy.deepcopy(first)]
    svis = [SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO()) for vae in vaes]
    starts = [copy.deepcopy(vae.state_dict()) for vae in vaes]
    losses = torch.tensor([[svi.step(x) for svi in svis] for _ in range(25)])

    assert (losses[-5:].mean(0) < losses[:5].mean(0)).all()
    for vae, start in zip(vaes, starts, strict=True):
        for name, parameter in vae.named_parameters():
            assert not torch.equal(parameter, start[name]), name


# ── A prior with a parent ────────────────────────────────────────────────────────────────────


class Hierarchy(nn.Module):
    """z2 ~ N(0, 1), z1 given z2 and x given z1 linear and Gaussian, out of the same parts."""

    def __init__(self):
        super().__init__()
        self.prior = StandardNormal(1)
        self.conditional = GaussianEncoder(nn.Linear(1, 2))
        self.decoder = GaussianDecoder(nn.Linear(1, 2), scale=0.5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.conditional(z2))
            pyro.sample("x", self.decoder(z1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(1), 3.0).to_event(1))
            pyro.sample("z2", dist.Normal(0.3 * z1, 1.2).to_event(1))


def test_an_encoder_is_a_prior_that_has_a_parent():
    with float64():
        torch.manual_seed(0)
        program = Hierarchy()
        with torch.no_grad():
            program.conditional.net.weight[1].zero_()  # the scale does not depend on z2
        x = torch.randn(4, 2)
        z1 = program.conditional(torch.zeros(1, 1))
        slope = program.conditional(torch.ones(1, 1)).mean - z1.mean
        weight, bias = program.decoder.net.weight, program.decoder.net.bias
        spread = slope.square() + z1.variance
        mean = weight @ z1.mean[0] + bias
        covariance = weight @ spread @ weight.T + 0.25 * torch.eye(2)
        exact = dist.MultivariateNormal(mean, covariance).log_prob(x)
        found = evaluate(program, Examples(x, preprocessing=AsGiven()), num_samples=20_000)
    torch.testing.assert_close(found.log_evidence, exact.detach(), atol=0.05, rtol=0)

"""Encoders beyond the factorised Gaussian, against posteriors and gradients in closed form."""

import copy
import json
import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LATENT_DIM, SCALE, X_DIM, float64, linear_gaussian, unclamp
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from pyrovae.capture import capture
from pyrovae.checkpoint import Checkpoint, load_newest, save
from pyrovae.data import Batch
from pyrovae.decoders import BernoulliDecoder, GaussianDecoder
from pyrovae.distributions import NormalMixture
from pyrovae.encoders import (
    FullCovarianceGaussianEncoder,
    GaussianEncoder,
    LowRankGaussianEncoder,
    MixtureEncoder,
    RefinedEncoder,
)
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE
from pyrovae.networks import MLP
from pyrovae.parts import from_config, to_config
from pyrovae.priors import GaussianMixture, StandardNormal
from pyrovae.programs import evaluating
from pyrovae.svi import CompiledSVI
from pyrovae.terms import draw_terms

FULL, LOW_RANK = FullCovarianceGaussianEncoder, LowRankGaussianEncoder
GENEROUS = 4.5  # standard errors, where many numbers are compared


# ── The linear-Gaussian model with a correlated posterior ────────────────────────────────────


@dataclass
class Correlated:
    """p(z) = N(0, I) and p(x | z) = N(W z + b, s² I), of a posterior that does not factorise."""

    x: Tensor
    W: Tensor
    b: Tensor

    @property
    def precision(self) -> Tensor:
        return torch.eye(LATENT_DIM) + self.W.T @ self.W / SCALE**2

    @property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.precision)

    @property
    def loc(self) -> Tensor:
        return (self.x - self.b) @ (self.covariance @ self.W.T / SCALE**2).T

    @property
    def log_evidence(self) -> Tensor:
        covariance = self.W @ self.W.T + SCALE**2 * torch.eye(X_DIM)
        return MultivariateNormal(self.b, covariance).log_prob(self.x)

    def net(self, spread: Tensor) -> nn.Linear:
        """Puts out the posterior's mean, and then `spread` for every x."""
        to_mean = self.covariance @ self.W.T / SCALE**2
        net = nn.Linear(X_DIM, LATENT_DIM + len(spread))
        with torch.no_grad():
            net.weight.zero_()[:LATENT_DIM] = to_mean
            net.bias.copy_(torch.cat([-to_mean @ self.b, spread]))
        return net

    def vae(self, encoder: nn.Module) -> VAE:
        decoding = nn.Linear(LATENT_DIM, X_DIM)
        with torch.no_grad():
            decoding.weight.copy_(self.W)
            decoding.bias.copy_(self.b)
        return VAE(StandardNormal(LATENT_DIM), GaussianDecoder(decoding, scale=SCALE), encoder)


@pytest.fixture
def case():
    with float64():
        W, b = torch.randn(X_DIM, LATENT_DIM) / 2, torch.randn(X_DIM)
        z = torch.randn(5, LATENT_DIM)
        yield Correlated(z @ W.T + b + SCALE * torch.randn(5, X_DIM), W, b)


def diagonal(case):
    """The best factorised Gaussian there is."""
    return GaussianEncoder(case.net(unclamp(-case.precision.diagonal().log() / 2)))


def full(case):
    scale = (0.9 * torch.linalg.eigvalsh(case.covariance)[0]).sqrt().expand(LATENT_DIM)
    triangle = torch.linalg.cholesky(case.covariance / scale**2 - torch.eye(LATENT_DIM))
    rows, columns = torch.tril_indices(LATENT_DIM, LATENT_DIM)
    loadings = triangle[rows, columns] * math.sqrt(LATENT_DIM)
    return FULL(case.net(torch.cat([unclamp(scale.log()), loadings])))


def low_rank(case):
    """The least eigenvalue is the diagonal, what is above it the factors: one fewer than D."""
    values, vectors = torch.linalg.eigh(case.covariance)
    scale = values[0].sqrt().expand(LATENT_DIM)
    rank = LATENT_DIM - 1
    loadings = vectors[:, 1:] * (values[1:] / values[0] - 1).sqrt() * math.sqrt(rank)
    spread = torch.cat([unclamp(scale.log()), loadings.flatten()])
    return LOW_RANK(case.net(spread), rank=rank)


def terms_of(vae, x, num_particles):
    batch = Batch(x)
    structure = inspect_program(vae, batch)
    with evaluating(vae):
        return draw_terms(vae, batch, num_particles, structure)


@pytest.mark.parametrize("make", [full, low_rank])
def test_every_particle_weighs_the_evidence_at_a_correlated_posterior(case, make):
    encoder = make(case)
    torch.testing.assert_close(encoder(case.x).covariance_matrix[0], case.covariance)
    weights = terms_of(case.vae(encoder), case.x, 11).log_weight
    torch.testing.assert_close(weights, case.log_evidence.expand(11, 5), atol=1e-8, rtol=0)


@pytest.mark.parametrize("make", [full, low_rank])
def test_draws_have_the_covariance_of_a_correlated_posterior(case, make):
    q = make(case)(case.x[:1])
    z = q.rsample((4000,))[:, 0] - case.loc[0]
    products = z[:, :, None] * z[:, None, :]
    error = products.std(0) / math.sqrt(4000)
    assert ((products.mean(0) - case.covariance) / error).abs().max() < GENEROUS


def test_a_factorised_guide_cannot_reach_a_correlated_posterior(case):
    weights = terms_of(case.vae(diagonal(case)), case.x, 4000).log_weight
    gap = (case.precision.diagonal().log().sum() - case.precision.logdet()) / 2
    assert gap > 0.2
    error = weights.std(0) / math.sqrt(4000)
    assert ((weights.mean(0) - case.log_evidence + gap) / error).abs().max() < GENEROUS


@pytest.mark.parametrize("make", [full, low_rank])
def test_the_kl_to_a_factorised_gaussian_is_that_of_full_matrices(case, make):
    q = make(case)(case.x)
    loc, scale = torch.randn(LATENT_DIM), torch.rand(LATENT_DIM) + 0.5
    p = dist.Normal(loc, scale).to_event(1)
    expected = kl_divergence(q, MultivariateNormal(loc, torch.diag(scale**2)))
    torch.testing.assert_close(kl_divergence(q, p), expected)
    torch.testing.assert_close(kl_divergence(q.expand((2, 5)), p), expected.expand(2, 5))


@pytest.mark.parametrize(
    "p", [dist.Laplace(torch.zeros(3), 1.0).to_event(1), dist.Normal(torch.zeros(2, 3), 1.0)]
)
def test_other_kls_of_a_correlated_gaussian_are_left_to_draws(p):
    p = p if p.event_shape else p.to_event(2)
    for q in (FULL(nn.Linear(5, 12)), LOW_RANK(nn.Linear(5, 12), rank=2)):
        with pytest.raises(NotImplementedError):
            kl_divergence(q(torch.zeros(5)), p)


@pytest.mark.parametrize("make", [full, low_rank])
def test_the_bound_with_the_analytic_kl_is_the_evidence(case, make):
    vae = case.vae(make(case))
    elbo = TraceMeanField_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    found = -elbo.loss(vae.model, vae.guide, case.x)
    likelihood = terms_of(vae, case.x, 1000).log_likelihood.sum(1)
    error = likelihood.std() / math.sqrt(1000)
    assert abs(found - case.log_evidence.sum()) < GENEROUS * error


# ── Correlated Gaussians in float32 ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1.0, 1e2, 1e6])
@pytest.mark.parametrize(
    "make", [lambda: FULL(nn.Linear(4, 250)), lambda: LOW_RANK(nn.Linear(4, 140))]
)
def test_no_output_of_a_network_breaks_a_correlated_gaussian(make, size):
    encoder = make()
    nn.init.normal_(encoder.net.weight, std=size)
    # Around zero, as z - mu rounds by itself where mu is much wider than q.
    nn.init.zeros_(encoder.net.weight[:20])
    x = torch.randn(50, 4)
    q = encoder(x)
    assert q.event_shape == (20,)
    z = q.rsample()
    log_prob = q.log_prob(z)
    exact = copy.deepcopy(encoder).double()(x.double()).log_prob(z.double())
    torch.testing.assert_close(log_prob.double(), exact, atol=0.5, rtol=0)
    log_prob.sum().backward()
    assert encoder.net.weight.grad.isfinite().all()


@pytest.mark.parametrize(("make", "each"), [(FULL, 50 * 55 // 2), (LOW_RANK, 7 * 50)])
def test_a_new_encoder_is_nearly_diagonal(make, each):
    covariance = make(MLP((30,), (each,)))(torch.randn(20, 30)).covariance_matrix
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    away = correlation - torch.eye(50)
    assert 0 < away.abs().max() < 0.3


def test_one_latent_has_nothing_to_correlate_with():
    q = FULL(nn.Linear(4, 3))(torch.randn(3, 4))
    assert q.scale_tril.shape == (3, 1, 1)
    assert q.rsample().shape == (3, 1)


# ── What fits ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (FULL, 10),
        (LOW_RANK, 15),
        (lambda net: LOW_RANK(net, rank=2), 7),
        (MixtureEncoder, 20),
        (lambda net: MixtureEncoder(net, components=2), 9),
    ],
)
def test_outputs_that_fit_no_number_of_latents_are_refused(make, size):
    with pytest.raises(InputError, match="fits no number of latent dimensions"):
        make(MLP((4,), (size,)))
    silent = make(nn.Linear(4, size))
    with pytest.raises(InputError, match="fits no number of latent dimensions"):
        silent(torch.zeros(4))
    with pytest.raises(InputError, match="fits no number of latent dimensions"):
        make(MLP((4,), (9, 14)))


@pytest.mark.parametrize("make", [MLP, lambda i, o: nn.Linear(*i, *o)])
def test_an_odd_output_is_no_mean_and_scale_of_every_dimension(make):
    vae = VAE(
        StandardNormal(2), GaussianDecoder(MLP((2,), (5,))), GaussianEncoder(make((5,), (3,)))
    )
    with pytest.raises(InputError, match=r"puts out 3 numbers for two .*net_shape"):
        inspect_program(vae, Batch(torch.zeros(4, 5)))


@pytest.mark.parametrize("latent_dim", [1, 2, 3, 10, 50])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FULL, {}),
        (LOW_RANK, {}),
        (LOW_RANK, {"rank": 1}),
        (MixtureEncoder, {}),
        (MixtureEncoder, {"components": 3}),
    ],
)
def test_what_net_shape_asks_for_gives_as_many_latents(kind, options, latent_dim):
    net = MLP((4,), kind.net_shape(latent_dim, **options), hidden=())
    assert kind(net, **options)(torch.zeros(3, 4)).event_shape == (latent_dim,)


def test_ranks_and_components_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="rank"):
        LOW_RANK(nn.Linear(4, 6), rank=0)
    with pytest.raises(InputError, match="components"):
        MixtureEncoder(nn.Linear(4, 7), components=1)


# ── Mixtures: the gradient of their draws ────────────────────────────────────────────────────


def mixture(logits, loc, log_scale):
    component = dist.Normal(loc, log_scale.exp()).to_event(1)
    return NormalMixture(dist.Categorical(logits=logits), component)


def parameters(*batch, components, dim, dtype=torch.float64):
    options = {"dtype": dtype}
    return (
        torch.randn(*batch, components, **options),
        torch.randn(*batch, components, dim, **options),
        0.3 * torch.randn(*batch, components, dim, **options) - 0.2,
    )


def leaves(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def mean_wave(theta, direction):
    """E[sin(a z) + cos(a z)] = sum_k pi_k exp(-|a s_k|² / 2) (sin(a mu_k) + cos(a mu_k))."""
    logits, loc, log_scale = theta
    damping = (-0.5 * (direction * log_scale.exp()).square().sum(-1)).exp()
    phase = loc @ direction
    return (logits.softmax(-1) * damping * (phase.sin() + phase.cos())).sum(-1)


@pytest.mark.parametrize(("components", "dim"), [(2, 1), (3, 2), (4, 5)])
def test_the_gradient_through_a_mixtures_draws_is_that_of_the_expectation(components, dim):
    count = 40000
    theta = parameters(components=components, dim=dim)
    direction = torch.randn(dim, dtype=torch.float64)
    exact = leaves(theta)
    mean_wave(exact, direction).backward()

    each = leaves(tensor.expand(count, *tensor.shape) for tensor in theta)
    phase = mixture(*each).rsample() @ direction
    (phase.sin() + phase.cos()).sum().backward()
    for found, expected in zip(each, exact, strict=True):
        error = found.grad.std(0) / math.sqrt(count)
        assert ((found.grad.mean(0) - expected.grad) / error).abs().max() < GENEROUS


def test_a_mixture_is_read_off_the_network_component_by_component():
    loc, log_scale = torch.arange(6.0).reshape(2, 3), torch.linspace(-1, 0, 6).reshape(2, 3)
    net = nn.Linear(4, 14)
    with torch.no_grad():
        net.weight.zero_()
        spread = unclamp(log_scale.double()).float()
        net.bias.copy_(torch.cat([torch.tensor([0.0, 2.0]), loc.flatten(), spread.flatten()]))
    q = MixtureEncoder(net, components=2)(torch.zeros(4))
    expected = mixture(torch.tensor([0.0, 2.0]), loc, log_scale)
    z = torch.randn(7, 3)
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(z))


def test_a_mixtures_draws_are_of_its_density():
    d = mixture(*parameters(components=3, dim=2))
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    z, cell = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2
    density = d.log_prob(z).exp() * cell
    assert density.sum() == pytest.approx(1, abs=1e-8)
    torch.testing.assert_close(d.mean, density @ z)

    draws = d.rsample((20000,))
    for function in (lambda v: v, lambda v: v[:, :1] * v, lambda v: (3 * v).sin()):
        values = function(draws)
        error = values.std(0) / math.sqrt(20000)
        assert ((values.mean(0) - density @ function(z)) / error).abs().max() < GENEROUS


def gradients_at(z, theta, monkeypatch):
    """The gradients of a mixture's draws, as if these had been drawn."""
    monkeypatch.setattr(NormalMixture, "sample", lambda self, shape: z)
    theta = leaves(theta)
    drawn = mixture(*theta).rsample()
    assert torch.equal(drawn, z)
    weights = torch.linspace(0.5, 1.5, z.shape[-1], dtype=z.dtype)
    return torch.autograd.grad((drawn * weights).sum(), theta)


def test_each_row_of_a_mixtures_draws_has_its_own_gradient(monkeypatch):
    theta = parameters(2, 3, components=4, dim=5)
    z = torch.randn(6, 2, 3, 5, dtype=torch.float64)
    together = gradients_at(z, theta, monkeypatch)
    one = [tensor[1, 2] for tensor in theta]
    alone = [gradients_at(draw, one, monkeypatch) for draw in z[:, 1, 2]]
    for index, found in enumerate(together):
        torch.testing.assert_close(found[1, 2], sum(gradient[index] for gradient in alone))


@pytest.mark.parametrize("side", [-1, 1])
def test_the_gradient_keeps_its_digits_in_the_tails(side, monkeypatch):
    theta = parameters(components=3, dim=4)
    z = side * torch.tensor([5.0, 6.0, 5.5, 4.5], dtype=torch.float64)
    exact = gradients_at(z, theta, monkeypatch)
    found = gradients_at(z.float(), [t.float() for t in theta], monkeypatch)
    for single, double in zip(found, exact, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def test_coinciding_components_are_one_normal():
    logits, loc, log_scale = parameters(components=3, dim=2)
    theta = leaves((logits, loc[:1].expand(3, 2), log_scale[:1].expand(3, 2)))
    z = mixture(*theta).rsample((7,))
    z.sum().backward()
    torch.testing.assert_close(theta[0].grad, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(theta[1].grad.sum(0), torch.full((2,), 7.0, dtype=torch.float64))


# ── Refinement ───────────────────────────────────────────────────────────────────────────────


def refined(vae, **options):
    """The VAE's encoder, refined with its own prior and decoder."""
    return RefinedEncoder(vae.encoder, vae.prior, vae.decoder, **options)


@pytest.mark.parametrize(("shift", "stretch"), [(3.0, 0.3), (0.0, 8.0), (-4.0, 20.0)])
def test_refinement_ends_at_the_posterior(shift, stretch):
    case = linear_gaussian(shift=shift, stretch=stretch)
    with float64():
        q = refined(case.vae, steps=100, lr=0.5)(case.x).base_dist
    torch.testing.assert_close(q.loc, case.posterior_loc)
    torch.testing.assert_close(q.scale, case.posterior_scale.expand_as(q.scale))


def test_every_small_step_is_up_for_every_example():
    case = linear_gaussian(shift=3.0, stretch=4.0)
    elbos = [case.elbo]
    for steps in range(1, 15):
        with float64():
            q = refined(case.vae, steps=steps, lr=0.05)(case.x).base_dist
        case.loc, case.scale = q.loc, q.scale
        elbos.append(case.elbo)
    rises = torch.stack(elbos).diff(dim=0)
    assert (rises > 0).all()
    assert (elbos[-1] - elbos[0]).min() > 3


def test_a_step_is_that_of_the_elbos_own_gradient(case):
    vae = case.vae(diagonal(case))
    encoder = refined(vae, steps=1, lr=1e-3)
    start, end = vae.encoder(case.x).base_dist, encoder(case.x).base_dist
    loc, log_scale = leaves((start.loc.detach(), start.scale.log().detach()))
    # With a quadratic log-density two nodes are exact, but for the products of two signs.
    residual = case.x - case.b - loc @ case.W.T
    offset = (log_scale.exp() * encoder.signs) @ case.W.T
    quadratic = residual.square() + offset.square()
    elbo = -quadratic.sum() / (2 * SCALE**2) + log_scale.sum()
    elbo = elbo - (loc.square() + (2 * log_scale).exp()).sum() / 2
    elbo.backward()
    torch.testing.assert_close(end.loc - start.loc, 1e-3 * start.scale**2 * loc.grad)
    torch.testing.assert_close((end.scale / start.scale).log(), 0.5e-3 * log_scale.grad)


def test_refinement_comes_near_the_best_factorised_gaussian(case):
    start = GaussianEncoder(case.net(unclamp(torch.zeros(LATENT_DIM))))
    q = refined(case.vae(start), steps=600, lr=0.02)(case.x).base_dist
    best = diagonal(case)(case.x).base_dist
    torch.testing.assert_close(q.loc, best.loc, atol=0.01, rtol=0)
    torch.testing.assert_close(q.scale.log(), best.scale.log(), atol=0.1, rtol=0)


def pixels_vae(prior=None):
    prior = prior or GaussianMixture(2, components=3)
    decoder = BernoulliDecoder(MLP((2,), (6,), hidden=(7,)))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    return VAE(prior, decoder, GaussianEncoder(MLP((6,), (4,), hidden=(7,))))


def binary(*shape):
    return (torch.rand(*shape) < 0.4).float()


def test_refinement_raises_the_elbo_where_nothing_is_linear():
    vae, x = pixels_vae(), binary(40, 6)
    better = VAE(vae.prior, vae.decoder, refined(vae))
    rise = evaluate(better, x, num_samples=500).elbo - evaluate(vae, x, num_samples=500).elbo
    assert rise.mean() > 0.2
    assert rise.min() > -0.3


def test_no_step_is_longer_than_a_scale():
    vae = pixels_vae()
    for parameter in vae.decoder.parameters():
        nn.init.normal_(parameter, std=1e4)
    x = binary(5, 6)
    start, end = vae.encoder(x).base_dist, refined(vae, steps=1)(x).base_dist
    assert ((end.loc - start.loc) / start.scale).abs().max() <= 1.0001
    assert (end.scale / start.scale).log().abs().max() <= 1.0001
    after = refined(vae, steps=50, lr=10.0)(x).base_dist
    assert after.loc.isfinite().all()
    assert after.scale.log().min() >= -7.001


def test_refinement_leaves_no_gradient_behind():
    vae, x = pixels_vae(), binary(5, 6)
    encoder = refined(vae)
    q = encoder(x)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    (q.mean.square() + q.variance).sum().backward()
    assert all(parameter.grad is not None for parameter in vae.encoder.parameters())
    assert all(p.grad is None for part in (vae.prior, vae.decoder) for p in part.parameters())


def test_the_encoder_is_taught_by_the_gradient_where_refinement_ends():
    vae, x = pixels_vae(), binary(5, 6)
    q, start = refined(vae)(x).base_dist, vae.encoder(x).base_dist
    by_result = torch.autograd.grad(
        (q.loc.square() + q.scale.log().square()).sum(), list(vae.encoder.parameters())
    )
    by_start = torch.autograd.grad(
        (2 * q.loc.detach() * start.loc + 2 * q.scale.log().detach() * start.scale.log()).sum(),
        list(vae.encoder.parameters()),
    )
    for found, expected in zip(by_result, by_start, strict=True):
        torch.testing.assert_close(found, expected)


def test_refinement_is_the_same_without_gradients_and_captured():
    vae, x = pixels_vae(), binary(5, 6)
    encoder = refined(vae)

    def moments(x):
        q = encoder(x)
        return q.mean, q.stddev

    with torch.no_grad(), pyro.validation_enabled(False):
        without = moments(x)
        graph = capture(moments, [x])
    for expected, found in zip(moments(x), without, strict=True):
        assert torch.equal(found, expected)
    with pyro.validation_enabled(False):
        with_gradients = capture(moments, [x])
    for inputs in (x, 1 - x):
        for captured in (graph, with_gradients):
            for expected, found in zip(moments(inputs), captured(inputs), strict=True):
                torch.testing.assert_close(found, expected)


def test_what_cannot_be_refined_is_refused():
    vae = pixels_vae()
    for name, wrong in (("steps", 0), ("lr", 0.0), ("lr", math.nan), ("lr", math.inf)):
        with pytest.raises(InputError, match=f"^{name} is {wrong}"):
            refined(vae, **{name: wrong})
    vae.encoder = LOW_RANK(MLP((6,), (6,)), rank=1)
    with pytest.raises(InputError, match="LowRankMultivariateNormal"):
        refined(vae)(binary(5, 6))


def test_a_refined_vae_is_saved_and_built_again_with_its_parts_shared(tmp_path):
    vae = pixels_vae()
    vae = VAE(vae.prior, vae.decoder, refined(vae, steps=3))
    save(tmp_path, Checkpoint(1, vae.state_dict(), {}))
    built = from_config(json.loads(json.dumps(to_config(vae))))
    built.load_state_dict(load_newest(tmp_path).weights)

    for again in (built, copy.deepcopy(vae)):
        assert again.encoder.prior is again.prior
        assert again.encoder.decoder is again.decoder
        assert len(list(again.parameters())) == len(list(vae.parameters()))
        x = binary(5, 6)
        assert torch.equal(again.encoder(x).mean, vae.encoder(x).mean)


# ── In a whole VAE ───────────────────────────────────────────────────────────────────────────


def refined_vae(vae):
    return VAE(vae.prior, vae.decoder, refined(vae, steps=2))


def with_net(kind, size, **options):
    def make(vae):
        return VAE(vae.prior, vae.decoder, kind(MLP((6,), (size,), hidden=(7,)), **options))

    return make


VAES = {
    "full": with_net(FULL, 7),
    "low rank": with_net(LOW_RANK, 8, rank=2),
    "mixture": with_net(MixtureEncoder, 15, components=3),
    "refined": refined_vae,
}
every_vae = pytest.mark.parametrize("make", VAES.values(), ids=VAES)


def losses(kind, make, loss, prior, **options):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    vae, x = make(pixels_vae(prior())), binary(9, 6)
    svi = kind(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), loss(), **options)
    found = []
    for step in range(5):
        torch.manual_seed(step)
        found.append(float(svi.step(x)))
    if options:
        assert svi.engines == ["graph"]
    return found


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("prior", [lambda: StandardNormal(2), lambda: GaussianMixture(2)])
@every_vae
def test_captured_training_is_that_of_pyro(make, prior, loss):
    stock = losses(SVI, make, loss, prior)
    assert losses(CompiledSVI, make, loss, prior, engine="graph") == pytest.approx(stock, rel=1e-5)


@every_vae
def test_every_encoder_trains_and_is_evaluated(make):
    vae, x = make(pixels_vae(StandardNormal(2))), binary(60, 6)
    assert inspect_program(vae, Batch(x)).vectorizes
    before = evaluate(vae, x, num_samples=200)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(100):
        svi.step(x)
    after = evaluate(vae, x, num_samples=200)
    for found in (before, after):
        assert all(v.isfinite().all() for v in (found.elbo, found.kl, found.log_evidence))
        assert found.latent_means["z"].shape == (60, 2)
    assert after.elbo.mean() > before.elbo.mean() + 0.3

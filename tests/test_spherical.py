"""The sphere: densities, moments and gradients against quadrature, mpmath and each other."""

import math

import mpmath
import pyro
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import kl_divergence

from pyrovae import CompiledSVI, evaluate
from pyrovae.data import Batch
from pyrovae.decoders import GaussianDecoder
from pyrovae.distributions import PowerSpherical, SphericalUniform, VonMisesFisher
from pyrovae.distributions import von_mises_fisher as source
from pyrovae.distributions.spherical import log_area
from pyrovae.encoders import PowerSphericalEncoder, VonMisesFisherEncoder
from pyrovae.errors import InputError
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE
from pyrovae.networks import MLP
from pyrovae.priors import PowerSphericalPrior, SphericalUniformPrior, VonMisesFisherPrior

double = {"dtype": torch.float64}
both = pytest.mark.parametrize("family", [PowerSpherical, VonMisesFisher])
DIMS = pytest.mark.parametrize("dim", [2, 3, 10, 128])
CONCENTRATIONS = (1e-3, 0.3, 1.0, 7.0, 30.0, 500.0, 1e4)


def axis(dim, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(dim, generator=rng, **double), dim=-1)


def about(family, dim, concentration, seed=0):
    return family(axis(dim, seed), torch.as_tensor(concentration, **double))


def grid(dim, number=4000):
    """Points of a circle or a sphere, and the area that each stands for."""
    angle = 2 * math.pi * (torch.arange(number, **double) + 0.5) / number
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    if dim == 2:
        return circle, torch.full((number,), 2 * math.pi / number, **double)
    height = -1 + 2 * (torch.arange(number, **double) + 0.5) / number
    across = (1 - height**2).sqrt()[:, None, None] * circle[:: number // 40]
    points = torch.cat([height[:, None, None].expand(-1, 40, 1), across], -1).reshape(-1, 3)
    return points, torch.full((len(points),), 4 * math.pi / len(points), **double)


def z_score(draws, expected):
    return (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)


# ── Densities ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("concentration", [1e-3, 1.0, 20.0])
@pytest.mark.parametrize("dim", [2, 3])
@both
def test_a_density_integrates_to_one_and_has_its_moments(family, dim, concentration):
    q, (z, area) = about(family, dim, concentration), grid(dim)
    weight = area * q.log_prob(z).exp()
    assert weight.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close((weight[:, None] * z).sum(0), q.mean, rtol=0, atol=1e-5)
    kl = (weight * (q.log_prob(z) + log_area(dim))).sum()
    torch.testing.assert_close(kl, q.kl_to_uniform(), rtol=0, atol=1e-5)


def exact(family, dim, concentration):
    """The log-density at the axis over the uniform one, E[h], and the KL, to 40 digits."""
    with mpmath.workdps(40):
        b, k = (mpmath.mpf(dim) - 1) / 2, mpmath.mpf(concentration)
        if family is PowerSpherical:
            scale = mpmath.loggamma(k + 2 * b) + mpmath.loggamma(b)
            scale -= mpmath.loggamma(k + b) + mpmath.loggamma(2 * b)
            h = b / (k + 2 * b)
            kl = scale + k * (mpmath.digamma(k + b) - mpmath.digamma(k + 2 * b))
        else:
            order = b - mpmath.mpf(1) / 2
            bessel = mpmath.besseli(order, k)
            scale = k - mpmath.log(bessel) + order * mpmath.log(k / 2)
            scale -= mpmath.loggamma(order + 1)
            h = (1 - mpmath.besseli(order + 1, k) / bessel) / 2
            kl = scale - 2 * k * h
    return float(scale), float(h), float(kl)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@DIMS
@both
def test_normalisers_and_kls_are_those_of_mpmath(family, dim, dtype, digits):
    for concentration in CONCENTRATIONS:
        kappa = torch.tensor(concentration, dtype=dtype, requires_grad=True)
        q = family(axis(dim).to(dtype), kappa)
        scale, h, kl = exact(family, dim, kappa.item())
        peak = q.log_prob(q.loc) + log_area(dim)
        uniform = SphericalUniform(torch.zeros(dim, dtype=dtype))
        assert q.log_prob(q.loc).dtype == q.mean.dtype == q.entropy().dtype == dtype
        assert peak.item() == pytest.approx(scale, rel=digits, abs=digits * 10)
        assert q.mean_haversine.item() == pytest.approx(h, rel=digits)
        assert kl_divergence(q, uniform).item() == pytest.approx(kl, rel=digits, abs=digits)
        assert q.entropy().item() == pytest.approx(log_area(dim) - kl, rel=digits, abs=10 * digits)

        if family is VonMisesFisher:  # d log c / dκ = -2 E[h]
            (slope,) = torch.autograd.grad(peak, kappa)
            assert slope.item() == pytest.approx(2 * h, rel=digits)


@both
def test_gradients_of_the_kl_are_those_of_finite_differences(family):
    kappa = torch.tensor([0.1, 3.0, 200.0], **double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: family(axis(5), k).kl_to_uniform(), kappa)
    assert torch.autograd.gradcheck(lambda k: family(axis(5), k).log_prob(axis(5, 1)), kappa)


@pytest.mark.parametrize(("side", "tolerance"), [(1.0, 1e-4), (-1.0, 2e-3)])
@both
def test_densities_in_float32_are_exact_near_the_axis_and_far_from_it(family, side, tolerance):
    turn = torch.logspace(-3, -1, 20, **double).requires_grad_()
    z = torch.stack([side * turn.cos(), turn.sin()], -1)
    exactly = family(torch.tensor([1.0, 0.0], **double), torch.tensor(5000.0, **double))
    single = family(torch.tensor([1.0, 0.0]), torch.tensor(5000.0))
    torch.testing.assert_close(
        single.log_prob(z.float()).double(), exactly.log_prob(z), rtol=1e-6, atol=tolerance
    )


@both
def test_a_density_and_its_gradient_are_finite_everywhere(family):
    loc = torch.eye(3)[0].requires_grad_()
    kappa = torch.tensor(8000.0, requires_grad=True)
    z = torch.stack([loc.detach(), -loc.detach(), torch.eye(3)[1]])
    log_prob = family(loc, kappa).log_prob(z)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert loc.grad.isfinite().all()
    assert kappa.grad.isfinite()


def test_the_uniform_density_is_one_over_the_area():
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        uniform = SphericalUniform(torch.zeros(dim))
        z = uniform.sample((5,))
        torch.testing.assert_close(uniform.log_prob(z), torch.full((5,), -math.log(area)))
        assert uniform.entropy().item() == pytest.approx(math.log(area))


def test_the_two_families_agree_about_a_sharp_axis():
    power, fisher = about(PowerSpherical, 4, 2e4), about(VonMisesFisher, 4, 1e4)
    z = fisher.sample((100,))
    torch.testing.assert_close(power.log_prob(z), fisher.log_prob(z), rtol=0, atol=5e-3)


# ── Draws ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@DIMS
@both
def test_draws_are_unit_vectors_for_every_axis(family, dim, dtype):
    loc = torch.cat([torch.eye(dim)[:2], -torch.eye(dim)[:2], axis(dim).float()[None]])
    loc = torch.nn.functional.normalize(loc.to(dtype), dim=-1)[:, None]
    q = family(loc, torch.tensor(CONCENTRATIONS, dtype=dtype), validate_args=True)
    z = q.rsample((200,))
    assert z.shape == (200, 5, len(CONCENTRATIONS), dim)
    assert constraints.sphere.check(z).all()
    assert q.log_prob(z).isfinite().all()
    uniform = SphericalUniform(torch.zeros(dim, dtype=dtype))
    assert constraints.sphere.check(uniform.sample((200,))).all()


@pytest.mark.parametrize("concentration", [0.1, 4.0, 300.0])
@pytest.mark.parametrize("dim", [2, 3, 10, 64])
@both
def test_draws_have_the_density_s_moments(family, dim, concentration):
    q = about(family, dim, concentration)
    z = q.sample((20000,))
    other = torch.nn.functional.normalize(axis(dim, 1) - (axis(dim, 1) @ q.loc) * q.loc, dim=-1)
    along, across = z @ q.loc, z @ other
    assert z_score(along, q.mean @ q.loc).abs() < 4
    assert z_score(across, 0.0).abs() < 4
    assert z_score(q.log_prob(z), -q.entropy()).abs() < 4
    if dim > 2:  # on a circle the one square is what the other leaves
        share = (1 - along.square()) / (dim - 1)
        assert z_score(across.square() - share, 0.0).abs() < 4


def test_uniform_draws_have_no_direction():
    z = SphericalUniform(torch.zeros(5, **double)).sample((20000,))
    assert (z_score(z, 0.0).abs() < 4).all()
    assert (z_score(z.square(), 0.2).abs() < 4).all()


@pytest.mark.parametrize("dim", [2, 3, 5, 64])
def test_von_mises_fisher_draws_invert_the_distribution_function(dim):
    """h is drawn at Q(θ) = u: Q by mpmath at each draw must be uniform."""
    kappa, beta = 6.0, (dim - 1) / 2
    q = about(VonMisesFisher, dim, kappa)
    torch.manual_seed(1)
    h = q.rsample_haversine(torch.Size((8,)))
    torch.manual_seed(1)
    u = torch.rand(8, **double)

    def mass(low, high):
        return mpmath.quad(
            lambda t: (
                mpmath.exp(-2 * kappa * mpmath.sin(t / 2) ** 2) * mpmath.sin(t) ** (2 * beta - 1)
            ),
            mpmath.linspace(low, high, 9),
        )

    for drawn, given in zip(h.tolist(), u.tolist(), strict=True):
        theta = 2 * mpmath.asin(mpmath.sqrt(drawn))
        assert float(mass(0, theta) / mass(0, mpmath.pi)) == pytest.approx(given, abs=1e-8)


@pytest.mark.parametrize("concentration", [0.01, 1.0, 20.0, 1e4])
@pytest.mark.parametrize("dim", [2, 3, 4, 128])
def test_the_solver_leaves_nothing_of_any_draw(dim, concentration):
    u = torch.linspace(1e-3, 0.999, 2001, **double)
    tails = 10.0 ** torch.linspace(-12, -3, 40, **double)
    u, angle = torch.cat([u, tails, 1 - tails]), about(VonMisesFisher, dim, concentration)._angle
    left = (source._cumulative(angle, source._solve(angle, u, dim), dim) - u).abs()
    assert left[:2001].max() < 1e-8
    assert left.max() < 1e-5


# ── Gradients ────────────────────────────────────────────────────────────────────────────────


def score(z, target):
    """A function on the sphere with no symmetry about the axis."""
    return (2 * z @ target).exp() + z[..., 0] * z[..., 1]


@pytest.mark.parametrize("concentration", [0.3, 5.0])
@pytest.mark.parametrize("dim", [2, 3])
@both
def test_gradients_by_draws_are_those_of_the_integral(family, dim, concentration):
    target = axis(dim, 1)
    direction = axis(dim).requires_grad_()
    log_kappa = torch.tensor(math.log(concentration), **double, requires_grad=True)

    def make(number=None):
        shape = () if number is None else (number,)
        given = direction.expand(*shape, dim), log_kappa.expand(shape)
        return given, family(torch.nn.functional.normalize(given[0], dim=-1), given[1].exp())

    _, q = make()
    z, area = grid(dim)
    integral = (area * q.log_prob(z).exp() * score(z, target)).sum()
    expected = torch.autograd.grad(integral, (direction, log_kappa))

    given, q = make(20000)
    found = torch.autograd.grad(score(q.rsample(), target).sum(), given)
    for each, exactly in zip(found, expected, strict=True):
        assert (z_score(each, exactly).abs() < 4).all()
        assert each.std(0).max() > 0


@pytest.mark.parametrize("side", [1.0, -1.0])
@both
def test_no_axis_has_wild_gradients(family, side):
    direction = torch.tensor([side, 1e-4, -1e-4]).expand(1000, 3).clone().requires_grad_()
    loc = torch.nn.functional.normalize(direction, dim=-1)
    (found,) = torch.autograd.grad(family(loc, torch.tensor(2.0)).rsample().sum(), direction)
    assert found.abs().max() < 10


@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("concentration", [0.5, 50.0])
@both
def test_gradients_to_the_concentration_are_right_in_many_dimensions(family, dim, concentration):
    kappa = torch.full((20000,), concentration, **double, requires_grad=True)
    q = family(axis(dim), kappa)
    (found,) = torch.autograd.grad((q.rsample() @ axis(dim)).sum(), kappa)
    one = torch.tensor(concentration, **double, requires_grad=True)
    (expected,) = torch.autograd.grad(-2 * family(axis(dim), one).mean_haversine, one)
    assert z_score(found, expected).abs() < 4


# ── Parts and programs ───────────────────────────────────────────────────────────────────────

PAIRS = {
    "power spherical": (SphericalUniformPrior, PowerSphericalEncoder),
    "power spherical, learned prior": (PowerSphericalPrior, PowerSphericalEncoder),
    "von Mises-Fisher": (SphericalUniformPrior, VonMisesFisherEncoder),
    "von Mises-Fisher, learned prior": (VonMisesFisherPrior, VonMisesFisherEncoder),
}
every_pair = pytest.mark.parametrize("pair", PAIRS)


def make_vae(pair):
    pyro.clear_param_store()
    torch.manual_seed(0)
    prior, encoder = PAIRS[pair]
    decoder = GaussianDecoder(MLP((4,), (6,), hidden=(8,)))
    return VAE(prior(4), decoder, encoder(MLP((6,), encoder.net_shape(4), hidden=(8,))))


def losses(make, pair):
    vae, x = make_vae(pair), torch.randn(10, 6)
    svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    found = []
    for step in range(5):
        torch.manual_seed(step)
        found.append(svi.step(x))
    return found, svi


@every_pair
def test_a_captured_step_is_that_of_pyro(pair):
    expected, _ = losses(SVI, pair)
    found, svi = losses(lambda *args: CompiledSVI(*args, engine="graph"), pair)
    assert svi.engines == ["graph"]
    assert found == pytest.approx(expected, rel=1e-5)


@every_pair
def test_a_program_on_the_sphere_is_evaluated(pair):
    vae, x = make_vae(pair), torch.randn(10, 6)
    assert inspect_program(vae, Batch(x)).vectorizes
    found = evaluate(vae, x, num_samples=10)
    assert found.elbo.isfinite().all()
    assert found.log_evidence.isfinite().all()
    assert found.latent_means["z"].shape == (10, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SphericalUniformPrior(1),
        lambda: PowerSphericalPrior(1),
        lambda: VonMisesFisherPrior(1),
        lambda: PowerSphericalEncoder.net_shape(1),
    ],
)
def test_a_sphere_needs_two_dimensions(make):
    with pytest.raises(InputError, match="no sphere"):
        make()

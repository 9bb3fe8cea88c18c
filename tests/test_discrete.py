"""Bits and one-hot codes against enumeration, and their relaxations against quadrature."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import kl_divergence
from torch.distributions.relaxed_bernoulli import RelaxedBernoulli as TorchRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyrovae import CompiledSVI, evaluate, fit
from pyrovae.data import Batch
from pyrovae.decoders import BernoulliDecoder
from pyrovae.distributions import (
    OneHotGroups,
    RelaxedBernoulli,
    RelaxedOneHotGroups,
    StraightThroughBernoulli,
    StraightThroughOneHotGroups,
)
from pyrovae.distributions.relaxed import DEPTH, HIGH, LIMIT, LOW
from pyrovae.encoders import (
    BernoulliEncoder,
    CategoricalEncoder,
    RelaxedBernoulliEncoder,
    RelaxedCategoricalEncoder,
    StraightThroughBernoulliEncoder,
    StraightThroughCategoricalEncoder,
)
from pyrovae.errors import InputError
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE
from pyrovae.networks import MLP
from pyrovae.priors import (
    BernoulliPrior,
    CategoricalPrior,
    RelaxedBernoulliPrior,
    RelaxedCategoricalPrior,
)
from pyrovae.programs import evaluating
from pyrovae.terms import draw_terms

double = {"dtype": torch.float64}
ETA = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.5, -0.7]], **double)  # two codes of three classes
BITS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), **double)
CODES = torch.stack(
    [torch.cat(pair) for pair in itertools.product(torch.eye(3, **double), repeat=2)]
)


def z_score(draws, expected):
    return (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)


# ── Codes and bits ───────────────────────────────────────────────────────────────────────────


def codes(kind, logits):
    options = {} if kind is OneHotGroups else {"temperature": 0.7}
    return kind(logits, **options, validate_args=True)


every_kind_of_code = pytest.mark.parametrize("kind", [OneHotGroups, StraightThroughOneHotGroups])


@every_kind_of_code
def test_codes_have_the_moments_of_their_enumeration(kind):
    p, q = codes(kind, ETA), OneHotGroups(ETA.flip(0))
    prob = p.log_prob(CODES).exp()
    assert prob.sum().item() == pytest.approx(1, abs=1e-12)
    by_hand = [ETA[0].softmax(0)[i] * ETA[1].softmax(0)[j] for i in range(3) for j in range(3)]
    torch.testing.assert_close(prob, torch.stack(by_hand))
    torch.testing.assert_close(p.mean, prob @ CODES)
    torch.testing.assert_close(p.entropy(), -(prob * prob.log()).sum())
    kl = (prob * (prob.log() - q.log_prob(CODES))).sum()
    torch.testing.assert_close(kl_divergence(p, q), kl)


@pytest.mark.parametrize("draw", ["sample", "rsample"])
@every_kind_of_code
def test_codes_are_drawn_as_often_as_they_are_probable(kind, draw):
    p = codes(kind, ETA)
    if draw == "rsample" and not p.has_rsample:
        pytest.skip("its draws carry no gradients")
    z = getattr(p, draw)((20000,))
    found = (z[:, None] == CODES).all(-1).double()
    assert torch.equal(found.sum(-1), torch.ones(20000, **double))
    assert (z_score(found, p.log_prob(CODES).exp()).abs() < 4).all()


@pytest.mark.parametrize(
    "make", [OneHotGroups, lambda logits: StraightThroughOneHotGroups(logits, 0.5)]
)
def test_a_class_without_probability_is_never_drawn_and_counts_for_nothing(make):
    """Nor do its logits of minus infinity lead to NaN, in values or gradients."""
    eta = torch.tensor([[0.0, 1.0, -torch.inf], [-torch.inf, 0.5, -torch.inf]], **double)
    eta.requires_grad_()
    q, p = make(eta), OneHotGroups(ETA)
    z = q.rsample((2000,)) if q.has_rsample else q.sample((2000,))
    assert set(z[:, :3].argmax(-1).tolist()) == {0, 1}
    of_code = torch.distributions.Categorical(logits=eta[0])
    assert torch.equal(z[:, 4], torch.ones(2000, **double))
    torch.testing.assert_close(q.log_prob(z), of_code.log_prob(z[:, :3].argmax(-1)))
    assert q.entropy().item() == pytest.approx(of_code.entropy().item())
    probs = q.mean.unflatten(-1, (2, 3))
    expected = (probs * (q.logits - p.logits)).sum()
    assert kl_divergence(q, p).item() == pytest.approx(expected.item())
    total = q.log_prob(z).sum() + q.entropy() + kl_divergence(q, p) + (z * ETA.flatten()).sum()
    (gradient,) = torch.autograd.grad(total, eta)
    assert gradient.isfinite().all()
    assert (gradient[eta.isinf()] == 0).all()
    assert p.log_prob(z).isfinite().all()
    assert kl_divergence(p, q) > 1e30


def test_what_is_no_code_is_outside_the_support():
    support = OneHotGroups(ETA).support
    assert support.check(CODES).all()
    assert support.is_discrete
    wrong = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0.5, 0.5, 0, 1, 0, 0], [2, 0, -1, 1, 0, 0]]
    assert not support.check(torch.tensor(wrong, **double)).any()
    relaxed = RelaxedOneHotGroups(ETA, 0.5).support
    assert not relaxed.is_discrete
    assert relaxed.check(torch.tensor([0.2, 0.3, 0.5, 1, 0, 0], **double))
    assert not relaxed.check(torch.tensor([[0.2, 0.3, 0.6, 0.9, 0, 0]], **double)).any()


def straight_through(name):
    """A straight-through distribution of given logits, all its values, and its relaxation."""
    if name == "bits":
        eta = torch.tensor([0.3, -2.0, 1.0], **double)
        return eta, lambda e: StraightThroughBernoulli(e, 0.7).to_event(1), BITS
    return ETA, lambda e: StraightThroughOneHotGroups(e, 0.7), CODES


both = pytest.mark.parametrize("name", ["bits", "codes"])


@both
def test_straight_through_draws_are_hard_and_score_their_probability(name):
    eta, make, values = straight_through(name)
    q = make(eta)
    prob = q.log_prob(values).exp()
    assert q.has_rsample
    assert prob.sum().item() == pytest.approx(1, abs=1e-12)
    z = q.rsample((20000,))
    found = (z[:, None] == values).all(-1).double()
    assert torch.equal(found.sum(-1), torch.ones(20000, **double))
    assert (z_score(found, prob).abs() < 4).all()


@pytest.mark.parametrize("expand", [False, True])
@both
def test_straight_through_gradients_are_those_of_the_relaxation(name, expand):
    eta, make, _ = straight_through(name)
    eta = eta.clone().requires_grad_()
    target = torch.arange(1.0, 7.0, **double)[: make(eta).event_shape[0]]

    torch.manual_seed(3)
    q = make(eta).expand((50,)) if expand else make(eta)
    (found,) = torch.autograd.grad(q.rsample(() if expand else (50,)).sum(0) @ target, eta)

    torch.manual_seed(3)
    relax = RelaxedBernoulli if name == "bits" else RelaxedOneHotGroups
    soft = relax(eta, 0.7).rsample((50,))
    (expected,) = torch.autograd.grad(soft.sum(0) @ target, eta)
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0


@both
def test_the_score_of_a_value_is_linear_in_it(name):
    """The only extension of a probability mass to values with a gradient that means anything."""
    eta, make, values = straight_through(name)
    z = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(make(eta).log_prob(z).sum(), z)
    torch.testing.assert_close(slope, slope[:1].expand_as(slope))


# ── Relaxations ──────────────────────────────────────────────────────────────────────────────

STEP = LIMIT / 10000
Z = (torch.arange(-10000, 10000, **double) + 0.5).mul(STEP).sigmoid()
ENDS = torch.tensor([LOW, HIGH], **double)


def integrate(q, function):
    """E[f(z)] of one relaxed bit: over the inside in logits, and its two ends."""
    inside = (q.log_prob(Z).exp() * function(Z) * Z * (1 - Z) * STEP).sum()
    return inside + (q.log_prob(ENDS).exp() * function(ENDS)).sum()


bits = pytest.mark.parametrize(
    ("eta", "temperature"), [(0.0, 0.5), (-1.5, 0.5), (3.0, 0.2), (8.0, 0.5), (0.4, 2.0)]
)


@bits
def test_a_relaxed_bit_integrates_to_one_and_draws_agree(eta, temperature):
    q = RelaxedBernoulli(torch.tensor(eta, **double), temperature, validate_args=True)
    assert integrate(q, torch.ones_like).item() == pytest.approx(1, abs=1e-6)
    z = q.sample((20000,))
    functions = {
        "z": lambda z: z,
        "z²": lambda z: z.square(),
        "logit": lambda z: z.logit(),
        "log q": q.log_prob,
        "the ends": lambda z: ((z <= LOW) | (z >= HIGH)).double(),
    }
    for name, function in functions.items():
        values, expected = function(z), integrate(q, function)
        assert (values.mean() - expected).abs() < 4 * values.std() / 20000**0.5 + 1e-4, name


def test_inside_a_relaxed_bit_has_torch_s_density():
    z = torch.linspace(1e-4, 1 - 1e-4, 99, **double)
    for eta in (-2.0, 0.0, 1.3):
        eta = torch.tensor(eta, **double)
        expected = TorchRelaxedBernoulli(torch.tensor(0.6, **double), logits=eta).log_prob(z)
        torch.testing.assert_close(RelaxedBernoulli(eta, 0.6).log_prob(z), expected)


def test_ratios_of_relaxed_bits_are_right_when_they_are_sharp():
    """E_p[q / p] = 1: where draws end at an end, by its probability and not by a density."""
    p = RelaxedBernoulli(torch.tensor(1.0), 0.1)
    q = RelaxedBernoulli(torch.tensor(2.0), 0.1)
    z = p.sample((50000,))
    assert (z >= HIGH).float().mean() > 0.3
    assert z_score((q.log_prob(z) - p.log_prob(z)).exp(), 1.0).abs() < 4


def simplex(half=60.0, number=801):
    """Points of the simplex of three classes, and the area of (z1, z2) that each stands for."""
    y = torch.linspace(-half, half, number, **double)
    first, second = torch.meshgrid(y, y, indexing="ij")
    z = torch.stack([first, second, torch.zeros_like(first)], -1).reshape(-1, 3).softmax(-1)
    return z, z.prod(-1) * (y[1] - y[0]) ** 2


@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_a_relaxed_code_integrates_to_one_and_draws_agree(temperature):
    q = RelaxedOneHotGroups(ETA[:1], temperature, validate_args=True)
    z, area = simplex()
    weight = q.log_prob(z).exp() * area
    assert weight.sum().item() == pytest.approx(1, abs=1e-6)
    drawn = q.sample((20000,))
    for function in (lambda z: z, lambda z: z.square(), lambda z: q.log_prob(z)[:, None]):
        expected = (weight[:, None] * function(z)).sum(0)
        assert (z_score(function(drawn), expected).abs() < 4).all()


def test_a_relaxed_code_has_torch_s_density_code_by_code():
    q = RelaxedOneHotGroups(ETA, 0.8)
    z = q.sample((50,))
    expected = dist.RelaxedOneHotCategorical(torch.tensor(0.8, **double), logits=ETA)
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(z.unflatten(-1, (2, 3))).sum(-1))


@pytest.mark.parametrize(("eta", "temperature"), [(0.0, 0.5), (2.0, 0.05), (-6.0, 0.05)])
def test_a_relaxed_code_on_a_face_has_a_probability(eta, temperature):
    """Of two classes: that of the two ends and the density between them come to 1."""
    q = RelaxedOneHotGroups(torch.tensor([[eta, 0.0]], **double), temperature)
    y = torch.linspace(-DEPTH, DEPTH, 200_001, **double)
    z = torch.stack([y, torch.zeros_like(y)], -1).softmax(-1)
    prob = q.log_prob(z).exp()
    inside = (prob * z.prod(-1))[1:-1].sum() * (y[1] - y[0])
    assert (prob[0] + inside + prob[-1]).item() == pytest.approx(1, abs=1e-4)
    drawn = q.sample((20_000,))
    for face, column in ((prob[0], 0), (prob[-1], 1)):
        found = (drawn[:, column] < 2e-35).double()
        assert (found.mean() - face).abs() < 4 * (face * (1 - face) / 20_000).sqrt() + 1e-12


SHARP = torch.tensor([[8.0, 0.0, -8.0], [0.0, 0.5, 1.0]])


def test_ratios_of_relaxed_codes_are_right_when_they_are_sharp():
    """E_q[p / q] = 1, whichever entries lie on faces."""
    q = RelaxedOneHotGroups(SHARP, 0.05)
    p = RelaxedOneHotGroups(SHARP + torch.tensor([0.4, -0.3, 0.2]), 0.06)
    z = q.sample((100_000,))
    on_faces = (z < 2e-35).sum(-1)
    assert all((on_faces == number).any() for number in (2, 3, 4))
    assert z_score((p.log_prob(z) - q.log_prob(z)).exp(), 1.0).abs() < 4


def test_the_kl_of_a_sharp_relaxed_code_is_between_those_of_its_code_and_of_its_logarithms():
    """The code is a function of the relaxed code, and this one of logarithms without faces."""
    pairs = ((0.05, SHARP), (0.07, torch.zeros(2, 3)))
    q, p = (RelaxedOneHotGroups(logits, temperature) for temperature, logits in pairs)
    z = q.sample((100_000,))
    kl = (q.log_prob(z) - p.log_prob(z)).mean()
    of_codes = kl_divergence(OneHotGroups(SHARP), OneHotGroups(torch.zeros(2, 3)))

    q, p = (
        ExpRelaxedCategorical(torch.tensor(temperature, **double), logits=logits.double())
        for temperature, logits in pairs
    )
    log_z = q.sample((100_000,))
    of_logarithms = (q.log_prob(log_z) - p.log_prob(log_z)).sum(-1).mean()
    assert of_codes < kl < of_logarithms


def test_a_relaxed_code_is_no_match_for_a_density_without_faces():
    class Model(nn.Module):
        def forward(self):
            return dist.Dirichlet(torch.ones(3))

    x = torch.rand(20, 6).round()
    encoder = RelaxedCategoricalEncoder(MLP((6,), (3,)), classes=3)
    vae = VAE(Model(), BernoulliDecoder(MLP((3,), (6,))), encoder)
    with pytest.raises(InputError, match="Dirichlet gives no probability, or one of another kind"):
        fit(vae, x, epochs=1, progress=False)


def bit_function(z):
    return (2 * z).sin() + z.square()


def test_gradients_by_draws_of_relaxed_bits_are_those_of_the_integral():
    eta = torch.tensor(0.8, **double, requires_grad=True)
    (expected,) = torch.autograd.grad(
        integrate(RelaxedBernoulli(eta, 0.6), bit_function), eta, retain_graph=True
    )
    given = eta.detach().expand(20000).clone().requires_grad_()
    z = RelaxedBernoulli(given, 0.6).rsample()
    (found,) = torch.autograd.grad(bit_function(z).sum(), given)
    assert z_score(found, expected).abs() < 4


@pytest.mark.parametrize(("eta", "share"), [(3.0, 0.0), (5.0, 0.01), (7.0, 0.12)])
def test_gradients_by_draws_leave_out_little_at_the_ends(eta, share):
    """What is missing is as small as the docstring says."""
    eta = torch.tensor(eta, **double, requires_grad=True)
    p = RelaxedBernoulli(torch.tensor(0.0, **double), 0.5)
    q = RelaxedBernoulli(eta, 0.5)
    kl = integrate(q, lambda z: q.log_prob(z) - p.log_prob(z))
    (expected,) = torch.autograd.grad(kl, eta)

    given = eta.detach().expand(100000).clone().requires_grad_()
    q = RelaxedBernoulli(given, 0.5)
    z = q.rsample()
    (found,) = torch.autograd.grad((q.log_prob(z) - p.log_prob(z)).sum(), given)
    error = 4 * found.std() / len(found) ** 0.5
    assert (found.mean() - expected).abs() < error + share * expected


def test_gradients_by_draws_of_relaxed_codes_are_those_of_the_integral():
    def function(z):
        return (3 * z[..., 0] * z[..., 1]).sin() + z[..., 2].square()

    eta = ETA[:1].clone().requires_grad_()
    z, area = simplex()
    integral = (RelaxedOneHotGroups(eta, 0.7).log_prob(z).exp() * area * function(z)).sum()
    (expected,) = torch.autograd.grad(integral, eta)
    given = ETA[:1].expand(20000, 1, 3).clone().requires_grad_()
    (found,) = torch.autograd.grad(
        function(RelaxedOneHotGroups(given, 0.7).rsample()).sum(), given
    )
    assert (z_score(found, expected).abs() < 4).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_relaxations_never_leave_their_support_nor_the_finite_numbers(temperature, dtype):
    eta = torch.tensor([-10.0, -3.0, 0.0, 10.0], dtype=dtype, requires_grad=True)
    of_bits = RelaxedBernoulli(eta, temperature).to_event(1)
    of_codes = RelaxedOneHotGroups(eta.reshape(2, 2), temperature)
    for q in (of_bits, of_codes):
        z = q.rsample((10000,))
        log_prob = q.log_prob(z)
        (gradient,) = torch.autograd.grad(log_prob.sum(), eta)
        assert q.support.check(z).all()
        assert (z > 0).all()
        assert log_prob.isfinite().all()
        assert gradient.isfinite().all()
    assert (of_bits.rsample((10000,)) < 1).all()


# ── Parts and programs ───────────────────────────────────────────────────────────────────────

PAIRS = {
    "bits": (lambda: BernoulliPrior(3), BernoulliEncoder, {}),
    "bits, learned prior": (lambda: BernoulliPrior(3, learn_logits=True), BernoulliEncoder, {}),
    "bits, straight through": (lambda: BernoulliPrior(3), StraightThroughBernoulliEncoder, {}),
    "codes": (lambda: CategoricalPrior(6, classes=3), CategoricalEncoder, {"classes": 3}),
    "codes, straight through": (
        lambda: CategoricalPrior(6, classes=3, learn_logits=True),
        StraightThroughCategoricalEncoder,
        {"classes": 3},
    ),
    "relaxed bits": (lambda: RelaxedBernoulliPrior(3), RelaxedBernoulliEncoder, {}),
    "relaxed codes": (
        lambda: RelaxedCategoricalPrior(6, classes=3),
        RelaxedCategoricalEncoder,
        {"classes": 3},
    ),
}
DISCRETE = [name for name in PAIRS if "relaxed" not in name]


def make_vae(name):
    pyro.clear_param_store()
    torch.manual_seed(0)
    make_prior, encoder, options = PAIRS[name]
    prior = make_prior()
    for parameter in prior.parameters():
        nn.init.normal_(parameter)
    shape = encoder.net_shape(prior.latent_dim, **options)
    decoder = BernoulliDecoder(MLP((prior.latent_dim,), (5,), hidden=(8,)))
    return VAE(prior, decoder, encoder(MLP((5,), shape, hidden=(8,)), **options))


def data():
    return (torch.rand(4, 5) < 0.4).float()


@pytest.mark.parametrize("name", DISCRETE)
def test_the_bound_and_the_evidence_are_those_of_enumeration(name):
    vae, x = make_vae(name), data()
    values = (BITS if "bits" in name else CODES).float()[:, None]
    with torch.no_grad():
        joint = vae.prior().log_prob(values) + vae.decoder(values).log_prob(x)
        log_q = vae.encoder(x).log_prob(values.expand(-1, 4, -1))
    elbo = (log_q.exp() * (joint - log_q)).sum(0)

    structure = inspect_program(vae, Batch(x))
    assert structure.vectorizes
    with evaluating(vae):
        log_weight = draw_terms(vae, Batch(x), 5000, structure).log_weight
    assert (z_score(log_weight, elbo).abs() < 4).all()

    found = evaluate(vae, x, num_samples=2000)
    error = (found.log_evidence - joint.logsumexp(0)) / found.log_evidence_error
    assert (error.abs() < 4).all()
    torch.testing.assert_close(found.latent_means["z"], (log_q.exp()[..., None] * values).sum(0))
    if "bits" in name:
        kl = kl_divergence(vae.encoder(x), vae.prior().expand((4,)))
        assert found.kl_per_dim["z"].sum().item() == pytest.approx(kl.mean().item(), rel=1e-5)


def test_the_bound_of_a_relaxed_bit_is_that_of_the_relaxed_model():
    torch.manual_seed(0)
    vae = VAE(
        RelaxedBernoulliPrior(1, temperature=0.4),
        BernoulliDecoder(MLP((1,), (5,), hidden=(8,))),
        RelaxedBernoulliEncoder(MLP((5,), (1,), hidden=(8,)), temperature=0.6),
    ).double()
    x = data().double()
    with torch.no_grad():
        prior = vae.prior().base_dist

        def likelihood(z):
            return vae.decoder(z.reshape(-1, 1, 1)).log_prob(x).exp()

        evidence = torch.stack(
            [integrate(prior, lambda z, n=n: likelihood(z)[:, n]) for n in range(4)]
        ).log()
    found = evaluate(vae, x, num_samples=5000)
    assert ((found.log_evidence - evidence.squeeze(-1)) / found.log_evidence_error).abs().max() < 4


@pytest.mark.parametrize("name", [n for n in DISCRETE if "straight" not in n])
def test_gradients_of_the_score_are_those_of_enumeration(name):
    vae, x = make_vae(name).double(), data().double()
    values = (BITS if "bits" in name else CODES)[:, None]
    joint = vae.prior().log_prob(values) + vae.decoder(values).log_prob(x)
    log_q = vae.encoder(x).log_prob(values.expand(-1, 4, -1))
    bias = vae.encoder.net.layers[-1].bias
    loss = -(log_q.exp() * (joint - log_q)).sum()
    (expected,) = torch.autograd.grad(loss, bias)

    number = 1000
    elbo = Trace_ELBO(num_particles=number, vectorize_particles=True, max_plate_nesting=1)
    found = []
    for _ in range(30):
        loss = elbo.differentiable_loss(vae.model, vae.guide, x)
        found.append(torch.autograd.grad(loss, bias)[0])
    assert (z_score(torch.stack(found), expected).abs() < 4.5).all()


def losses(make, name):
    vae, x = make_vae(name), data()
    svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    found = []
    for step in range(5):
        torch.manual_seed(step)
        found.append(svi.step(x))
    return found, svi


@pytest.mark.parametrize("name", PAIRS)
def test_a_captured_step_is_that_of_pyro(name):
    expected, _ = losses(SVI, name)
    found, svi = losses(lambda *args: CompiledSVI(*args, engine="graph"), name)
    assert svi.engines == ["graph"]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_is_evaluated(name):
    vae, x = make_vae(name), data()
    assert inspect_program(vae, Batch(x)).vectorizes
    found = evaluate(vae, x, num_samples=10)
    assert found.elbo.isfinite().all()
    assert found.log_evidence.isfinite().all()


def test_an_encoder_reads_its_codes_end_to_end():
    x = torch.randn(4, 6)
    found = CategoricalEncoder(nn.Identity(), classes=3)(x).mean
    expected = torch.cat([part.softmax(-1) for part in x.split(3, dim=-1)], -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "make", [BernoulliPrior, CategoricalPrior, RelaxedBernoulliPrior, RelaxedCategoricalPrior]
)
def test_only_learned_logits_are_parameters(make):
    assert not list(make(10).parameters())
    assert [name for name, _ in make(10, learn_logits=True).named_parameters()] == ["logits"]
    assert not make(10).state_dict()


@pytest.mark.parametrize(
    "make",
    [
        lambda: CategoricalPrior(7, classes=3),
        lambda: CategoricalPrior(0, classes=3),
        lambda: CategoricalPrior(3, classes=1),
        lambda: RelaxedCategoricalPrior(7, classes=3),
        lambda: CategoricalEncoder.net_shape(7, classes=3),
        lambda: CategoricalEncoder(MLP((5,), (7,)), classes=3),
        lambda: StraightThroughCategoricalEncoder(MLP((5,), (7,)), classes=3),
        lambda: RelaxedCategoricalEncoder(MLP((5,), (7,)), classes=3),
    ],
)
def test_what_cannot_be_divided_into_codes_is_refused(make):
    with pytest.raises(InputError, match=r"classes|latent_dim is 0"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda t: RelaxedBernoulliPrior(3, temperature=t),
        lambda t: RelaxedCategoricalPrior(6, classes=3, temperature=t),
        lambda t: RelaxedBernoulliEncoder(nn.Linear(5, 3), temperature=t),
        lambda t: RelaxedCategoricalEncoder(nn.Linear(5, 6), classes=3, temperature=t),
        lambda t: StraightThroughBernoulliEncoder(nn.Linear(5, 3), temperature=t),
        lambda t: StraightThroughCategoricalEncoder(nn.Linear(5, 6), classes=3, temperature=t),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_above_zero_and_finite(make, temperature):
    with pytest.raises(InputError, match="temperature"):
        make(temperature)

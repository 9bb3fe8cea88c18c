"""Priors against mixtures by hand, integrals and chains of conditionals."""

import copy
import itertools
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

import pyrovae
from pyrovae.capture import capture
from pyrovae.checkpoint import Checkpoint, load_newest, save
from pyrovae.data import Batch
from pyrovae.decoders import BernoulliDecoder
from pyrovae.distributions import Mixture
from pyrovae.distributions import mixture as mixture_module
from pyrovae.encoders import (
    FullCovarianceGaussianEncoder,
    GaussianEncoder,
    MixtureEncoder,
    SplineFlowEncoder,
)
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE, Autoencoder
from pyrovae.networks import MLP
from pyrovae.parts import from_config, to_config
from pyrovae.priors import (
    AutoregressiveGaussianPrior,
    BernoulliPrior,
    DiagonalGaussian,
    ExemplarPrior,
    GaussianMixture,
    LaplacePrior,
    StandardNormal,
    StudentTPrior,
    UniformPrior,
    VampPrior,
)
from pyrovae.svi import CompiledSVI

X = 6


def encoder(latent_dim=2):
    return GaussianEncoder(MLP((X,), (2 * latent_dim,), hidden=(7,)))


def binary(*shape):
    return (torch.rand(*shape) < 0.4).float()


# A small one of each, for some number of latents.
PRIORS = {
    "standard": StandardNormal,
    "diagonal": DiagonalGaussian,
    "laplace": LaplacePrior,
    "student": lambda d: StudentTPrior(d, df=5.0),
    "uniform": lambda d: UniformPrior(d, low=-2.0, high=1.5),
    "mixture": lambda d: GaussianMixture(d, components=3),
    "autoregressive": lambda d: AutoregressiveGaussianPrior(d, hidden=(9, 8)),
    "vamp": lambda d: VampPrior(encoder(d), (X,), components=5, learn_weights=True),
    "free vamp": lambda d: VampPrior(encoder(d), (X,), components=5, bounded=False),
    "exemplars": lambda d: ExemplarPrior(encoder(d), binary(7, X), components=4),
}
every_prior = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)


def scattered(module):
    """A part in float64 whose parameters are far from where they start."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module.double().eval()


# ── What every prior promises ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("latent_dim", [1, 2])
@every_prior
def test_a_density_integrates_to_one(make, latent_dim):
    part = scattered(make(latent_dim))
    if isinstance(part, UniformPrior):
        z = torch.linspace(part.low, part.high, 3).double()
    else:
        # Close together in the middle, and far out into the tails.
        z = torch.linspace(-8.0, 8.0, 1201 if latent_dim == 2 else 20001).double().sinh()
    points = torch.cartesian_prod(*[z] * latent_dim).reshape(-1, latent_dim)
    integral = part().log_prob(points).exp().reshape([len(z)] * latent_dim)
    for _ in range(latent_dim):
        integral = torch.trapezoid(integral, z, dim=-1)
    assert integral.item() == pytest.approx(1.0, abs=2e-4)


@every_prior
def test_draws_are_of_the_density(make):
    """Means of a bounded function under draws, and under draws of a wide Student t, weighted."""
    with pyro.validation_enabled(False):  # a box is not everywhere
        prior = scattered(make(2))()
    wide = dist.StudentT(3.0, torch.zeros(2).double(), 2.0).to_event(1)
    z, other = prior.sample((40000,)), wide.sample((40000,))
    weight = (prior.log_prob(other) - wide.log_prob(other)).exp()

    def waves(z):
        return torch.cat([(z * 0.7).cos(), (z + 0.3).sin(), (z.prod(-1, True) * 0.5).sin()], -1)

    direct, weighted = waves(z), waves(other) * weight.unsqueeze(-1)
    error = (direct.var(0) / len(z) + weighted.var(0) / len(other)).sqrt()
    assert ((direct.mean(0) - weighted.mean(0)) / error).abs().max() < 4.0


@every_prior
def test_options_and_the_number_of_latents_are_known(make):
    prior = make(3)
    assert prior.latent_dim == 3
    again = from_config(json.loads(json.dumps(to_config(prior))))
    assert to_config(again) == to_config(prior)


@every_prior
def test_a_prior_has_no_memory_of_a_call(make):
    """Two calls are of the parameters as they are at each, and graphs can be freed."""
    prior, z = make(2).eval(), torch.full((4, 2), 0.3)
    before = prior().log_prob(z)
    if before.requires_grad:
        before.sum().backward()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1)
    after = prior().log_prob(z)
    assert torch.equal(before, after) != any(p.requires_grad for p in prior.parameters())


# ── Factorised ───────────────────────────────────────────────────────────────────────────────


def test_a_student_t_becomes_normal_and_has_the_variance_of_its_df():
    z = torch.randn(5, 3, dtype=torch.float64)
    normal, student = StandardNormal(3).double()(), StudentTPrior(3, df=1e7).double()()
    torch.testing.assert_close(student.log_prob(z), normal.log_prob(z), rtol=1e-5, atol=1e-5)
    assert StudentTPrior(3, df=5.0)().variance.tolist() == pytest.approx([5 / 3] * 3)


def test_a_laplace_falls_by_a_nat_for_each_unit():
    z = torch.randn(5, 3)
    expected = -z.abs().sum(-1) - 3 * math.log(2)
    torch.testing.assert_close(LaplacePrior(3)().log_prob(z), expected)


def test_the_kl_to_a_laplace_has_a_closed_form():
    q = dist.Normal(torch.tensor([0.4, -1.0]).double(), torch.tensor([0.3, 1.2]).double())
    z = torch.linspace(-12, 12, 40001).double().unsqueeze(-1)
    p = LaplacePrior(2).double()().base_dist
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
    torch.testing.assert_close(
        kl_divergence(q, p), torch.trapezoid(integrand, z, dim=0), rtol=1e-6, atol=1e-6
    )


def test_the_box_is_closed_and_nothing_is_outside():
    prior = UniformPrior(2, low=-2.0, high=1.5)()
    edges = torch.tensor(list(itertools.product((-2.0, 0.0, 1.5), repeat=2)))
    expected = torch.full((9,), -2 * math.log(3.5))
    torch.testing.assert_close(prior.log_prob(edges), expected)
    for outside in ([1.6, 0.0], [0.0, -2.1]):
        with pytest.raises(ValueError, match="support"):
            prior.log_prob(torch.tensor(outside))
        with pyro.validation_enabled(False):
            unchecked = UniformPrior(2, low=-2.0, high=1.5)()
            assert unchecked.log_prob(torch.tensor(outside)) == -math.inf


# ── Mixtures ─────────────────────────────────────────────────────────────────────────────────


def components(dtype, *, narrow=0.0, dim=50, number=40):
    torch.manual_seed(1)
    logits, loc = torch.randn(number), 2 * torch.randn(number, dim)
    scale = (0.5 * torch.randn(number, dim) - narrow).exp()
    return [tensor.to(dtype) for tensor in (logits, loc, scale)]


def both(logits, loc, scale):
    """Ours and torch's."""
    kinds = (Mixture, dist.MixtureSameFamily)
    return [
        kind(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
        for kind in kinds
    ]


@pytest.mark.parametrize("narrow", [0.0, 3.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_matrix_products_lose_no_digits(dtype, narrow, monkeypatch):
    """Near narrow components far from the origin, where the square cancels most."""
    monkeypatch.setattr(mixture_module, "BLOCK", 240)  # several blocks, the last one shorter
    found, expected = {}, {}
    for kind in (torch.float64, dtype):
        inputs = components(torch.float32, narrow=narrow)
        logits, loc, scale = (t.to(kind).requires_grad_() for t in inputs)
        torch.manual_seed(2)
        noise = torch.randn(5, 4, 50).to(kind)
        z = (loc[:20] + 0.7 * scale[:20] * noise.reshape(20, 50)).reshape(5, 4, 50).detach()
        z.requires_grad_()
        leaves = (logits, loc, scale, z)
        for results, mixture in zip((found, expected), both(logits, loc, scale), strict=True):
            value = mixture.log_prob(z)
            results[kind] = (value, *torch.autograd.grad(value.sum(), leaves))

    for ours, exact in zip(found[torch.float64], expected[torch.float64], strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)
    for ours, torchs, exact in zip(
        found[dtype], expected[dtype], found[torch.float64], strict=True
    ):
        assert ours.dtype == dtype
        error, theirs = ((value.double() - exact).abs().max() for value in (ours, torchs))
        assert error <= max(2 * theirs, 1e-6 * exact.abs().max())


def test_where_the_middle_of_a_mixture_lies_costs_no_digits():
    """At 1e6 and scales of 1e-3 the squares are 1e18, of which float64 has no nats."""
    logits, loc, scale = components(torch.float64, narrow=7.0, dim=3)
    found, expected = both(logits, 1e6 + loc, scale)
    z = found.component_distribution.base_dist.loc + scale * torch.randn(40, 3)
    torch.testing.assert_close(found.log_prob(z), expected.log_prob(z), rtol=1e-6, atol=1e-6)


def test_a_mixture_is_checked_and_shaped_as_torchs():
    ours, torchs = both(*components(torch.float32, dim=3))
    for z in (torch.randn(3), torch.randn(1, 3), torch.randn(2, 5, 3)):
        torch.testing.assert_close(ours.log_prob(z), torchs.log_prob(z))
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.full((3,), math.nan))
    torch.testing.assert_close(ours.mean, torchs.mean)
    torch.testing.assert_close(ours.variance, torchs.variance)
    expanded = ours.expand((2, 5)).expand((4, 2, 5))
    assert expanded.sample((6,)).shape == (6, 4, 2, 5, 3)
    assert expanded.mean.shape == expanded.variance.shape == (4, 2, 5, 3)
    assert len(expanded.sample().flatten(0, 2).unique(dim=0)) == 40


@pytest.mark.parametrize(
    "component",
    [
        dist.Laplace(torch.randn(4, 3), 1.0).to_event(1),
        dist.MultivariateNormal(torch.randn(4, 3), torch.eye(3)),
        dist.Normal(torch.randn(4), 1.0),
        dist.Normal(torch.randn(2, 4, 3), 1.0).to_event(1),
        dist.Normal(torch.randn(4, 3, 2), 1.0).to_event(2),
    ],
    ids=lambda component: f"{type(component).__name__} {tuple(component.batch_shape)}",
)
def test_components_of_any_kind_can_be_mixed(component):
    weights = dist.Categorical(logits=torch.randn(component.batch_shape))
    ours, torchs = Mixture(weights, component), dist.MixtureSameFamily(weights, component)
    z = ours.expand((5, *ours.batch_shape)).sample((6,))
    assert z.shape == (6, 5, *ours.batch_shape, *ours.event_shape)
    torch.testing.assert_close(ours.log_prob(z), torchs.log_prob(z))


def flows_of_many(components, latent_dim=3):
    torch.manual_seed(0)
    net = MLP((X,), SplineFlowEncoder.net_shape(latent_dim, context=4), hidden=(7,))
    encoder = SplineFlowEncoder(net, layers=2, bins=3, hidden=5, context=4)
    with pytest.warns(UserWarning, match="every coupling"):
        prior = scattered(VampPrior(encoder, (X,), components=components))
    return prior, torch.randn(4, 6, latent_dim, dtype=torch.float64, requires_grad=True)


def kept_for_gradients(function):
    """The value of a function, and the numbers that autograd keeps for its gradient."""
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return function(), sum(kept)


def test_components_that_are_flows_are_scored_in_blocks(monkeypatch):
    """As one: the same values and gradients, for a fraction of the memory."""
    prior, z = flows_of_many(components=5)
    inputs = [z, *prior.parameters()]

    def found():
        log_prob, kept = kept_for_gradients(lambda: prior().log_prob(z))
        weights = torch.arange(24.0, dtype=torch.float64).reshape(4, 6)
        return log_prob, torch.autograd.grad((weights * log_prob).sum(), inputs), kept

    together, gradients, all_at_once = found()
    torchs = dist.MixtureSameFamily(
        dist.Categorical(logits=prior.logits), prior.encoder(prior.pseudo_inputs)
    )
    torch.testing.assert_close(together, torchs.log_prob(z))
    monkeypatch.setattr(mixture_module, "ELEMENTS_OF_OTHERS", 4 * 5 * z.shape[-1])
    in_blocks, same, a_fraction = found()
    torch.testing.assert_close(in_blocks, together)
    torch.testing.assert_close(same, gradients)
    assert a_fraction < all_at_once / 4

    def step(z):
        return [(log_prob := prior().log_prob(z)), *torch.autograd.grad(log_prob.sum(), [z])]

    with pyro.validation_enabled(False):
        torch.testing.assert_close(list(capture(step, [z])(z)), step(z))


def test_a_mixture_needs_no_tensor_of_values_by_components_by_dimensions():
    """The largest tensor of a captured density and its gradient, under plates and particles."""
    prior = GaussianMixture(11, components=13)

    def step(z):
        with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 7):
            fn = pyro.sample("z", prior(), obs=z)
        return [fn, *torch.autograd.grad(prior().expand((5, 7)).log_prob(z).sum(), [z])]

    with pyro.validation_enabled(False):
        graph = capture(step, [torch.randn(5, 7, 11, requires_grad=True)])
    values = [node.meta.get("val") for node in graph.module.graph.nodes]
    sizes = [value.numel() for value in values if isinstance(value, torch.Tensor)]
    assert max(sizes) < 7 * 13 * 11


def test_a_gaussian_mixture_is_the_sum_of_its_components():
    prior, z = scattered(GaussianMixture(2, components=3)), torch.randn(5, 2).double()
    share, scale = prior.logits.softmax(0), prior.log_scale.exp()
    each = [
        dist.Normal(m, s).log_prob(z).sum(-1).exp() for m, s in zip(prior.loc, scale, strict=True)
    ]
    density = sum(share[k] * each[k] for k in range(3))
    torch.testing.assert_close(prior().log_prob(z), density.log())


def test_the_centres_of_a_mixture_start_as_far_apart_as_is_asked():
    spread = GaussianMixture(50, components=200, spread=0.1).loc.std().item()
    assert spread == pytest.approx(0.1, rel=0.05)


# ── Autoregressive ───────────────────────────────────────────────────────────────────────────


def test_an_autoregressive_density_is_the_chain_of_its_conditionals():
    prior = scattered(AutoregressiveGaussianPrior(4, hidden=(9, 8)))
    z = torch.randn(6, 4, dtype=torch.float64)
    total = 0.0
    for d in range(4):
        # Whatever follows is unknown to the conditional.
        known = torch.cat([z[:, :d], 100 * torch.randn(6, 4 - d, dtype=torch.float64)], -1)
        p = prior.conditionals(known)
        total = total + dist.Normal(p.loc[:, d], p.scale[:, d]).log_prob(z[:, d])
    torch.testing.assert_close(prior().log_prob(z), total)


def test_every_conditional_depends_on_all_that_precede_it():
    prior = scattered(AutoregressiveGaussianPrior(4, hidden=(9, 8)))
    z = torch.randn(4, dtype=torch.float64)
    for moment in ("loc", "scale"):
        jacobian = torch.autograd.functional.jacobian(
            lambda z, moment=moment: getattr(prior.conditionals(z), moment), z
        )
        assert (jacobian.tril(-1) != 0).sum() == 6
        assert (jacobian.triu() == 0).all()


def test_autoregressive_draws_are_those_of_one_dimension_after_the_other():
    prior = scattered(AutoregressiveGaussianPrior(4, hidden=(9, 8)))
    torch.manual_seed(3)
    drawn = prior().expand((5,)).rsample((6,))
    torch.manual_seed(3)
    noise = torch.randn(6, 5, 4, dtype=torch.float64)
    z = torch.zeros(6, 5, 4, dtype=torch.float64)
    for d in range(4):
        p = prior.conditionals(z)
        z = z.clone()
        z[..., d] = p.loc[..., d] + p.scale[..., d] * noise[..., d]
    torch.testing.assert_close(drawn, z)
    # Standardised by the conditionals, a draw is its noise: their gradients are the same.
    p = prior.conditionals(drawn)
    torch.testing.assert_close((drawn - p.loc) / p.scale, noise)


def test_the_gradient_of_an_autoregressive_draw_is_that_of_finite_differences():
    prior = scattered(AutoregressiveGaussianPrior(3, hidden=(5,)))
    bias = prior.net.layers[-1].bias

    def draw(value):
        torch.manual_seed(3)
        with torch.no_grad():
            bias.copy_(value)
        return prior().rsample().sum()

    start = bias.detach().clone()
    (gradient,) = torch.autograd.grad(draw(start), [bias])
    step = 1e-6 * torch.eye(len(start), dtype=torch.float64)
    found = torch.stack([(draw(start + s) - draw(start - s)) / 2e-6 for s in step])
    torch.testing.assert_close(gradient, found.detach(), rtol=1e-6, atol=1e-7)


# ── Encoded: VampPrior and ExemplarPrior ─────────────────────────────────────────────────────

ENCODERS = {
    "gaussian": lambda: encoder(2),
    "full": lambda: FullCovarianceGaussianEncoder(MLP((X,), (7,), hidden=(7,))),
    "mixture": lambda: MixtureEncoder(MLP((X,), (15,), hidden=(7,)), components=3),
}
every_encoder = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)


@pytest.mark.parametrize("learn_weights", [False, True])
@every_encoder
def test_a_vamp_prior_is_the_mixture_by_hand(make, learn_weights):
    prior = scattered(VampPrior(make(), (X,), components=5, learn_weights=learn_weights))
    z = torch.randn(4, 3, 2, dtype=torch.float64)
    inputs = 1 / (1 + (-prior.free_inputs).exp())
    share = prior.logits.exp() / prior.logits.exp().sum()
    density = sum(share[k] * prior.encoder(inputs[k]).log_prob(z).exp() for k in range(5))
    torch.testing.assert_close(prior().log_prob(z), density.log())


@every_encoder
def test_gradients_reach_pseudo_inputs_and_encoder(make):
    prior = VampPrior(make(), (X,), components=5)
    z = torch.randn(30, 2)
    prior().log_prob(z).sum().backward()
    for parameter in prior.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0
    assert (prior.free_inputs.grad.abs().sum(-1) > 0).all()


def test_gradients_reach_the_encoder_of_the_exemplars_and_their_scale():
    prior = ExemplarPrior(encoder(), binary(7, X))
    prior().log_prob(torch.randn(30, 2)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in prior.parameters())
    # Of the encoder's outputs the means alone.
    assert (prior.encoder.net.layers[-1].bias.grad != 0).tolist() == [True, True, False, False]


def count_rows(module):
    """The number of inputs of each pass through an encoder."""
    rows = []
    module.register_forward_hook(lambda _, inputs, output: rows.append(inputs[0].shape[:-1]))
    return rows


def test_pseudo_inputs_are_encoded_once_for_all_particles():
    vae = vae_with(VAES["vamp"])
    rows = count_rows(vae.encoder)
    loss = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    loss.differentiable_loss(vae.model, vae.guide, binary(9, X))
    assert rows == [(9,), (5,)]


def test_pseudo_inputs_start_at_examples():
    x = binary(20, X) * torch.linspace(0.1, 1.0, 20).unsqueeze(-1)
    prior = VampPrior(encoder(), (X,), components=8)
    assert prior.start_at(x) is prior
    distance = torch.cdist(prior.pseudo_inputs, x.clamp(0.01, 0.99)).detach()
    assert distance.min(1).values.max() < 1e-5
    assert len(distance.argmin(1).unique()) == 8

    free = VampPrior(encoder(), (X,), components=20, bounded=False).start_at(5 * x)
    assert torch.equal(free.pseudo_inputs.sort(0).values, (5 * x).sort(0).values)
    assert free.free_inputs.requires_grad


def test_bounded_pseudo_inputs_are_in_the_range_of_the_data_and_free_ones_anywhere():
    for bounded in (True, False):
        prior = VampPrior(encoder(), (X,), components=9, bounded=bounded)
        with torch.no_grad():
            prior.free_inputs.mul_(50)
        inside = ((prior.pseudo_inputs >= 0) & (prior.pseudo_inputs <= 1)).all().item()
        assert inside == bounded


@every_encoder
def test_an_exemplar_prior_is_the_mixture_by_hand(make):
    x = binary(7, X).double()
    prior = scattered(ExemplarPrior(make(), x, components=3))
    z = torch.randn(4, 2, dtype=torch.float64)
    means = [prior.encoder(row).mean for row in x]
    density = sum(dist.Normal(m, prior.log_scale.exp()).log_prob(z).sum(-1).exp() for m in means)
    torch.testing.assert_close(prior().log_prob(z), (density / 7).log())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.long], ids=str)
def test_examples_may_be_bits_and_whole_numbers(dtype):
    x, net = binary(6, X), encoder()
    first = VampPrior(net, (X,), components=6).start_at(x.to(dtype))
    torch.testing.assert_close(first.pseudo_inputs.sort(0)[0], x.clamp(0.01, 0.99).sort(0)[0])
    z = torch.randn(3, 2)
    of_bits, of_floats = (ExemplarPrior(net, y)().log_prob(z) for y in (x.to(dtype), x))
    torch.testing.assert_close(of_bits, of_floats)


def test_exemplars_of_an_encoder_without_a_mean_are_refused_in_its_own_words():
    flow = SplineFlowEncoder(MLP((X,), SplineFlowEncoder.net_shape(2), hidden=(4,)))
    x = binary(20, X)
    vae = VAE(ExemplarPrior(flow, x), BernoulliDecoder(MLP((2,), (X,), hidden=(4,))), flow)
    with pytest.raises(InputError, match="those of SplineFlowEncoder have none") as caught:
        pyrovae.fit(vae, x, epochs=1, progress=False)
    assert "--prior vamp" in caught.value.remedy


def test_a_step_of_training_takes_a_new_subset_of_the_exemplars():
    x = torch.rand(7, X)
    prior = ExemplarPrior(encoder(), x, components=3)
    rows = count_rows(prior.encoder)
    means = {
        tuple(map(tuple, sorted(prior().component_distribution.mean.tolist()))) for _ in range(30)
    }
    assert set(rows) == {(3,)}
    assert len(means) > 10
    prior.eval()()
    assert rows[-1] == (7,)


def test_the_bound_over_subsets_is_below_that_over_all():
    """Every subset counts the same: their densities average to the whole, their logs to less."""
    prior = scattered(ExemplarPrior(encoder(), torch.rand(5, X), components=2))
    z = torch.randn(3, 2, dtype=torch.float64)
    whole = prior().log_prob(z)
    prior.train()
    log_probs = torch.stack([prior().log_prob(z) for _ in range(1000)])
    density = log_probs.exp()
    error = density.std(0) / math.sqrt(len(density))
    assert ((density.mean(0) - whole.exp()) / error).abs().max() < 4.0
    assert (log_probs.mean(0) < whole).all()


def test_exemplars_are_saved_with_the_weights_and_not_in_the_configuration(tmp_path):
    prior = ExemplarPrior(encoder(), torch.rand(400, X), components=3)
    text = json.dumps(to_config(prior))
    assert json.loads(text)["exemplars"] == [400, X]
    assert len(text) < 500
    again = from_config(json.loads(text))
    again.load_state_dict(prior.state_dict())
    assert torch.equal(again.inputs, prior.inputs)


def test_of_many_exemplars_some_are_kept():
    x = torch.rand(60, X)
    prior = ExemplarPrior(encoder(), x, keep=9)
    everything = ExemplarPrior(encoder(), x, keep=60)
    assert torch.equal(everything.inputs, x)
    assert prior.exemplars == (9, X)
    matches = (prior.inputs[:, None] == x).all(-1)
    assert matches.sum(1).tolist() == [1] * 9
    assert matches.any(0).sum() == 9
    before = x.clone()
    everything.inputs.zero_()
    assert torch.equal(x, before)


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StudentTPrior(2, df=0.0), "df"),
        (lambda: StudentTPrior(2, df=math.nan), "df"),
        (lambda: StudentTPrior(2, df=math.inf), "df.*StandardNormal"),
        (lambda: UniformPrior(2, low=1.0, high=1.0), "empty"),
        (lambda: UniformPrior(2, high=math.inf), "no density.*finite high"),
        (lambda: UniformPrior(2, low=-math.inf), "no density"),
        (lambda: UniformPrior(2, high=math.nan), "no density"),
        (lambda: StandardNormal(0), "latent_dim is 0"),
        (lambda: DiagonalGaussian(0), "latent_dim is 0"),
        (lambda: LaplacePrior(-1), "latent_dim is -1"),
        (lambda: StudentTPrior(0), "latent_dim is 0"),
        (lambda: UniformPrior(0), "latent_dim is 0"),
        (lambda: GaussianMixture(0), "latent_dim is 0"),
        (lambda: GaussianMixture(2, spread=math.inf), "spread"),
        (lambda: BernoulliPrior(0), "latent_dim is 0"),
        (lambda: AutoregressiveGaussianPrior(0), "latent_dim is 0"),
        (lambda: Autoencoder(0, nn.Identity(), nn.Identity()), "latent_dim is 0"),
        (lambda: GaussianMixture(2, components=0), "components is 0"),
        (lambda: GaussianMixture(2, spread=0.0), "spread"),
        (lambda: AutoregressiveGaussianPrior(4, hidden=()), "none"),
        (lambda: AutoregressiveGaussianPrior(4, hidden=(8, 3)), "narrow"),
        (lambda: VampPrior(encoder(), (X,), components=0), "components is 0"),
        (lambda: VampPrior(encoder(), (X,), components=3).start_at(binary(2, X)), "cannot be"),
        (lambda: VampPrior(encoder(), (X,), components=3).start_at(binary(9, 5)), "cannot be"),
        (lambda: ExemplarPrior(encoder(), torch.zeros(0, X)), "exemplars is 0"),
        (lambda: ExemplarPrior(encoder(), torch.zeros(X)), "no batch"),
        (lambda: ExemplarPrior(encoder(), binary(3, X), components=0), "components is 0"),
        (lambda: ExemplarPrior(encoder(), binary(3, X), keep=0), "keep is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# ── In a whole VAE ───────────────────────────────────────────────────────────────────────────


class BoxEncoder(nn.Module):
    """Draws within (-2, 1.5), for the prior on that box."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        loc, log_scale = self.net(x).chunk(2, -1)
        squash = [
            dist.transforms.SigmoidTransform(),
            dist.transforms.AffineTransform(-2.0, 3.5),
        ]
        base = dist.Normal(loc, log_scale.exp())
        return dist.TransformedDistribution(base, squash).to_event(1)


# The prior of an encoder and of examples.
VAES = {
    "laplace": lambda q, x: LaplacePrior(2),
    "student": lambda q, x: StudentTPrior(2),
    "uniform": lambda q, x: UniformPrior(2, low=-2.0, high=1.5),
    "mixture": lambda q, x: GaussianMixture(2, components=3, spread=0.5),
    "autoregressive": lambda q, x: AutoregressiveGaussianPrior(2, hidden=(8,)),
    "vamp": lambda q, x: VampPrior(q, (X,), components=5).start_at(x),
    "weighted vamp": lambda q, x: VampPrior(q, (X,), components=5, learn_weights=True),
    "exemplars": lambda q, x: ExemplarPrior(q, x, components=4),
}
every_vae = pytest.mark.parametrize("make", VAES.values(), ids=VAES)


def vae_with(make, q=None):
    q = q or encoder()
    prior = make(q, binary(12, X))
    if isinstance(prior, UniformPrior):
        q = BoxEncoder(q.net)
    return VAE(prior, BernoulliDecoder(MLP((2,), (X,), hidden=(8,))), q)


def losses(kind, make, loss, **options):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    vae, x = vae_with(make), binary(9, X)
    svi = kind(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), loss(), **options)
    found = []
    for step in range(5):
        torch.manual_seed(step)
        found.append(float(svi.step(x)))
    if options:
        assert svi.engines == ["graph"]
    return found


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
@every_vae
def test_captured_training_is_that_of_pyro(make, loss):
    stock = losses(SVI, make, loss)
    assert losses(CompiledSVI, make, loss, engine="graph") == pytest.approx(stock, rel=1e-5)


@every_vae
def test_every_prior_trains_and_is_evaluated(make):
    vae = vae_with(make)
    x = (torch.rand(60, X) < torch.rand(60, 1)).float()  # pixels that know of each other
    assert inspect_program(vae, Batch(x)).vectorizes
    before = evaluate(vae, x, num_samples=200)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(100):
        svi.step(x)
    after = evaluate(vae, x, num_samples=200)
    for found in (before, after):
        assert all(v.isfinite().all() for v in (found.elbo, found.kl, found.log_evidence))
    assert after.elbo.mean() > before.elbo.mean() + 0.1


@pytest.mark.parametrize("name", ["vamp", "exemplars"])
def test_a_vae_whose_prior_has_its_encoder_is_saved_and_built_again(name, tmp_path):
    vae = vae_with(VAES[name])
    save(tmp_path, Checkpoint(1, vae.state_dict(), {}))
    built = from_config(json.loads(json.dumps(to_config(vae))))
    built.load_state_dict(load_newest(tmp_path).weights)

    x, z = binary(5, X), torch.randn(5, 2)
    for again in (built, copy.deepcopy(vae)):
        assert again.prior.encoder is again.encoder
        assert len(list(again.parameters())) == len(list(vae.parameters()))
        assert torch.equal(again.encoder(x).mean, vae.encoder(x).mean)
        assert torch.equal(again.eval().prior().log_prob(z), vae.eval().prior().log_prob(z))


@pytest.mark.parametrize("name", ["vamp", "exemplars"])
def test_a_run_with_such_a_prior_is_loaded_as_it_was(name, tmp_path):
    vae, x = vae_with(VAES[name]), binary(40, X)
    run = pyrovae.fit(vae, x, epochs=2, batch_size=20, run_dir=tmp_path / "run", progress=False)
    loaded = pyrovae.load(tmp_path / "run", data=x)
    assert loaded.program.prior.encoder is loaded.program.encoder
    for a, b in zip(run.program.parameters(), loaded.program.parameters(), strict=True):
        assert torch.equal(a, b)
    expected, found = (r.evaluate(x, num_samples=10) for r in (run, loaded))
    assert torch.equal(found.elbo, expected.elbo)


def test_the_bound_is_largest_under_the_aggregated_posterior():
    """With pseudo-inputs at the data, no other prior gives these examples a smaller KL."""
    x = binary(25, X)
    vae = vae_with(lambda q, _: VampPrior(q, (X,), components=25, bounded=False).start_at(x))
    for parameter in vae.encoder.parameters():
        nn.init.normal_(parameter, std=0.7)
    best = evaluate(vae, x, num_samples=2000).kl.mean()
    assert best < math.log(25)
    for other in (StandardNormal(2), GaussianMixture(2, components=5)):
        vae.prior = other
        assert evaluate(vae, x, num_samples=2000).kl.mean() > best

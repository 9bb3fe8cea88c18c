"""Normalising flows: determinants by differentiation, inverses, and the densities they make."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64
from pyro.distributions import transforms
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from safetensors.torch import load, save
from torch import nn
from torch.autograd.functional import jacobian

from pyrovae.decoders import GaussianDecoder
from pyrovae.distributions import Coupling, InverseAutoregressive, affine_bend, spline_bend
from pyrovae.encoders import BernoulliEncoder, GaussianEncoder, IAFEncoder, SplineFlowEncoder
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.models import VAE
from pyrovae.networks import MLP
from pyrovae.priors import FlowPrior, RealNVPPrior, SplineFlowPrior, StandardNormal
from pyrovae.svi import CompiledSVI

D = 3


def stirred(module):
    """A module far from where it starts."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def made(kind, *, flip=False):
    stays, bent = (2, 1) if flip else (1, 2)
    if kind == "affine":
        return Coupling(stirred(MLP((stays,), (bent, 2), hidden=(5,))), affine_bend, flip=flip)
    if kind == "spline":
        return Coupling(stirred(MLP((stays,), (bent, 14), hidden=(5,))), spline_bend, flip=flip)
    encoder = stirred(IAFEncoder(MLP((2,), (9,), hidden=()), layers=1, hidden=6, context=3))
    return encoder(torch.ones(2)).transforms[0]


BIJECTIONS = [("affine", False), ("affine", True), ("spline", False), ("spline", True), ("iaf", 0)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: transforms.spline(D), "a single Spline.* a list"),
        (lambda: [transforms.planar(D)], "Planar cannot be inverted"),
        (lambda: [transforms.neural_autoregressive(D)], "Neural.* cannot be inverted"),
        (lambda: [transforms.conditional_affine_coupling(D, 2)], "no transform by itself"),
        (lambda: [nn.Linear(D, D)], "Linear is no transform"),
        (lambda: [transforms.spline(D), transforms.affine_coupling(4)], "AffineCoup.* 3 dimens"),
        (lambda: [transforms.permute(2)], r"shape \(2,\) out of vectors of 3"),
        (lambda: [transforms.CorrCholeskyTransform()], r"shape \(3, 3\) out of vectors of 3"),
        (
            lambda: [transforms.conditional_spline(D, 2).condition(torch.ones(2))],
            "ConditionedSpline holds a tensor in a partial",
        ),
        (
            lambda: [transforms.AffineTransform(0.0, nn.Parameter(torch.ones(D)).exp())],
            "'scale' that needs a gradient",
        ),
    ],
)
def test_a_stack_that_is_no_flow_is_refused_where_it_is_made(make, reason):
    with pytest.raises(InputError, match=reason):
        FlowPrior(D, make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: [transforms.affine_coupling(D), transforms.permute(D)],
        lambda: [transforms.spline_coupling(D), transforms.BatchNorm(D)],
        lambda: [transforms.affine_autoregressive(D), transforms.TanhTransform()],
        lambda: transforms.ComposeTransformModule([transforms.spline(D)]),
        lambda: [],
    ],
)
def test_a_stack_is_tried_without_a_trace(make):
    stack = make()
    modules = nn.ModuleList(t for t in stack if isinstance(t, nn.Module))
    state = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
    generator = torch.get_rng_state()
    prior = FlowPrior(D, stack)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in prior.modules())
    assert all(torch.equal(state[name], tensor) for name, tensor in modules.state_dict().items())
    assert not pyro.get_param_store().keys()
    FlowPrior(D, stack)().log_prob(prior().rsample())
    assert FlowPrior(D, stack).transforms == list(stack), "nor does use keep it from being tried"


def test_a_trial_within_an_inverse_leaves_no_trace():
    norm = transforms.BatchNorm(D)
    prior = FlowPrior(D, [norm.inv])
    assert torch.equal(norm.moving_mean, torch.zeros(D))
    assert all(module.training for module in prior.modules())


def order():
    """A permutation, drawn at random."""
    return transforms.permute(D)


def affine(**options):
    return transforms.AffineTransform(torch.randn(D), torch.rand(D) + 0.5, **options)


def by_normal(loc):
    """From numbers to probabilities."""
    return transforms.CumulativeDistributionTransform(dist.Normal(loc, 9.0))


# Each holds something that is neither a parameter nor a buffer of a module in the stack itself.
HOLDING = {
    "order": lambda: [order()],
    "orders": lambda: [order(), transforms.affine_coupling(D, [4]), order()],
    "inverse order": lambda: [order().inv],
    "one order twice": lambda: [p := order(), transforms.affine_coupling(D, [4]), p],
    "triangle": lambda: [
        transforms.LowerCholeskyAffine(torch.randn(D), torch.eye(D) + torch.rand(D, D).tril())
    ],
    "affine": lambda: [affine(event_dim=1)],
    "inverse affine": lambda: [affine(event_dim=1).inv],
    "independent": lambda: [transforms.IndependentTransform(affine(), 1)],
    "expanded": lambda: [transforms.AffineTransform(torch.randn(1).expand(D), 2.0, event_dim=1)],
    "learned": lambda: [
        transforms.AffineTransform(nn.Parameter(torch.randn(D)), 2.0, event_dim=1)
    ],
    "distribution": lambda: [
        transforms.ComposeTransform([by_normal(torch.randn(D)), by_normal(torch.zeros(D)).inv])
    ],
    "inverse module": lambda: [transforms.affine_coupling(D, [4]).inv],
    "composed": lambda: [transforms.ComposeTransform([order(), transforms.spline(D)])],
    "inverse composed": lambda: [transforms.ComposeTransform([order(), transforms.spline(D)]).inv],
    "composed module": lambda: [
        transforms.ComposeTransformModule([transforms.spline(D).inv, order()])
    ],
    "our own": lambda: [Coupling(MLP((1,), (2, 2), hidden=(4,)), affine_bend, flip=False)],
}
every_holding = pytest.mark.parametrize("name", HOLDING)


def holding(name, *, seed=0):
    """A prior with a coupling, so that the order of what it makes matters."""
    torch.manual_seed(seed)
    return stirred(FlowPrior(D, [transforms.affine_coupling(D, [4]), *HOLDING[name]()]))


def pickled(prior):
    return pickle.loads(pickle.dumps(prior))  # noqa: S301


def scores(prior, z):
    """Densities, and draws."""
    torch.manual_seed(1)
    return prior().log_prob(z), prior().sample((4,))


@every_holding
def test_all_that_transforms_hold_is_saved_and_loaded(name):
    prior, other, z = holding(name), holding(name, seed=2), torch.randn(5, D)
    expected, before = scores(prior, z), scores(other, z)
    assert not torch.allclose(before[0], expected[0])
    assert not torch.allclose(before[1], expected[1])
    other.load_state_dict(load(save(prior.state_dict())))
    for found, value in zip(scores(other, z), expected, strict=True):
        torch.testing.assert_close(found, value)


@every_holding
def test_all_that_transforms_hold_is_converted(name):
    prior, z = holding(name), torch.randn(5, D)
    expected = scores(prior, z)[0]
    prior.double()
    found, drawn = scores(prior, z.double())
    assert found.dtype == drawn.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
@every_holding
def test_a_prior_in_use_is_copied_with_all_that_it_holds(name, again):
    prior, z = holding(name), torch.randn(5, D)
    expected = scores(prior, z)
    torch.testing.assert_close(prior().log_prob(z), expected[0])
    other = again(prior)
    for found, value in zip(scores(other, z), expected, strict=True):
        assert torch.equal(found, value)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.copy_(tensor.flip(0))
    assert not torch.allclose(scores(other, z)[0], expected[0])
    assert torch.equal(scores(prior, z)[0], expected[0]), "they share nothing"


def test_a_parameter_of_a_transform_is_trained():
    shift = nn.Parameter(torch.zeros(D))
    prior = FlowPrior(D, [transforms.AffineTransform(shift, 1.0), order()])
    optimizer, z = torch.optim.Adam(prior.parameters(), lr=0.1), torch.full((1, D), 2.0)
    for _ in range(200):
        optimizer.zero_grad()
        (-prior().log_prob(z).sum()).backward()
        optimizer.step()
    torch.testing.assert_close(shift.detach(), z[0], atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "put",
    [
        lambda module: module.inv,
        lambda module: transforms.ComposeTransform([order(), module]),
        lambda module: transforms.ComposeTransform([module, order()]).inv,
        lambda module: transforms.ComposeTransformModule([order(), module.inv]),
        lambda module: transforms.IndependentTransform(module, 0, cache_size=1),
    ],
)
@pytest.mark.parametrize("make", [transforms.affine_autoregressive, transforms.spline])
def test_a_module_is_found_wherever_it_stands(make, put):
    module = make(D)
    prior = FlowPrior(D, [put(module), module.inv])
    assert [*prior.trained.parameters()] == [*module.parameters()]


def test_modules_of_the_stack_itself_have_the_names_that_they_had():
    spline, norm = transforms.spline(D), transforms.BatchNorm(D)
    inside = transforms.affine_autoregressive(D)
    prior = FlowPrior(D, [order(), inside.inv, spline.inv, spline, norm, spline])
    assert [*prior.trained] == [spline, norm, spline, inside]
    assert [*FlowPrior(D, [norm]).state_dict()] == [f"trained.0.{k}" for k in norm.state_dict()]


@every_holding
def test_weights_that_have_changed_are_those_of_the_next_distribution(name):
    prior, z = holding(name), torch.randn(5, D)
    first, second = prior(), prior()
    before = first.log_prob(z)
    before.sum().backward()
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3)
    # Neither one made anew, nor one that had mapped nothing, knows the pair of the first.
    expected = prior().log_prob(z.clone())
    for density in (prior(), second):
        found = density.log_prob(z)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
    assert not torch.allclose(before, expected)


def test_the_own_draw_of_a_stack_costs_one_pass_and_has_its_gradients(monkeypatch):
    prior = FlowPrior(D, [transforms.affine_autoregressive(D, [4]), order()])
    torch.manual_seed(0)
    expected = torch.autograd.grad(
        prior().log_prob(prior().rsample((6,))).sum(), [*prior.parameters()]
    )
    monkeypatch.setattr(transforms.AffineAutoregressive, "_inverse", None)
    torch.manual_seed(0)
    density = prior()
    found = torch.autograd.grad(
        density.log_prob(density.rsample((6,))).sum(), [*prior.parameters()]
    )
    for gradient, value in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, value, atol=1e-4, rtol=1e-4)


def test_batch_norm_goes_by_the_batch_in_training_and_by_running_averages_in_evaluation():
    prior, z = (
        FlowPrior(D, [transforms.BatchNorm(D, momentum=0.5, epsilon=0.0)]),
        torch.randn(9, D),
    )
    mean, variance = z.mean(0), z.var(0)
    density = dist.Normal(mean, variance.sqrt()).to_event(1)
    torch.testing.assert_close(prior().log_prob(z), density.log_prob(z))
    state = {name: tensor.clone() for name, tensor in prior.eval().state_dict().items()}
    density = dist.Normal(0.5 * mean, (0.5 + 0.5 * variance).sqrt()).to_event(1)
    for value in (z, z[0], z.expand(2, 9, D)):
        torch.testing.assert_close(prior().log_prob(value), density.log_prob(value))
    assert all(torch.equal(state[name], tensor) for name, tensor in prior.state_dict().items())


@pytest.mark.parametrize(("kind", "flip"), BIJECTIONS)
def test_a_bijection_is_inverted_and_its_determinant_is_that_of_its_jacobian(kind, flip):
    with float64():
        bijection, x = made(kind, flip=flip), 2 * torch.randn(7, D)
        x[0] = torch.tensor([4.9, -6.0, 30.0])  # near the end of the splines, and outside
        y = bijection(x)
        torch.testing.assert_close(bijection.backward(y.clone())[0], x)
        log_det = bijection.log_abs_det_jacobian(x.clone(), y.clone())
        torch.testing.assert_close(bijection.backward(y.clone())[1], log_det)
        for row in range(len(x)):
            matrix = jacobian(lambda v: bijection.forward(v)[0], x[row])
            expected = torch.linalg.slogdet(matrix).logabsdet
            torch.testing.assert_close(log_det[row], expected)
        assert not torch.allclose(y, x, atol=0.1)


def test_a_spline_is_the_identity_where_its_parameters_are_zero():
    value = torch.linspace(-7, 7, 29)
    for back in (False, True):
        moved, log_slope = spline_bend(value, torch.zeros(29, 11), back)
        torch.testing.assert_close(moved, value, atol=1e-5, rtol=0)
        torch.testing.assert_close(log_slope, torch.zeros(29), atol=1e-5, rtol=0)


def test_a_spline_rises_and_joins_on_smoothly():
    with float64():
        value = torch.linspace(-5.5, 5.5, 4001)
        parameters = torch.randn(11).expand(4001, 11)
        moved, log_slope = spline_bend(value, parameters, False)
        ends = torch.tensor([-5 + 1e-7, 5 - 1e-7])
        _, at_ends = spline_bend(ends, parameters[:2], False)
    assert (moved.diff() > 0).all()
    assert at_ends.abs().max() < 1e-4, "it leaves with the slope of the identity"
    assert log_slope.isfinite().all()
    assert (moved - value)[(value.abs() < 4.9)].abs().max() > 0.1


@pytest.mark.parametrize("back", [False, True])
def test_splines_stay_finite_in_float32(back):
    value = torch.cat([torch.linspace(-6, 6, 1001), torch.tensor([-5.0, 5.0, 0.0])])
    for scale in (1.0, 30.0):
        parameters = (scale * torch.randn(len(value), 23)).requires_grad_()
        moved, log_slope = spline_bend(value.requires_grad_(), parameters, back)
        gradients = torch.autograd.grad((moved + log_slope).sum(), (value, parameters))
        for tensor in (moved, log_slope, *gradients):
            assert tensor.isfinite().all()


def every_flow():
    net = MLP((2,), (2 * 2 + 3,), hidden=())
    x = torch.tensor([0.5, -1.0])
    return [
        stirred(RealNVPPrior(2, layers=4, hidden=6))(),
        stirred(SplineFlowPrior(2, layers=3, bins=5, hidden=6))(),
        stirred(IAFEncoder(net, layers=2, hidden=6, context=3))(x),
        stirred(SplineFlowEncoder(net, layers=3, bins=5, hidden=6, context=3))(x),
        FlowPrior(2, [transforms.AffineCoupling(1, stirred(Split()))])(),
    ]


class Split(nn.Module):
    """What Pyro's AffineCoupling asks of a network."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x):
        return self.linear(x).chunk(2, -1)


@pytest.mark.parametrize("index", range(5))
def test_a_flow_is_a_density(index):
    with float64(), torch.no_grad():
        torch.manual_seed(3)
        flow = every_flow()[index]
        width = 4 * flow.sample((4000,)).abs().amax()
        axis = torch.linspace(-width, width, 1201)
        grid = torch.cartesian_prod(axis, axis)
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
        assert mass.item() == pytest.approx(1.0, abs=0.01)
        # Its draws are its own: their mean is the density's.
        mean = (flow.log_prob(grid).exp()[:, None] * grid).sum(0) * (axis[1] - axis[0]) ** 2
        draws = flow.sample((4000,))
        assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / math.sqrt(4000) + 0.02).all()


@pytest.mark.parametrize("index", range(4))
def test_a_draw_is_scored_as_any_other_value(index):
    with float64():
        flow = every_flow()[index].expand((6,))
        z = flow.rsample()
        torch.testing.assert_close(flow.log_prob(z), flow.log_prob(z.clone()))


def test_the_own_draw_of_a_slow_flow_costs_one_pass(monkeypatch):
    monkeypatch.setattr(InverseAutoregressive, "backward", None)
    flow = every_flow()[2].expand((5,))
    assert flow.log_prob(flow.rsample()).isfinite().all()


@pytest.mark.parametrize("make", [RealNVPPrior, SplineFlowPrior])
def test_a_prior_starts_near_the_standard_normal(make):
    z = torch.randn(50, 4)
    expected = dist.Normal(0.0, 1.0).expand([4]).to_event(1).log_prob(z)
    assert (make(4)().log_prob(z) - expected).abs().max() < 0.5


def test_autoregressive_steps_of_a_single_dimension_are_a_normal_and_warn_of_nothing():
    posterior = stirred(IAFEncoder(MLP((2,), (5,)), layers=2, hidden=6, context=3))(torch.ones(2))
    z = torch.linspace(-200, 200, 400_001).unsqueeze(-1)
    density = posterior.log_prob(z).exp().squeeze(-1)
    assert (density.sum() * 1e-3).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("make", [IAFEncoder, SplineFlowEncoder])
def test_a_flow_posterior_gets_nearer_than_a_diagonal_one(make):
    """The posterior of a linear-Gaussian model with correlated latents."""
    torch.manual_seed(0)
    decoder = GaussianDecoder(nn.Linear(2, 3), scale=0.3)
    decoder.requires_grad_(requires_grad=False)
    with torch.no_grad():
        decoder.net.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.1], [0.1, -0.1]]))
    x = dist.Normal(0.0, 1.5).sample((200, 3))
    gaps = []
    for kind in (GaussianEncoder, make):
        torch.manual_seed(0)
        options = {} if kind is GaussianEncoder else {"hidden": 16, "context": 4}
        size = kind.net_shape(2, **({"context": 4} if options else {}))
        vae = VAE(StandardNormal(2), decoder, kind(MLP((3,), size, hidden=(32,)), **options))
        svi = CompiledSVI(
            vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), engine="graph"
        )
        for _ in range(600):
            svi.step(x)
        found = evaluate(vae, x, num_samples=300)
        assert (found.elbo <= found.log_evidence).all()
        gaps.append((found.log_evidence - found.elbo).mean())
    assert gaps[1] < 0.6 * gaps[0]


PROGRAMS = {
    "RealNVP prior": (RealNVPPrior(4, hidden=8), GaussianEncoder, {}),
    "spline prior": (SplineFlowPrior(4, hidden=8), GaussianEncoder, {}),
    "IAF": (StandardNormal(4), IAFEncoder, {"hidden": 8, "context": 4}),
    "spline": (StandardNormal(4), SplineFlowEncoder, {"hidden": 8, "context": 4}),
    "both": (RealNVPPrior(4, hidden=8), IAFEncoder, {"hidden": 8, "context": 4}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_trains_under_pyro_and_compiled_alike(name):
    prior, encoder, options = PROGRAMS[name]
    x, losses = torch.randn(20, 5), []
    for engine in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        size = encoder.net_shape(4, **({"context": 4} if options else {}))
        decoder = GaussianDecoder(MLP((4,), (5,), hidden=(8,)))
        again = type(prior)(4, hidden=8) if hasattr(prior, "hidden") else StandardNormal(4)
        vae = VAE(again, decoder, encoder(MLP((5,), size, hidden=(8,)), **options))
        kind = {"engine": "graph"} if engine is CompiledSVI else {}
        svi = engine(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **kind)
        losses.append([])
        for step in range(5):
            torch.manual_seed(step)
            losses[-1].append(float(svi.step(x)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert svi.engines == ["graph"]
    found = evaluate(vae, x, num_samples=10)
    assert found.elbo.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RealNVPPrior(1),
        lambda: RealNVPPrior(3, layers=0),
        lambda: SplineFlowPrior(3, bins=1),
        lambda: IAFEncoder(nn.Linear(3, 7)),
        lambda: IAFEncoder(MLP((3,), (7,)), context=4),
        lambda: IAFEncoder(MLP((3,), (10,)), layers=0, context=4),
        lambda: SplineFlowEncoder(MLP((3,), (6,)), context=4),
        lambda: SplineFlowEncoder(MLP((3,), (10,)), bins=1, context=4),
    ],
)
def test_sizes_that_make_no_flow_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_a_spline_of_a_draw_without_gradient_is_followed_by_trace_graph_elbo():
    """Where Pyro's provenance of a draw makes plain tuples of shapes."""
    x = torch.rand(6, 5).round()
    bits = BernoulliEncoder(MLP((5,), (4,), hidden=(4,)))
    spline = SplineFlowEncoder(MLP((4,), SplineFlowEncoder.net_shape(2), hidden=(4,)))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("bits", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0).expand((2,)).to_event(1), obs=x[:, :2])
            pyro.sample("y", spline(z), obs=x[:, 2:4])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("bits", bits(x))

    loss = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceGraph_ELBO()).step(x)
    assert math.isfinite(loss)

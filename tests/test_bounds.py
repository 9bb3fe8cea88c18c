"""Every bound against a closed form, quadrature or enumeration: its value and its gradient."""

import copy
import logging
import math
import warnings
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64, linear_gaussian
from loss_gradients import loss_and_gradients
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from pyrovae import bounds
from pyrovae.bounds import (
    ELBO,
    IWAE,
    MMD,
    VIMCO,
    BalancedKL,
    Capacity,
    DReG,
    FreeBits,
    ReweightedWakeSleep,
    StickingTheLanding,
    TotalCorrelation,
)
from pyrovae.bounds.aggregate import squared_mmd
from pyrovae.distributions import Weighted, exact_kl
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.handlers import kl_weight
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE
from pyrovae.svi import CompiledSVI, Objective, Stepper
from pyrovae.training import fit

STILL = partial(torch.optim.SGD, lr=0.0)


def repeated(x, copies):
    """Every example so many times: one call then has as many draws of each as so many calls."""
    return x.repeat(copies, *(1,) * (x.dim() - 1))


def mean_gradients(bound, program, x, *, repeats, copies=500):
    """The mean of many gradients, and their standard errors, by parameter."""
    many = repeated(x, copies)
    calls = range(max(40, repeats // copies))
    found = [loss_and_gradients(bound, program, many, seed=s)[1] for s in calls]
    stacked = {name: torch.stack([g[name] for g in found]) / copies for name in found[0]}
    return (
        {name: g.mean(0) for name, g in stacked.items()},
        {name: g.std(0) / math.sqrt(len(calls)) for name, g in stacked.items()},
    )


def mean_loss(bound, program, x, *, repeats=400, calls=40):
    """The mean of many losses and its standard error."""
    copies = repeats // calls
    losses = [
        loss_and_gradients(bound, program, repeated(x, copies), seed=seed)[0]
        for seed in range(calls)
    ]
    losses = torch.stack(losses) / copies
    return losses.mean(), losses.std() / math.sqrt(calls)


def assert_same_mean(found, expected, *, sigmas=5.0):
    """Two estimates of the same gradients agree within their errors."""
    for name in found[0]:
        error = (found[1][name] ** 2 + expected[1][name] ** 2).sqrt()
        gap = (found[0][name] - expected[0][name]).abs()
        assert (gap <= sigmas * error + 1e-9).all(), name


# ── Pyro's own bounds ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ELBO(), Trace_ELBO()),
        (ELBO(6), Trace_ELBO(6, vectorize_particles=True)),
        (ELBO(exact_kl=True), TraceMeanField_ELBO()),
        (ELBO(4, exact_kl=True), TraceMeanField_ELBO(4, vectorize_particles=True)),
        (IWAE(6), RenyiELBO(0, num_particles=6, vectorize_particles=True)),
    ],
)
def test_what_pyro_has_too_is_the_same(ours, theirs):
    found = linear_gaussian(shift=0.5, stretch=1.3, beta=0.7)
    loss, gradients = loss_and_gradients(ours, found.vae, found.x)

    torch.manual_seed(0)
    if theirs.vectorize_particles:
        theirs.max_plate_nesting = 2
    expected = theirs.loss_and_grads(found.vae.model, found.vae.guide, found.x)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    for name, parameter in found.vae.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


EVERY = {
    "ELBO": lambda: ELBO(3),
    "exact KL": lambda: ELBO(3, exact_kl=True),
    "StickingTheLanding": lambda: StickingTheLanding(3),
    "IWAE": lambda: IWAE(3),
    "DReG": lambda: DReG(3),
    "VIMCO": lambda: VIMCO(3),
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(3, sleep=0.5),
    "TotalCorrelation": lambda: TotalCorrelation(),
    "MMD": lambda: MMD(alpha=0.3),
}
every_bound = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


def test_every_bound_is_tested():
    tested = {type(make()) for make in EVERY.values()}
    named = {getattr(bounds, name) for name in bounds.__all__}
    assert tested == {cls for cls in named if issubclass(cls, bounds.Bound)} - {bounds.Bound}


@every_bound
def test_draws_one_after_the_other_are_as_good_as_together(make):
    # Normal draws come in blocks of 16: one of these is a whole number of blocks.
    found = linear_gaussian(16)
    together, apart = make(), make()
    apart.vectorize_particles = False
    a, b = (loss_and_gradients(bound, found.vae, found.x) for bound in (together, apart))
    # Their noise is laid out alike, and of a wake-sleep the dreams come after all.
    torch.testing.assert_close(a, b)


@every_bound
def test_a_bound_trains_under_pyro_and_compiled_alike(make):
    losses = []
    for engine in (SVI, CompiledSVI):
        pyro.clear_param_store()
        torch.manual_seed(0)
        found = linear_gaussian(shift=1.0)
        svi = engine(found.vae.model, found.vae.guide, pyro.optim.Adam({"lr": 0.01}), make())
        if engine is CompiledSVI:
            svi = CompiledSVI(
                found.vae.model,
                found.vae.guide,
                pyro.optim.Adam({"lr": 0.01}),
                make(),
                engine="graph",
            )
        losses.append([])
        for step in range(6):
            torch.manual_seed(step)
            losses[-1].append(float(svi.step(found.x)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert svi.engines == ["graph"]


def test_the_depth_of_a_program_is_found_without_a_word(caplog):
    """Pyro's own way of finding it out logs what it found."""
    found = linear_gaussian()
    bound = IWAE(3)
    with caplog.at_level(logging.INFO):
        loss_and_gradients(bound, found.vae, found.x)
    assert bound.max_plate_nesting == 2
    assert not caplog.records


# ── Closed forms ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bound", [ELBO(4), IWAE(4), DReG(4), StickingTheLanding(4), VIMCO(4)])
def test_at_the_exact_posterior_every_bound_is_the_evidence(bound):
    found = linear_gaussian()
    loss, _ = loss_and_gradients(bound, found.vae, found.x)
    assert -loss.item() == pytest.approx(found.log_evidence.sum().item(), rel=1e-9)


def test_the_elbo_is_the_evidence_less_the_gap():
    found = linear_gaussian(shift=0.4, stretch=1.2)
    loss, _ = loss_and_gradients(ELBO(20_000), found.vae, found.x)
    assert -loss.item() == pytest.approx(found.elbo.sum().item(), abs=0.15)


@pytest.mark.parametrize("bound", [StickingTheLanding(2), DReG(5)])
def test_along_paths_the_guide_has_no_gradient_at_the_exact_posterior(bound):
    found = linear_gaussian()
    _, gradients = loss_and_gradients(bound, found.vae, found.x)
    for name, gradient in gradients.items():
        if name.startswith("encoder"):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)
        else:
            assert gradient.abs().sum() > 0.1
    _, plain = loss_and_gradients(ELBO(2), found.vae, found.x)
    assert plain["encoder.net.bias"].abs().sum() > 0.1


@pytest.mark.parametrize(
    ("path", "plain"), [(StickingTheLanding(2), ELBO(2)), (DReG(3), IWAE(3)), (VIMCO(3), IWAE(3))]
)
def test_gradients_of_one_bound_have_one_expectation(path, plain):
    found = linear_gaussian(2, shift=0.7, stretch=1.4)
    ours = mean_gradients(path, found.vae, found.x, repeats=1_000_000, copies=20_000)
    theirs = mean_gradients(plain, found.vae, found.x, repeats=1_000_000, copies=20_000)
    assert_same_mean(ours, theirs)
    if not isinstance(path, VIMCO):
        spread = ours[1]["encoder.net.bias"] / theirs[1]["encoder.net.bias"]
        assert spread.mean() < 1, "and less variance"


class Hierarchy(nn.Module):
    """z1 -> z2 -> x, whose guide runs bottom up or top down."""

    def __init__(self, *, top_down):
        super().__init__()
        self.top_down = top_down
        self.weights = nn.Parameter(torch.tensor([0.7, -0.4, 0.3, 0.9, 0.2, -0.3]))

    def model(self, x):
        w = self.weights
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(w[0], 1.0).expand([1]).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(w[1] + z1, 0.8).to_event(1))
            pyro.sample("x", dist.Normal(w[2] * z1 + z2, 0.5).to_event(1), obs=x)

    def guide(self, x):
        w = self.weights
        with pyro.plate("data", len(x)):
            if self.top_down:
                z1 = pyro.sample("z1", dist.Normal(w[3] * x, 0.7).to_event(1))
                pyro.sample("z2", dist.Normal(w[4] * x + w[5] * z1, (w[3] / 2).exp()).to_event(1))
            else:
                z2 = pyro.sample("z2", dist.Normal(w[3] * x, 0.7).to_event(1))
                pyro.sample("z1", dist.Normal(w[4] * x + w[5] * z2, (w[3] / 2).exp()).to_event(1))


@pytest.mark.parametrize("top_down", [True, False])
@pytest.mark.parametrize(("path", "plain"), [(StickingTheLanding(2), ELBO(2)), (DReG(3), IWAE(3))])
def test_gradients_along_paths_are_right_in_a_hierarchy(path, plain, top_down):
    program, x = Hierarchy(top_down=top_down), torch.tensor([[1.3], [-2.1]])
    for bound in (path, plain):
        bound.max_plate_nesting = math.inf
    with torch.no_grad():
        program.weights[5] = 1.2  # what is left out where the guide is not run again, is seen
    ours = mean_gradients(path, program, x, repeats=1_000_000, copies=20_000)
    theirs = mean_gradients(plain, program, x, repeats=1_000_000, copies=20_000)
    assert_same_mean(ours, theirs)


def test_an_exact_kl_is_taken_where_it_is_right_and_sampled_elsewhere():
    x = torch.tensor([[0.3], [-1.1]])
    for top_down in (True, False):
        program = Hierarchy(top_down=top_down)
        sampled = mean_gradients(ELBO(20), program, x, repeats=4000)
        exact = ELBO(20, exact_kl=True)
        if top_down:
            found = mean_gradients(exact, program, x, repeats=4000)
        else:
            with pytest.warns(UserWarning, match="'z2' before what the model may draw it from"):
                found = mean_gradients(exact, program, x, repeats=4000)
        assert_same_mean(found, sampled)


# ── Discrete draws ───────────────────────────────────────────────────────────────────────────


class Bits(nn.Module):
    """Two Bernoulli latents, whose bounds and gradients can be enumerated."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.3, -0.5]))
        self.q = nn.Parameter(torch.tensor([0.8, 0.1]))
        self.slope = nn.Parameter(torch.tensor([1.0, -2.0]))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.p).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.slope, 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = self.q * x.unsqueeze(-1)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    def enumerated(self, x, num_particles):
        """The exact importance-weighted bound: a sum over all K-tuples of draws."""
        codes = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
        log_p = dist.Bernoulli(logits=self.p).log_prob(codes).sum(-1)
        log_x = dist.Normal(codes @ self.slope, 0.8).log_prob(x[:, None])
        log_q = dist.Bernoulli(logits=self.q * x[:, None, None]).log_prob(codes).sum(-1)
        tuples = torch.cartesian_prod(*[torch.arange(4)] * num_particles)
        tuples = tuples.reshape(-1, num_particles)
        log_w = (log_p + log_x - log_q)[:, tuples]
        probability = log_q[:, tuples].sum(-1).exp()
        return (probability * (log_w.logsumexp(-1) - math.log(num_particles))).sum()


@pytest.mark.parametrize(
    ("bound", "num_particles"),
    [(VIMCO(2), 2), (VIMCO(3), 3), (ELBO(1), 1), (ELBO(4), 1)],
)
def test_gradients_of_discrete_draws_are_those_of_the_sum_over_all(bound, num_particles):
    program, x = Bits(), torch.tensor([0.5, -1.2, 0.9])
    exact = -program.enumerated(x, num_particles)
    expected = torch.autograd.grad(exact, list(program.parameters()))
    names = [name for name, _ in program.named_parameters()]
    expected = dict(zip(names, expected, strict=True))
    found = mean_gradients(bound, program, x, repeats=20_000)
    assert_same_mean(found, (expected, {n: torch.zeros_like(g) for n, g in expected.items()}))

    mean, error = mean_loss(bound, program, x, repeats=2000)
    assert abs(mean - exact) < 4.5 * error


def test_the_signal_of_a_draw_is_what_it_adds_to_the_others():
    """K draws of one example: each is replaced by the geometric mean of the others' weights."""
    log_weight = torch.tensor([0.3, -1.2, 2.0])
    expected = []
    for k in range(3):
        others = torch.cat([log_weight[:k], log_weight[k + 1 :]])
        expected.append(torch.cat([others, others.mean(0, keepdim=True)]).logsumexp(0))
    found = VIMCO(3)._without_each(log_weight.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, torch.stack(expected) - math.log(3))


def test_baselines_lower_the_variance():
    program, x = Bits(), torch.tensor([0.5, -1.2, 0.9])
    _, alone = mean_gradients(Trace_Like(4), program, x, repeats=8000)
    _, ours = mean_gradients(ELBO(4), program, x, repeats=8000)
    assert (ours["q"] < 0.8 * alone["q"]).all()


class Trace_Like(ELBO):
    """The ELBO without a baseline."""

    def _estimate(self, draws):
        (draw,) = draws
        value = draw.log_weight
        return (
            value.detach() * (1 + draw.score - draw.score.detach()) + value - value.detach()
        ).mean(0)


def test_wake_follows_the_weights_and_sleep_the_dreams():
    program, x = Bits(), torch.tensor([0.5, -1.2, 0.9])
    # With many draws the weighted draws are the posterior, whose moments are known.
    codes = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
    joint = dist.Bernoulli(logits=program.p).log_prob(codes).sum(-1) + dist.Normal(
        codes @ program.slope, 0.8
    ).log_prob(x[:, None])
    posterior = joint.softmax(-1).detach()
    log_q = dist.Bernoulli(logits=program.q * x[:, None, None]).log_prob(codes).sum(-1)
    wake = torch.autograd.grad(-(posterior * log_q).sum(), program.q)[0]
    theta = torch.autograd.grad(-joint.logsumexp(-1).sum(), program.p)[0]
    found = mean_gradients(ReweightedWakeSleep(400), program, x, repeats=4000, copies=100)
    torch.testing.assert_close(found[0]["q"], wake, atol=0.02, rtol=0.02)
    torch.testing.assert_close(found[0]["p"], theta, atol=0.02, rtol=0.02)

    # Asleep: x = slope . z + noise, z from the prior, and -log q(z | x) by quadrature over x.
    grid = torch.linspace(-12, 12, 4001)
    prior = dist.Bernoulli(logits=program.p).log_prob(codes).sum(-1).exp().detach()
    density = dist.Normal((codes @ program.slope).detach(), 0.8).log_prob(grid[:, None]).exp()
    log_q = dist.Bernoulli(logits=program.q * grid[:, None, None]).log_prob(codes).sum(-1)
    expected = (prior * density * log_q).sum() * (grid[1] - grid[0])
    sleep = torch.autograd.grad(-len(x) * expected, program.q)[0]
    found = mean_gradients(ReweightedWakeSleep(2, sleep=1.0), program, x, repeats=20_000)
    assert ((found[0]["q"] - sleep).abs() < 4.5 * found[1]["q"]).all()


def test_a_wake_draw_is_held_where_it_is():
    """At the exact posterior all draws weigh the same, and the guide's part is its score."""
    found = linear_gaussian()
    _, gradients = loss_and_gradients(ReweightedWakeSleep(3), found.vae, found.x)
    torch.manual_seed(0)
    q = found.vae.encoder(found.x)
    log_q = q.log_prob(q.sample((3,))).mean(0).sum()
    for name, parameter in found.vae.encoder.named_parameters():
        (expected,) = torch.autograd.grad(-log_q, parameter, retain_graph=True)
        torch.testing.assert_close(gradients[f"encoder.{name}"], expected)


@pytest.mark.parametrize(
    "bound", [IWAE(2), DReG(2), StickingTheLanding(), TotalCorrelation(), MMD()]
)
def test_a_discrete_latent_is_refused_where_draws_need_gradients(bound):
    with pytest.raises(InputError, match="VIMCO, ReweightedWakeSleep or ELBO"):
        loss_and_gradients(bound, Bits(), torch.zeros(3))


# ── Plates ───────────────────────────────────────────────────────────────────────────────────


class Subsampled(nn.Module):
    """A batch out of a larger data set."""

    def __init__(self, full_size):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.full_size = full_size

    def model(self, x):
        with pyro.plate("data", self.full_size or len(x), subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", self.full_size or len(x), subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(self.loc * x, 0.6))


@pytest.mark.parametrize("make", [EVERY[n] for n in EVERY if n not in ("TotalCorrelation", "MMD")])
def test_a_subsampled_plate_multiplies_the_bound_and_not_the_weights(make):
    x = torch.tensor([0.5, -1.2])
    whole, gradients = loss_and_gradients(make(), Subsampled(None), x)
    part, larger = loss_and_gradients(make(), Subsampled(20), x)
    assert part.item() == pytest.approx(10 * whole.item(), rel=1e-5)
    torch.testing.assert_close(larger["loc"], 10 * gradients["loc"], rtol=1e-4, atol=1e-5)


class Masked(Subsampled):
    """Examples that are there only in part."""

    def __init__(self, seen):
        super().__init__(None)
        self.seen = seen

    def model(self, x):
        with poutine.mask(mask=self.seen):
            super().model(x)

    def guide(self, x):
        with poutine.mask(mask=self.seen):
            super().guide(x)


@pytest.mark.parametrize("make", [EVERY[n] for n in EVERY if n not in ("TotalCorrelation", "MMD")])
def test_what_is_masked_counts_nothing(make):
    x, all_of_it = torch.tensor([0.5, -1.2, 0.7]), torch.ones(3, dtype=torch.bool)
    seen = torch.tensor([True, False, True])
    program, other = Masked(seen), torch.tensor([0.5, 9.9, 0.7])
    loss, gradients = loss_and_gradients(make(), program, x)
    torch.testing.assert_close((loss, gradients), loss_and_gradients(make(), program, other))
    whole, _ = loss_and_gradients(make(), Masked(all_of_it), x)
    assert whole != loss


class MaskedLatent(nn.Module):
    """A latent that is masked in some examples, in which what is observed yet depends on it."""

    def __init__(self, how, *, discrete=False):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[0.3, -0.2]]))
        self.how, self.discrete = how, discrete

    def draw(self, loc):
        seen = torch.tensor([True, False, True])
        kind = dist.Bernoulli(logits=loc) if self.discrete else dist.Normal(loc, 0.7)
        if self.how == "poutine":
            with poutine.mask(mask=seen):
                return pyro.sample("z", kind.to_event(1))
        if self.how == "distribution":
            return pyro.sample("z", kind.to_event(1).mask(seen))
        return pyro.sample("z", kind.mask(seen[:, None]).to_event(1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = self.draw(torch.zeros(len(x), 2))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            self.draw(self.loc * x[:, None])


@pytest.mark.parametrize("how", ["distribution", "entries"])
@pytest.mark.parametrize(
    ("make", "discrete"),
    [
        *((EVERY[n], False) for n in EVERY if n not in ("TotalCorrelation", "MMD")),
        *((EVERY[n], True) for n in ("ELBO", "VIMCO", "ReweightedWakeSleep")),
        (lambda: ELBO(2, exact_kl=True, kl=BalancedKL()), False),
    ],
)
def test_a_mask_of_a_distribution_is_as_one_of_its_site(make, discrete, how):
    """Their draws have a score, though they count nothing themselves."""
    x = torch.tensor([0.5, -1.2, 0.7])
    found = [
        loss_and_gradients(make(), MaskedLatent(way, discrete=discrete), x)
        for way in ("poutine", how)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("per_dim", [True, False])
def test_free_bits_are_of_examples_in_which_a_distribution_is_not_masked(per_dim):
    x = torch.tensor([0.5, -1.2, 0.7])
    bound = ELBO(2, exact_kl=True, kl=FreeBits(0.3, per_dim=per_dim))
    ways = ("poutine", "distribution")
    torch.testing.assert_close(*(loss_and_gradients(bound, MaskedLatent(way), x) for way in ways))


class Rowwise(nn.Module):
    """Rows within an example, every element of which has a weight of its own."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.4))
        self.scale = torch.tensor([[0.5, 2.0], [1.5, 0.1], [1.0, 3.0]])

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 3, dim=-2), poutine.scale(scale=self.scale):
                z = pyro.sample("z", dist.Normal(w, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(3, -1))

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("w", dist.Normal(self.loc * x, 0.9))
            with pyro.plate("rows", 3, dim=-2), poutine.scale(scale=self.scale):
                pyro.sample("z", dist.Normal(self.loc * x, 0.8))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ELBO(), Trace_ELBO()),
        (ELBO(exact_kl=True), TraceMeanField_ELBO()),
        (StickingTheLanding(), Trace_ELBO()),
        (ELBO(4), Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=2)),
        (IWAE(4), RenyiELBO(0, 4, vectorize_particles=True, max_plate_nesting=2)),
    ],
)
def test_each_element_within_an_example_may_have_its_weight(ours, theirs):
    program, x = Rowwise(), torch.tensor([0.5, -1.2])
    loss, _ = loss_and_gradients(ours, program, x)
    torch.manual_seed(0)
    assert loss.item() == pytest.approx(theirs.loss(program.model, program.guide, x), rel=1e-6)


def test_what_is_free_is_charged_by_the_mean_of_the_weights_within_an_example():
    program, x = Rowwise(), torch.tensor([0.5, -1.2])
    losses = [
        loss_and_gradients(ELBO(4, kl=FreeBits(nats, per_dim=False)), program, x)[0]
        for nats in (99.0, 100.0)
    ]
    # Of w one nat for each example, and of z what its weights are on average.
    expected = 2 + program.scale.mean(0).sum().item()
    assert (losses[1] - losses[0]).item() == pytest.approx(expected, rel=1e-4)


class KLAlone(nn.Module):
    """A program whose likelihood knows nothing of its latents."""

    def __init__(self, seen=True):
        super().__init__()
        self.seen = seen
        self.loc = nn.Parameter(torch.tensor([0.1, -0.4, 1.2]))

    def model(self, x):
        with pyro.plate("data", len(x)), poutine.mask(mask=self.seen):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("w", dist.Normal(torch.zeros_like(x), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)), poutine.mask(mask=self.seen):
            pyro.sample("z", dist.Normal(self.loc * x, 0.6).to_event(1))
            pyro.sample("w", dist.Normal(self.loc - x, 0.3).to_event(1))


@pytest.mark.parametrize(
    "kl", [FreeBits(0.5), FreeBits(2.0, per_dim=False), Capacity(1.0, strength=3.0), BalancedKL()]
)
def test_the_mean_kl_is_that_of_the_examples_that_are_not_masked(kl):
    x = torch.randn(5, 3)
    seen = torch.tensor([True, False, False, True, True])
    bound = ELBO(2, exact_kl=True, kl=kl)
    masked = loss_and_gradients(bound, KLAlone(seen), x)
    alone = loss_and_gradients(ELBO(2, exact_kl=True, kl=kl), KLAlone(), x[seen])
    torch.testing.assert_close(masked, alone)
    nothing, _ = loss_and_gradients(bound, KLAlone(torch.zeros(5, dtype=torch.bool)), x)
    assert nothing == 0


@pytest.mark.parametrize("make", [EVERY[name] for name in ("TotalCorrelation", "MMD")])
def test_a_mask_is_refused_where_examples_are_compared(make):
    class OneLatent(KLAlone):
        def model(self, x):
            with poutine.block(hide=["w"]):
                super().model(x)

        def guide(self, x):
            with poutine.block(hide=["w"]):
                super().guide(x)

    seen = torch.tensor([True, False])
    loss_and_gradients(make(), OneLatent(), torch.randn(2, 3))
    with pytest.raises(InputError, match="mask leaves out 'z' of some"):
        loss_and_gradients(make(), OneLatent(seen), torch.randn(2, 3))
    with pytest.raises(InputError, match="mask leaves out 'z' of some"):
        loss_and_gradients(make(), MaskedLatent("distribution"), torch.randn(3))


# ── Control of the KL ────────────────────────────────────────────────────────────────────────

WEIGHTED = {
    "ELBO": lambda **o: ELBO(2, **o),
    "exact KL": lambda **o: ELBO(2, exact_kl=True, **o),
    "StickingTheLanding": lambda **o: StickingTheLanding(2, **o),
    "MMD": lambda **o: MMD(alpha=0.0, strength=1.0, **o),
    "TotalCorrelation": lambda **o: TotalCorrelation(total_correlation=1.0, **o),
}


@pytest.mark.parametrize("weight", [0.0, 2.5, torch.tensor(0.3)], ids=str)
@pytest.mark.parametrize("make", WEIGHTED.values(), ids=WEIGHTED)
def test_a_weight_on_the_kl_means_the_same_under_every_bound(make, weight):
    found = linear_gaussian(shift=0.5, stretch=1.3)
    found.vae.beta = weight
    expected = found.elbo + found.kl_per_dim.sum(-1) * (1 - float(weight))
    mean, error = mean_loss(make(), found.vae, found.x)
    assert abs(-mean - expected.sum()) < 4.5 * error + 1e-6


@pytest.mark.parametrize("theirs", [Trace_ELBO(), TraceMeanField_ELBO()])
@pytest.mark.parametrize("make", [WEIGHTED[n] for n in WEIGHTED if n != "TotalCorrelation"])
def test_each_dimension_has_a_weight_of_its_own(make, theirs):
    found = linear_gaussian(shift=0.5, stretch=1.3)
    with float64():
        weights = torch.tensor([0.0, 3.0, 0.5])
    found.vae._weights = weights
    expected = found.elbo + (found.kl_per_dim * (1 - weights)).sum(-1)
    mean, error = mean_loss(make(), found.vae, found.x)
    assert abs(-mean - expected.sum()) < 4.5 * error + 1e-6
    losses = []
    for seed in range(40):
        torch.manual_seed(seed)
        losses.append(theirs.loss(found.vae.model, found.vae.guide, repeated(found.x, 10)))
    losses = torch.tensor(losses) / 10
    assert abs(-losses.mean() - expected.sum()) < 4.5 * losses.std() / math.sqrt(40)


def test_evaluation_is_at_weight_one():
    found = linear_gaussian(8, shift=0.5)
    plain = evaluate(found.vae, found.x, num_samples=7)
    with float64():
        found.vae._weights = torch.tensor([0.0, 3.0, 0.5])
    weighted = evaluate(found.vae, found.x, num_samples=7)
    assert torch.equal(weighted.elbo, plain.elbo)
    torch.testing.assert_close(weighted.kl_per_dim["z"], plain.kl_per_dim["z"])


def test_weights_that_differ_have_no_kl_in_closed_form():
    q, p = (dist.Normal(torch.zeros(3), scale).to_event(1) for scale in (0.5, 1.0))
    one, other = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 0.0])
    by_dim = kl_divergence(q.base_dist, p.base_dist)
    torch.testing.assert_close(exact_kl(Weighted(q, one), Weighted(p, one)), by_dim @ one)
    assert exact_kl(Weighted(q, one), Weighted(p, other)) is None
    assert exact_kl(Weighted(q, one), p) is None
    with pytest.raises(InputError, match="one weight for each dimension"):
        Weighted(q, torch.ones(2))
    with pytest.raises(InputError, match="one weight for each dimension"):
        Weighted(dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), one)


def test_a_weighted_distribution_is_its_base_in_all_but_the_log_probability():
    weight, base = torch.tensor([0.0, 3.0, 0.5]), dist.Laplace(torch.ones(2, 3), 2.0).to_event(1)
    weighted = Weighted(base, weight)
    value = base.sample()
    torch.testing.assert_close(
        weighted.log_prob(value), (base.base_dist.log_prob(value) * weight).sum(-1)
    )
    assert torch.equal(weighted.mean, base.mean)
    assert torch.equal(weighted.variance, base.variance)
    assert weighted.has_rsample
    assert weighted.support.check(value).all()
    assert weighted.expand((4, 2)).log_prob(value).shape == (4, 2)
    torch.manual_seed(0)
    draws = weighted.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(draws, base.sample((5,)))


def test_a_weight_is_for_the_sites_that_it_names():
    program, x = Hierarchy(top_down=True), torch.tensor([[0.3], [-1.1]])

    def trace(sites):
        guide = poutine.trace(kl_weight(3.0, sites=sites)(program.guide)).get_trace(x)
        return {n: guide.nodes[n]["scale"] for n in ("z1", "z2")}

    assert trace(None) == {"z1": 3.0, "z2": 3.0}
    assert trace(["z2"]) == {"z1": 1.0, "z2": 3.0}
    assert trace("z2") == {"z1": 1.0, "z2": 3.0}


def test_a_weight_for_no_site_there_is_warned_of():
    program, x = Hierarchy(top_down=True), torch.tensor([[0.3], [-1.1]])
    with pytest.warns(UserWarning, match=r"no site 'zz': the latents here are 'z1', 'z2'\. Name"):
        kl_weight(3.0, sites=["z1", "zz"])(program.guide)(x)


def test_weights_of_dimensions_multiply():
    found = linear_gaussian(shift=0.5, stretch=1.3)
    inner, outer = torch.tensor([[0.5, 2.0, 0.0], [3.0, 1.0, 1.0]]).double()
    found.vae._weights = inner * outer
    expected = loss_and_gradients(ELBO(2), found.vae, found.x)
    found.vae._weights = inner
    model, guide = (kl_weight(outer)(f) for f in (found.vae.model, found.vae.guide))
    twice = SimpleNamespace(model=model, guide=guide, named_parameters=found.vae.named_parameters)
    torch.testing.assert_close(loss_and_gradients(ELBO(2), twice, found.x), expected)


def test_weights_of_one_side_alone_are_kept_apart():
    """TraceMeanField_ELBO reads that of the guide alone; Trace_ELBO, and ours, each its own."""
    found = linear_gaussian(shift=0.5, stretch=1.3)
    model = kl_weight(2.5, sites=["z"])(found.vae.model)

    class Lopsided(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae, self.model, self.guide = found.vae, model, found.vae.guide

    sampled = mean_loss(ELBO(2), Lopsided(), found.x, repeats=2000)
    exact = mean_loss(ELBO(2, exact_kl=True), Lopsided(), found.x, repeats=2000)
    assert abs(sampled[0] - exact[0]) < 4.5 * (sampled[1] ** 2 + exact[1] ** 2).sqrt()


@pytest.mark.parametrize("make", [WEIGHTED["ELBO"], WEIGHTED["exact KL"]])
@pytest.mark.parametrize("per_dim", [True, False])
def test_free_bits_are_a_floor_under_each_kl(make, per_dim):
    found = linear_gaussian(40, shift=0.2)
    kl = found.kl_per_dim.mean(0)
    nats = float(kl.median()) if per_dim else float(kl.sum()) + 0.5
    expected_kl = kl.clamp(min=nats).sum() if per_dim else max(kl.sum(), nats)
    expected = found.elbo.sum() + len(found.x) * (kl.sum() - expected_kl)
    bound = make(kl=FreeBits(nats, per_dim=per_dim))
    mean, error = mean_loss(bound, found.vae, found.x)
    assert abs(-mean - expected) < 4.5 * error + 0.2 * error


def test_free_bits_stop_the_gradient_of_what_is_free():
    found = linear_gaussian(40, shift=0.2)
    free = ELBO(exact_kl=True, kl=FreeBits(1e9))
    without = ELBO(exact_kl=True)
    _, gradients = loss_and_gradients(free, found.vae, found.x)
    found.vae.beta = 0.0
    _, expected = loss_and_gradients(without, found.vae, found.x)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("nats", [0.0, 2.0, 50.0, torch.tensor(3.0)], ids=str)
def test_a_capacity_is_where_the_kl_is_drawn_to(nats):
    found = linear_gaussian(40, shift=0.2)
    kl = found.kl_per_dim.sum(-1).mean()
    expected = found.elbo.sum() + len(found.x) * (kl - 7.0 * (kl - nats).abs())
    bound = ELBO(exact_kl=True, kl=Capacity(nats, strength=7.0))
    mean, error = mean_loss(bound, found.vae, found.x)
    assert abs(-mean - expected) < 4.5 * error


@pytest.mark.parametrize("engine", ["graph", "inductor"])
def test_a_warmup_raises_a_capacity_and_leaves_the_weight_of_the_kl(engine):
    found = linear_gaussian(40, shift=0.2)
    kl, elbo = found.kl_per_dim.sum(-1).mean(), found.elbo.mean()
    bound = ELBO(1000, exact_kl=True, kl=Capacity(float(2 * kl), strength=7.0))
    share = torch.zeros(())
    structure = inspect_program(found.vae, found.examples.head(3))
    objective = Objective(found.vae, structure, bound, share)
    still = torch.optim.SGD(found.vae.parameters(), lr=0.0)
    step = Stepper(objective, still, owners=[found.vae], engine=engine)
    for value in (0.0, 0.25, 0.75, 1.0):
        share.fill_(value)
        expected = elbo + kl - 7.0 * (kl - value * 2 * kl).abs()
        assert step(found.x, None).loss.item() == pytest.approx(-expected.item(), abs=0.05)
    assert step.engines == [engine]
    assert repr(bound.kl) == f"Capacity(nats={float(2 * kl)!r}, strength=7.0)"


def test_a_balance_is_over_with_its_warmup():
    kls, share = {"z1": torch.tensor([1.0, 2.0]), "z2": torch.tensor(1.0)}, torch.tensor(0.5)
    warm = BalancedKL().in_warmup(share)
    assert warm(kls) == BalancedKL()(kls)
    assert warm(kls).weights["z1"] > 1.4
    share.fill_(1.0)
    assert all(weight == 1 for weight in warm(kls).weights.values())


def test_a_balanced_kl_rises_in_a_warmup():
    """Of one latent the balanced weight is 1: what is left is the weight of the warm-up."""
    found, share = linear_gaussian(40, shift=0.2), torch.tensor(0.3)
    kl = found.kl_per_dim.sum(-1).mean()
    structure = inspect_program(found.vae, found.examples.head(3))
    objective = Objective(found.vae, structure, ELBO(1000, exact_kl=True, kl=BalancedKL()), share)
    expected = found.elbo.mean() + 0.7 * kl
    assert objective(found.x)[0].item() == pytest.approx(-expected.item(), abs=0.05)


def test_fit_raises_a_capacity_and_one_control_serves_two_runs():
    found, control = linear_gaussian(32, shift=1.0), Capacity(3.0, strength=10.0)
    options = {"epochs": 1, "batch_size": 32, "progress": False, "optimizer": STILL}
    kl, losses = found.kl_per_dim.sum(-1).mean().item(), []
    for warmup in (4, 0):
        run = fit(found.vae, found.x, bound=ELBO(400, kl=control), kl_warmup=warmup, **options)
        losses.append(run.metrics[0]["loss"] + found.elbo.mean().item() + kl)
    assert losses == pytest.approx([10 * kl, 10 * abs(kl - 3.0)], abs=0.3)
    assert vars(control) == vars(Capacity(3.0, strength=10.0))


def test_a_balance_favours_what_carries_more():
    kls = {"z1": torch.tensor([1.0, 2.0]), "z2": torch.tensor(1.0), "z3": torch.zeros(4)}
    weights, constants = BalancedKL()(kls)
    assert constants == {}
    assert torch.stack(list(weights.values())).mean().item() == pytest.approx(1.0)
    assert weights["z1"] / weights["z2"] == pytest.approx(3.0, rel=1e-2)
    assert 0 < weights["z3"] < 0.01


# ── The aggregate posterior ──────────────────────────────────────────────────────────────────


def test_the_three_parts_of_the_kl_sum_to_it():
    found = linear_gaussian(20, shift=0.5, stretch=1.3)
    whole, gradients = loss_and_gradients(ELBO(), found.vae, found.x)
    split, parts = loss_and_gradients(TotalCorrelation(total_correlation=1.0), found.vae, found.x)
    assert split.item() == pytest.approx(whole.item(), rel=1e-10)
    torch.testing.assert_close(parts, gradients)


class Fixed(nn.Module):
    """A guide whose aggregate posterior is a known mixture."""

    def __init__(self, locs, scale):
        super().__init__()
        self.locs, self.scale = nn.Parameter(locs), scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.locs, self.scale).to_event(1))


def test_the_total_correlation_is_that_of_the_batch():
    """Of two points on a diagonal it is log 2, the information of one coordinate on the other."""
    locs = torch.tensor([[-9.0, -9.0], [9.0, 9.0]]).repeat(50, 1)
    program, x = Fixed(locs, 0.01), torch.zeros(100)

    def loss(**weights):
        weights = {"mutual_information": 0, "total_correlation": 0, "dimension_wise": 0} | weights
        return loss_and_gradients(TotalCorrelation(**weights), program, x)[0] / 100

    base = loss()
    assert (loss(mutual_information=1) - base).item() == pytest.approx(math.log(2), abs=1e-4)
    assert (loss(total_correlation=1) - base).item() == pytest.approx(math.log(2), abs=1e-4)


def test_a_mean_discrepancy_is_unbiased_and_tells_distributions_apart():
    rng = torch.Generator().manual_seed(0)
    same = torch.stack(
        [
            squared_mmd(torch.randn(30, 2, generator=rng), torch.randn(30, 2, generator=rng))
            for _ in range(500)
        ]
    )
    assert abs(same.mean()) < 4 * same.std() / math.sqrt(500)
    apart = squared_mmd(torch.randn(200, 2, generator=rng) + 2, torch.randn(200, 2, generator=rng))
    assert apart > 0.5


def test_a_mean_discrepancy_is_its_definition():
    x, y = torch.randn(3, 2), torch.randn(3, 2)

    def kernel(a, b):
        return sum(4 * s / (4 * s + (a - b).square().sum()) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    within = sum(kernel(v[i], v[j]) for v in (x, y) for i in range(3) for j in range(3) if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    torch.testing.assert_close(squared_mmd(x, y), within / 6 - 2 * across / 9)


def test_a_single_draw_is_at_no_distance():
    x = torch.randn(1, 2, requires_grad=True)
    assert squared_mmd(x, torch.randn(1, 2)) == 0
    found = linear_gaussian(1)
    loss, gradients = loss_and_gradients(MMD(), found.vae, found.x)
    plain, expected = loss_and_gradients(MMD(strength=0.0), found.vae, found.x)
    torch.testing.assert_close((loss, gradients), (plain, expected))


def test_the_kl_gives_way_to_the_distance_in_proportion():
    found = linear_gaussian(16, shift=0.5, stretch=1.3)
    # The weight of the distance is 0.3 + 0.7 - 1, so the KL alone is left, at 0.7.
    mean, error = mean_loss(MMD(alpha=0.3, strength=0.7), found.vae, found.x)
    expected = found.elbo + 0.3 * found.kl_per_dim.sum(-1)
    assert abs(-mean - expected.sum()) < 4.5 * error

    loss, _ = loss_and_gradients(MMD(alpha=1.0, strength=3.0), found.vae, found.x)
    torch.manual_seed(0)
    z, drawn = found.vae.encoder(found.x).rsample(), found.vae.prior().expand((16,)).rsample()
    log_likelihood = found.vae.decoder(z).log_prob(found.x)
    expected = -(log_likelihood - 3.0 * squared_mmd(z, drawn)).sum()
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("bound", [TotalCorrelation(), MMD()])
def test_several_latents_have_no_aggregate_posterior_here(bound):
    with pytest.raises(InputError, match="one latent"):
        loss_and_gradients(bound, Hierarchy(top_down=True), torch.zeros(2, 1))


# ── Bad input ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "make",
    [
        lambda: ELBO(0),
        lambda: VIMCO(1),
        lambda: ReweightedWakeSleep(1),
        lambda: ReweightedWakeSleep(2, sleep=1.5),
        lambda: FreeBits(-1.0),
        lambda: Capacity(1.0, strength=-1.0),
        lambda: ELBO(2.5),
        lambda: IWAE("3"),
        lambda: ELBO(kl="free"),
        lambda: ELBO(kl=FreeBits),
        lambda: kl_weight(-0.5),
        lambda: VAE(nn.Module(), nn.Module(), nn.Module(), beta=-1.0),
        lambda: VAE(nn.Module(), nn.Module(), nn.Module(), beta=[1.0, -1.0]),
        lambda: VAE(nn.Module(), nn.Module(), nn.Module(), beta=math.nan),
        lambda: kl_weight(math.nan),
        lambda: kl_weight("a"),
        lambda: FreeBits(math.inf),
        lambda: Capacity(strength=math.nan),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_fit_takes_every_bound_and_reports_the_elbo_of_all_alike():
    found = linear_gaussian(32, shift=1.0)
    for make in EVERY.values():
        vae = copy.deepcopy(found.vae)
        with warnings.catch_warnings(action="error"):
            run = fit(vae, found.x, bound=make(), epochs=3, batch_size=16, progress=False)
        assert run.config["training"]["bound"] == repr(make())
        assert math.isfinite(run.metrics[-1]["loss"])
        assert run.metrics[-1]["train_elbo"] == pytest.approx(found.elbo.mean().item(), abs=2.0)


def test_one_bound_serves_two_programs():
    """What a bound finds out of a program stays with a copy of it."""
    bound, found = IWAE(3), linear_gaussian(8)
    fit(copy.deepcopy(found.vae), found.x, bound=bound, epochs=1, progress=False)
    assert bound.max_plate_nesting == math.inf


class RowsApart(nn.Module):
    """A program that a dimension of particles would change."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.softmax(1) + self.loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + self.loc, 1.0).to_event(1))


def test_a_program_that_takes_no_particles_is_run_for_each():
    with pytest.warns(UserWarning, match="runs it 3 times"):
        run = fit(RowsApart(), torch.randn(8, 3), bound=IWAE(3), epochs=2, progress=False)
    assert math.isfinite(run.metrics[-1]["loss"])


def test_a_bound_shows_itself_as_it_is_written():
    assert repr(IWAE(7)) == "IWAE(num_particles=7)"
    assert repr(ELBO(exact_kl=True, kl=FreeBits(0.5))) == (
        "ELBO(num_particles=1, kl=FreeBits(nats=0.5, per_dim=True), exact_kl=True)"
    )

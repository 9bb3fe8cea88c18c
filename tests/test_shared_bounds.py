"""Every bound of programs with latents that all examples share, against closed forms."""

import math
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LATENT_DIM, X_DIM, float64
from loss_gradients import loss_and_gradients
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from shared_shift import N, Shifted
from torch import nn

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
from pyrovae.data import Batch
from pyrovae.errors import InputError
from pyrovae.handlers import kl_weight, unregistered
from pyrovae.inspection import inspect_program
from pyrovae.svi import CompiledSVI, Objective
from pyrovae.training import fit


@pytest.fixture(autouse=True)
def double_precision():
    with float64():
        yield


class Informed(Shifted):
    """The shift, with a guide of z that is told it: at share 1 it is z's exact posterior."""

    def __init__(self, *, share=1.0, width=0.3, **options):
        super().__init__(**options)
        self.share = share
        with torch.no_grad():
            self.log_width.fill_(math.log(width))

    def guide(self, x):
        g = pyro.sample("g", dist.Normal(self.loc, self.log_width.exp()).to_event(1))
        self.drawn = g.detach()
        with self.plate(x):
            pyro.sample("z", self.vae.encoder(x - self.share * g))

    def of_all(self, g, *, held=False):
        """log p(x | g) + log p(g) - log q(g) of all examples, for g of shape (K, X_DIM).

        Held, q has no gradient but through g.
        """
        loc, width = self.loc, self.log_width.exp()
        q = dist.Normal(*((loc.detach(), width.detach()) if held else (loc, width))).to_event(1)
        p = dist.Normal(torch.zeros_like(self.loc), self.spread).to_event(1)
        given = torch.stack([self.predictive(each).sum() for each in g])
        return given + p.log_prob(g) - q.log_prob(g)


# ── Pyro's own bounds ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("weight", [None, 0.3])
@pytest.mark.parametrize("make", [Shifted, partial(Informed, share=0.5)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ELBO(), Trace_ELBO()),
        (StickingTheLanding(), Trace_ELBO()),
        (ELBO(6), Trace_ELBO(6, vectorize_particles=True, max_plate_nesting=1)),
        (ELBO(exact_kl=True), TraceMeanField_ELBO()),
    ],
)
def test_what_pyro_has_too_is_the_same(ours, theirs, make, weight):
    """On a batch of the data, which counts as all of it."""
    program = make(size=4 * N)
    if weight is not None:
        program.model, program.guide = (
            kl_weight(weight)(f) for f in (program.model, program.guide)
        )
    loss, gradients = loss_and_gradients(ours, program, program.x)

    expected, theirs = loss_and_gradients(theirs, program, program.x)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    if not isinstance(ours, StickingTheLanding):  # whose gradient has only the same mean
        torch.testing.assert_close(gradients, theirs)


def test_a_plate_of_shared_latents_in_the_examples_own_dimension_is_summed_over():
    def model(x):
        with pyro.plate("parts", 3, dim=-1):
            g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(g[..., None, :].sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("parts", 3, dim=-1):
            pyro.sample("g", dist.Normal(torch.tensor([0.3, -0.2, 1.0]), 0.5))

    losses = []
    for bound in (ELBO(4), Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)):
        torch.manual_seed(0)
        losses.append(bound.loss(model, guide, torch.tensor([0.5, -0.2])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize("name", ["data", "images"])
@pytest.mark.parametrize("kind", [ELBO, IWAE])
def test_a_plate_within_that_of_the_examples_is_summed_over(kind, name):
    """And what stands outside the inner one alone is no less an example's own."""

    def model(x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate(name, len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("x", dist.Normal(z + g[..., None, None], 0.7), obs=x)

    def guide(x):
        pyro.sample("g", dist.Normal(0.2, 0.5))
        with pyro.plate(name, len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.6))

    x = torch.randn(4, 3)
    pyro.set_rng_seed(0)
    found = kind(3, vectorize_particles=False).loss(model, guide, x)
    pyro.set_rng_seed(0)
    trace = poutine.trace(guide).get_trace(x)
    g = trace.nodes["g"]["value"]
    log_w = []
    for k in range(3):
        if k:
            given = poutine.condition(guide, {"g": g}) if kind is IWAE else guide
            trace = poutine.trace(given).get_trace(x)
            g = trace.nodes["g"]["value"]
        z = trace.nodes["z"]["value"]
        of_g = dist.Normal(0.0, 1.0).log_prob(g) - dist.Normal(0.2, 0.5).log_prob(g)
        each = (
            dist.Normal(z + g, 0.7).log_prob(x).sum(-1, keepdim=True)
            + dist.Normal(0.0, 1.0).log_prob(z)
            - dist.Normal(x.mean(-1, keepdim=True), 0.6).log_prob(z)
        )
        log_w.append((each, of_g))
    each, of_g = torch.stack([w for w, _ in log_w]), torch.stack([w for _, w in log_w])
    bounds = each.mean(0) if kind is ELBO else each.logsumexp(0) - math.log(3)
    assert -found == pytest.approx((bounds.sum() + of_g.mean()).item(), rel=1e-10)


def test_an_effect_of_every_pixel_is_shared_by_the_examples():
    """Both stand in the plate of pixels; that of the examples is the one named data."""

    def model(x):
        pixels = pyro.plate("pixels", 3, dim=-1)
        with pixels:
            g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample=x, dim=-2), pixels:
            pyro.sample("x", dist.Normal(g, 0.7), obs=x)

    def guide(x):
        with pyro.plate("pixels", 3, dim=-1):
            pyro.sample("g", dist.Normal(0.2, 0.5))

    losses = []
    for bound in (Trace_ELBO(), ELBO(), IWAE(3)):
        torch.manual_seed(0)
        losses.append(bound.loss(model, guide, torch.randn(4, 3)))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-10)


def test_an_automatic_guide_is_taken_too():
    x = torch.randn(30, 2) + 1.0

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    losses = []
    for engine, bound in ((SVI, Trace_ELBO()), (SVI, ELBO()), (CompiledSVI, ELBO())):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = AutoNormal(model)
        guide(x)  # which draws where it starts from
        svi = engine(model, guide, pyro.optim.Adam({"lr": 0.05}), bound)
        losses.append([])
        for step in range(8):
            torch.manual_seed(step)
            losses[-1].append(float(svi.step(x)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert losses[2] == pytest.approx(losses[0], rel=1e-10)


# ── Closed forms ─────────────────────────────────────────────────────────────────────────────

SHARED = {
    "ELBO": ELBO,
    "StickingTheLanding": StickingTheLanding,
    "IWAE": IWAE,
    "DReG": DReG,
    "VIMCO": VIMCO,
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("kind", SHARED.values(), ids=SHARED)
def test_at_the_exact_posterior_every_bound_is_the_evidence_at_the_shared_draws(kind, vectorize):
    program, bound = Informed(), kind(4, vectorize_particles=vectorize)
    seen = []
    guide = program.guide
    program.guide = lambda x: (guide(x), seen.append(program.drawn))
    loss, _ = loss_and_gradients(bound, program, program.x)
    # By the wider of the runs, where the first is for the program's layout.
    g = seen[-1].reshape(-1, X_DIM) if vectorize else torch.stack(seen).unique(dim=0)
    assert len(g) == (1 if bound.holds_shared else 4)
    assert -loss.item() == pytest.approx(program.of_all(g).mean().item(), rel=1e-9)


@pytest.mark.parametrize("bound", [StickingTheLanding(4), DReG(4)], ids=repr)
def test_along_paths_the_encoder_has_no_gradient_there(bound):
    program = Informed()
    _, gradients = loss_and_gradients(bound, program, program.x)
    for name, gradient in gradients.items():
        if name.startswith("vae.encoder"):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


def test_and_a_shared_draw_has_that_of_the_evidence_along_its_path():
    """No draw of z has a part in it."""
    program = Informed()
    _, gradients = loss_and_gradients(StickingTheLanding(), program, program.x)
    noise = (program.drawn - program.loc.detach()) / program.log_width.detach().exp()
    g = program.loc + program.log_width.exp() * noise
    program.of_all(g[None], held=True).sum().backward()
    torch.testing.assert_close(-gradients["loc"], program.loc.grad)
    torch.testing.assert_close(-gradients["log_width"], program.log_width.grad)


@pytest.mark.parametrize(
    ("path", "plain"), [(DReG(3), IWAE(3)), (StickingTheLanding(), ELBO())], ids=["3", "1"]
)
def test_gradients_of_one_bound_have_one_expectation(path, plain):
    """Draws of g are the same, and their noise cancels."""
    program = Informed(share=0.5)
    with torch.no_grad():
        program.vae.encoder.net.bias += 0.2
    copies, calls = 200, 40
    x = program.x[:3].repeat(copies, 1)
    gaps = []
    for seed in range(calls):
        found = [loss_and_gradients(bound, program, x, seed=seed)[1] for bound in (path, plain)]
        gaps.append({name: (found[0][name] - found[1][name]) / copies for name in found[0]})
    for name in gaps[0]:
        gap = torch.stack([each[name] for each in gaps])
        error = gap.std(0) / math.sqrt(calls)
        assert (error > 0).any() or name.startswith("vae.decoder"), "or this test tells nothing"
        assert (gap.mean(0).abs() <= 5 * error + 1e-9).all(), name


class Coin(nn.Module):
    """A side g that all examples lie on, with a draw that carries no gradient."""

    def __init__(self, size=None):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.4))
        self.loc = nn.Parameter(torch.tensor(0.7))
        self.size = size

    def model(self, x):
        g = pyro.sample("g", dist.Bernoulli(0.3))
        with pyro.plate("data", self.size or len(x), subsample=x):
            pyro.sample("x", dist.Normal((2 * g - 1) * self.loc, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("g", dist.Bernoulli(logits=self.logit))

    def bound(self, x):
        """By the sum over the two sides."""
        g = torch.tensor([0.0, 1.0])
        q, p = dist.Bernoulli(logits=self.logit), dist.Bernoulli(0.3)
        given = dist.Normal((2 * g - 1) * self.loc, 1.0).log_prob(x[:, None]).sum(0)
        given = given * (self.size or len(x)) / len(x)
        return (q.log_prob(g).exp() * (given + p.log_prob(g) - q.log_prob(g))).sum()


@pytest.mark.parametrize("size", [None, 12])
def test_draws_of_no_gradient_that_all_share_are_weighed_by_what_all_have_of_them(size):
    program, x = Coin(size), torch.tensor([0.5, -0.3, 1.1])
    expected = torch.autograd.grad(-program.bound(x), list(program.parameters()))
    calls = [loss_and_gradients(ELBO(1000), program, x, seed=s) for s in range(30)]
    losses = torch.stack([loss for loss, _ in calls])
    error = losses.std().item() / math.sqrt(len(calls))
    assert losses.mean().item() == pytest.approx(-program.bound(x).item(), abs=5 * error)
    for name, truth in zip(("logit", "loc"), expected, strict=True):
        found = torch.stack([gradients[name] for _, gradients in calls])
        error = found.std().item() / math.sqrt(len(calls))
        assert found.mean().item() == pytest.approx(truth.item(), abs=5 * error)
        assert error < 0.05 * abs(truth.item()), "or this test tells nothing"


class Sides(Coin):
    """A side z of each example, which a shift g of all examples speaks of too."""

    def model(self, x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal((2 * z - 1) * self.loc + g, 1.0), obs=x)

    def guide(self, x):
        g = pyro.sample("g", dist.Normal(self.logit, 0.5))
        self.noise = ((g - self.logit) / 0.5).detach()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logit + 0.7 * x - g))

    def bound(self, x):
        """The bound by two draws of every example, given g, by the sum over their sides."""
        g = self.logit + 0.5 * self.noise
        z = torch.tensor([0.0, 1.0])[:, None]
        log_q = dist.Bernoulli(logits=self.logit + 0.7 * x - g).log_prob(z)
        log_p = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(
            (2 * z - 1) * self.loc + g, 1.0
        ).log_prob(x)
        log_w = log_p - log_q
        pairs = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
        of_examples = ((log_q[:, None] + log_q[None]).exp() * pairs).sum()
        p, q = dist.Normal(0.0, 1.0), dist.Normal(self.logit, 0.5)
        return of_examples + p.log_prob(g) - q.log_prob(g)


def test_discrete_latents_of_examples_are_given_the_shared_draw():
    program, x = Sides(), torch.tensor([0.5, -0.3, 1.1])
    copies, calls = 400, 40
    gaps = []
    for seed in range(calls):
        loss, found = loss_and_gradients(VIMCO(2), program, x.repeat(copies), seed=seed)
        bound = program.bound(x.repeat(copies))
        expected = torch.autograd.grad(-bound, list(program.parameters()))
        pairs = zip((-bound.detach(), *expected), (loss, *found.values()), strict=True)
        gaps.append(torch.stack([theirs - ours for theirs, ours in pairs]))
    gap = torch.stack(gaps) / copies
    error = gap.std(0) / math.sqrt(calls)
    assert (gap.mean(0).abs() <= 4 * error).all()
    assert (error < 0.02).all(), "or this test tells nothing"


class Counted(nn.Module):
    """A shift g of all examples, which the guide draws from how many of them it puts on a side."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.4, -0.3]))

    def model(self, x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(g + z, 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.weights[0] * x))
        loc = self.weights[1] + 2 * z.mean(-1, keepdim=z.dim() > 1)
        pyro.sample("g", dist.Normal(loc, 0.8))

    def bound(self, x):
        """By the sum over all sides of all examples."""
        z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(x))
        q, p = dist.Bernoulli(logits=self.weights[0] * x), dist.Bernoulli(0.4)
        log_q, loc = q.log_prob(z).sum(1), self.weights[1] + 2 * z.mean(1)
        given = dist.Normal(loc[:, None] + z, 0.5).log_prob(x) - 0.8**2 / (2 * 0.5**2)
        kl = (loc**2 + 0.8**2 - 1) / 2 - math.log(0.8)
        return (log_q.exp() * ((given + p.log_prob(z)).sum(1) - log_q - kl)).sum()


def test_draws_of_examples_are_weighed_by_what_all_share_of_them():
    program, x = Counted(), torch.tensor([0.5, -1.2, 2.0])
    (expected,) = torch.autograd.grad(-program.bound(x), program.weights)
    bound, calls = ELBO(100), 200
    gradients = [
        loss_and_gradients(bound, program, x, seed=seed)[1]["weights"] for seed in range(calls)
    ]
    found = torch.stack(gradients)
    error = found.std(0) / math.sqrt(calls)
    assert ((found.mean(0) - expected).abs() <= 4 * error).all()
    assert (error < 0.4).all(), "or this test tells nothing"


# ── What is drawn once ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("guided", ["normal", None])
@pytest.mark.parametrize("kind", [IWAE, DReG, VIMCO])
def test_draws_one_after_the_other_are_as_good_as_together(kind, guided):
    """A shared latent is drawn once, of the guide or, where that leaves it out, of the model."""
    found = []
    for vectorize in (True, False):
        # Normal draws come in blocks of 16.
        program = Shifted(guided, one_at_a_time=True)
        found.append(
            loss_and_gradients(kind(3, vectorize_particles=vectorize), program, program.x[:16])
        )
    if guided:  # else g comes after z, of which the noise is laid out otherwise
        torch.testing.assert_close(*found)
    for loss, _ in found:
        assert loss.isfinite()


# ── What is given ────────────────────────────────────────────────────────────────────────────


class OfRows(nn.Module):
    """Examples that the plate picks out of all, for the model as for the guide."""

    def __init__(self, *, shared):
        super().__init__()
        self.shared = shared
        self.width = nn.Parameter(torch.tensor(1.0))
        self.rows = torch.arange(100.0)

    def model(self):
        g = pyro.sample("g", dist.Normal(0.0, 1.0)) if self.shared else 0.0
        with pyro.plate("data", 100, subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(self.rows[rows], 1.0))
            scale = (self.rows[rows] / 20).exp()
            pyro.sample("x", dist.Normal(z + g, scale), obs=self.rows[rows])

    def guide(self):
        if self.shared:
            pyro.sample("g", dist.Normal(0.1, 0.3))
        with pyro.plate("data", 100, subsample_size=10) as rows:
            pyro.sample("z", dist.Normal(self.rows[rows], self.width))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "kind", [ELBO, StickingTheLanding, IWAE, DReG, VIMCO, ReweightedWakeSleep]
)
def test_a_plate_that_draws_its_rows_draws_them_for_all(kind, shared, vectorize):
    """Model and guide, and draws one after the other, are of the same examples."""
    if shared and kind is ReweightedWakeSleep:
        return
    program = OfRows(shared=shared)

    def losses(bound):
        found = []
        for seed in range(40):
            torch.manual_seed(seed)
            found.append(bound.loss(program.model, program.guide))
        return sum(found) / len(found)

    # Rows are far apart, and of some x is known better than of others.
    expected = losses(Trace_ELBO(5, vectorize_particles=vectorize, max_plate_nesting=1))
    assert losses(kind(5, vectorize_particles=vectorize)) == pytest.approx(expected, abs=25)


def test_an_exact_kl_of_an_automatic_guide_has_its_density():
    """Pyro's of a point leaves out the Jacobian of what the point was made by."""
    x = torch.tensor([0.5, -1.0, 0.3])

    def model(x):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    guide = AutoNormal(model, init_scale=0.3)
    guide(x)
    losses = []
    for bound in (Trace_ELBO(), ELBO(exact_kl=True)):
        torch.manual_seed(0)
        losses.append(bound.loss(model, guide, x))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.parametrize("kind", [ELBO, IWAE])
def test_what_a_guide_says_by_a_factor_counts(kind):
    def model(x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(g, 1.0), obs=x)

    def guide(x):
        pyro.sample("g", dist.Normal(0.3, 0.5))
        pyro.factor("known", torch.tensor(0.3), has_rsample=True)

    losses = []
    for bound in (Trace_ELBO(), kind(1), kind(3, vectorize_particles=False)):
        torch.manual_seed(0)
        losses.append(bound.loss(model, guide, torch.tensor([0.5, -1.0])))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert losses[2] == pytest.approx(losses[0], rel=1e-10) or kind is ELBO


def test_a_bound_that_served_another_program_finds_out_anew():
    other, program = Shifted(None, spread=1e-9), Shifted()
    used, fresh = IWAE(5), IWAE(5)
    with unregistered():
        used.differentiable_loss(program.vae.model, program.vae.guide, program.x)
    for bound in (used, fresh):
        loss_and_gradients(bound, other, other.x)
    found = [loss_and_gradients(bound, program, program.x)[0] for bound in (used, fresh)]
    assert found[0] == found[1]


def test_what_all_share_is_not_drawn_from_latents_of_examples():
    def model(x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(g + 0.1 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        loc = z.mean(-1, keepdim=z.dim() > 1)
        pyro.sample("g", dist.Normal(0.5 + 0.6 * loc, 0.8))

    x = torch.tensor([3.0, 2.0])
    for bound in (IWAE(4), DReG(4), VIMCO(4)):
        with pytest.raises(InputError, match="'g', which all examples share, is drawn from"):
            bound.loss(model, guide, x)
        one_by_one = type(bound)(4, vectorize_particles=False)
        with pytest.raises(InputError, match="'g', which all examples share, stands behind"):
            one_by_one.loss(model, guide, x)
        with pytest.raises(InputError, match="'g', which all examples share, stands behind"):
            one_by_one.loss(guide, guide, x)  # in the model
    torch.manual_seed(0)
    found = ELBO().loss(model, guide, x)
    torch.manual_seed(0)
    assert found == pytest.approx(Trace_ELBO().loss(model, guide, x), rel=1e-10)


@pytest.mark.parametrize("kl", [FreeBits(0.1), Capacity(1.0), BalancedKL()], ids=repr)
def test_a_control_without_latents_of_examples_is_refused(kl):
    program = Coin()
    with pytest.raises(InputError, match=r"weighs the KL of latents of examples.*Give no kl"):
        loss_and_gradients(ELBO(kl=kl), program, torch.zeros(2))


# ── Controls of the KL ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bound", [ELBO, IWAE])
def test_a_control_is_of_the_latents_of_examples(bound):
    """Free nats without end leave the KL of what all share as it is."""
    program, nats = Shifted(size=2 * N), 50.0
    kl = FreeBits(nats)
    free, _ = loss_and_gradients(bound(1, kl=kl), program, program.x)
    plain, _ = loss_and_gradients(bound(1), program, program.x)
    with kl_weight(0.0, sites=["z"]):
        alone, _ = loss_and_gradients(bound(1), program, program.x)
    assert free.item() == pytest.approx(alone.item() + 2 * N * LATENT_DIM * nats, rel=1e-10)
    assert abs(plain - alone) > 1


@pytest.mark.parametrize("make", [lambda: TotalCorrelation(), lambda: MMD(alpha=0.0, strength=1)])
def test_bounds_over_a_batch_have_the_term_too(make):
    """At weights of one they are the ELBO, but for the noise."""
    program = Shifted(size=4 * N)
    if isinstance(bound := make(), TotalCorrelation):
        bound.total_correlation = 1.0
    for seed in range(5):
        loss, _ = loss_and_gradients(bound, program, program.x, seed=seed)
        expected, _ = loss_and_gradients(ELBO(), program, program.x, seed=seed)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


def test_sites_of_plates_apart_of_which_none_is_observed_are_refused():
    def model():
        for name in ("rows", "columns"):
            with pyro.plate(name, 3):
                pyro.sample(f"of_{name}", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match="'of_rows' is outside the plate of the examples"):
        ELBO().loss(model, lambda: None)


# ── Refusals and training ────────────────────────────────────────────────────────────────────


def test_what_cannot_be_had_is_refused_by_name():
    program = Shifted()
    with pytest.raises(InputError, match=r"'g' is shared by all examples.*Take ELBO, IWAE"):
        loss_and_gradients(ReweightedWakeSleep(3), program, program.x)
    for bound in (IWAE(3), VIMCO(3), DReG(3), StickingTheLanding()):
        with pytest.raises(InputError, match=r"latent 'g' are discrete.*Take ELBO"):
            loss_and_gradients(bound, Coin(), torch.zeros(2))


def test_an_observation_outside_the_plate_is_refused():
    def model(x):
        pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.sample("sum", dist.Normal(0.0, 1.0), obs=x.sum())

    with pytest.raises(
        InputError, match=r"'sum' is outside the plate.*all that is observed.*named 'data'"
    ):
        ELBO().differentiable_loss(model, lambda x: None, torch.zeros(2))


OF_ROWS = torch.zeros(3, 1), torch.ones(3, 1)


@pytest.mark.parametrize("kind", [ELBO, IWAE, VIMCO, DReG, StickingTheLanding])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("where", ["g", "z", "x", "a mask", "a value"])
def test_a_dimension_on_the_left_of_all_plates_is_no_dimension_of_draws(kind, vectorize, where):
    """Undeclared, its elements would be averaged as if they were draws of one example."""

    def normal(name):
        return dist.Normal(*OF_ROWS) if name == where else dist.Normal(0.0, 1.0)

    def guide(x):
        pyro.sample("g", normal("g").expand([3, 4] if where == "g" else []))
        rows = pyro.plate("data", 4)
        with rows:
            pyro.sample("z", normal("z"))
        return rows

    def model(x):
        rows = guide(x)
        seen = poutine.mask(mask=torch.ones(3, 4) > 0) if where == "a mask" else nullcontext()
        with rows, seen:
            pyro.sample("x", normal("x"), obs=x.expand(3, 4) if where == "a value" else x)

    count = {"num_particles": 3} if kind is not StickingTheLanding else {}
    bound = kind(**count, vectorize_particles=vectorize)
    with pytest.raises(InputError, match=r"shape \(3, 4\), .* dimension -2 is that of no"):
        bound.loss(model, guide, torch.zeros(4))


def test_a_program_without_a_plate_has_no_examples_to_take_for_draws():
    def model(x):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    for bound in (ELBO(), ELBO(5), IWAE(5)):
        with pytest.raises(InputError, match=r"'x' has the batch shape \(5,\).*Give it a plate"):
            bound.loss(model, lambda x: None, torch.zeros(5))


class Linear(nn.Module):
    """A Bayesian decoder x = z W whose product takes one matrix of weights, not one a particle."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(0.1 * torch.randn(2, 4))
        self.runs = 0

    def model(self, x):
        self.runs += 1
        W = pyro.sample("W", dist.Normal(torch.zeros(2, 4), 1.0).to_event(2))
        with pyro.plate("data", 12, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W, 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("W", dist.Normal(self.loc, 0.1).to_event(2))
        with pyro.plate("data", 12, subsample=x):
            pyro.sample("z", dist.Normal(x[:, :2], 0.3).to_event(1))


@pytest.mark.parametrize("bound", [IWAE(6), ELBO(6)], ids=repr)
def test_a_program_runs_once_where_only_draws_of_examples_are_many(bound):
    """Weights without a dimension of particles are what a bound that holds them needs."""
    program, x = Linear(), torch.randn(12, 4)
    structure = inspect_program(program, Batch(x[:3]))
    assert not structure.vectorizes
    assert structure.vectorizes_examples
    if bound.holds_shared:
        objective = Objective(program, structure, bound)
    else:
        with pytest.warns(UserWarning, match="runs it 6 times"):
            objective = Objective(program, structure, bound)
    objective(x)
    program.runs = 0
    objective(x)
    assert program.runs == (1 if bound.holds_shared else 6)


@pytest.mark.parametrize("bound", [ELBO(exact_kl=True, kl=FreeBits(0.01)), IWAE(2)], ids=repr)
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_fit_takes_the_bound_with_a_warmup(bound, engine):
    program = Shifted(size=N)
    program.vae.requires_grad_(False)
    with torch.no_grad():
        program.loc.fill_(1.0)
    run = fit(
        program,
        program.x,
        bound=bound,
        epochs=30,
        batch_size=8,
        kl_warmup=5,
        optimizer=partial(torch.optim.Adam, lr=0.05),
        engine=engine,
        progress=False,
    )
    first, last = run.metrics[0], run.metrics[-1]
    assert last["train_elbo"] > first["train_elbo"] + 5
    assert (program.loc.detach() - program.shift_of_data).abs().max() < 0.15

"""Gradients of draws that are weighted, masked, excluded, or made by noise of a guide's own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from linear_gaussian import float64, linear_gaussian
from loss_gradients import loss_and_gradients
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from test_bounds import EVERY, Bits, Fixed, Hierarchy, assert_same_mean, mean_gradients
from torch import nn

from pyrovae.bounds import (
    ELBO,
    IWAE,
    VIMCO,
    Capacity,
    DReG,
    FreeBits,
    ReweightedWakeSleep,
    StickingTheLanding,
    TotalCorrelation,
)
from pyrovae.errors import InputError
from pyrovae.handlers import kl_weight
from pyrovae.svi import CompiledSVI

PATHS = [(StickingTheLanding, ELBO, 2), (DReG, IWAE, 4)]
along_paths = pytest.mark.parametrize(("path", "plain", "count"), PATHS)


def of_one_expectation(path, plain, program, x, *, copies=2000):
    """Refuses two bounds whose gradients differ by more than their errors."""
    found, expected = (
        mean_gradients(bound, program, x, repeats=40 * copies, copies=copies)
        for bound in (path, plain)
    )
    assert_same_mean(found, expected)


# ── Weights of the KL ────────────────────────────────────────────────────────────────────────


@along_paths
@pytest.mark.parametrize("beta", [0.0, 0.3, 3.0, [0.2, 3.0, 0.0]], ids=str)
def test_paths_are_weighted_as_the_kl_is(path, plain, count, beta):
    found = linear_gaussian(2, shift=0.7, stretch=1.4)
    with float64():
        found.vae._weights = torch.tensor(beta) if isinstance(beta, list) else None
        found.vae.beta = torch.tensor(beta)
    of_one_expectation(path(count), plain(count), found.vae, found.x)


@along_paths
@pytest.mark.parametrize(
    "control", [FreeBits(1.6), FreeBits(99.0, per_dim=False), Capacity(30.0, strength=0.7)]
)
def test_paths_are_weighted_as_a_control_says(path, plain, count, control):
    found = linear_gaussian(2, shift=0.7, stretch=1.4)
    of_one_expectation(path(count, kl=control), plain(count, kl=control), found.vae, found.x)


class Rows(nn.Module):
    """Latents of rows within an example, of which a part is drawn."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.4, -0.7]))

    def rows(self):
        return pyro.plate("rows", 6, subsample=torch.arange(2), dim=-2)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1), self.rows():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.5), obs=x.expand(2, -1))

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), self.rows():
            pyro.sample("z", dist.Normal(self.loc[0] * x, self.loc[1].exp()))


@along_paths
def test_paths_are_weighted_as_a_part_of_an_examples_rows(path, plain, count):
    of_one_expectation(path(count), plain(count), Rows(), torch.tensor([0.5, -1.2]))


@pytest.mark.parametrize(
    "theirs",
    [
        Trace_ELBO(20, vectorize_particles=True, max_plate_nesting=1),
        TraceEnum_ELBO(
            20,
            vectorize_particles=True,
            max_plate_nesting=1,
            strict_enumeration_warning=False,
        ),
    ],
)
def test_pyros_score_of_a_draw_knows_no_weight_of_a_dimension(theirs):
    weight, x = torch.tensor([0.0, 3.0]), torch.tensor([0.5, -1.2, 0.9])
    program = Bits()
    program.model, program.guide = (kl_weight(weight)(f) for f in (program.model, program.guide))
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        program.zero_grad()
        pyro.clear_param_store()
        for name, parameter in program.named_parameters():
            pyro.param(name, parameter)
        many = x.repeat(500)
        loss = theirs.differentiable_loss if hasattr(theirs, "differentiable_loss") else None
        loss(program.model, program.guide, many).backward()
        found.append(program.q.grad / 500)
    ours = mean_gradients(ELBO(20), program, x, repeats=20_000)
    error = torch.stack(found).std(0) / math.sqrt(40)
    gap = (torch.stack(found).mean(0) - ours[0]["q"]).abs()
    assert (gap < 5 * (error + ours[1]["q"])).all()


# ── Masks ────────────────────────────────────────────────────────────────────────────────────


class Hidden(nn.Module):
    """A latent that is masked in every other example, whose x depends on it all the same."""

    def __init__(self, *, discrete):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.discrete = discrete

    def seen(self, x):
        return poutine.mask(mask=torch.tensor([True, False]).repeat(len(x) // 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            with self.seen(x):
                prior = dist.Bernoulli(0.4) if self.discrete else dist.Normal(0.0, 1.0)
                z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(self, x):
        logits = self.logits.repeat(len(x) // 2)
        with pyro.plate("data", len(x)), self.seen(x):
            guided = dist.Bernoulli(logits=logits) if self.discrete else dist.Normal(logits, 0.8)
            pyro.sample("z", guided)

    def enumerated(self, x):
        """The exact ELBO."""
        bits = torch.tensor([0.0, 1.0])
        log_q = dist.Bernoulli(logits=self.logits[:, None]).log_prob(bits)
        kl = log_q - dist.Bernoulli(0.4).log_prob(bits)
        value = dist.Normal(2 * bits, 1.0).log_prob(x[:, None]) - kl * torch.tensor([[1.0], [0.0]])
        return (log_q.exp() * value).sum()


def test_a_masked_draw_has_a_score_where_what_is_observed_depends_on_it():
    program, x = Hidden(discrete=True), torch.tensor([0.5, -1.2])
    (expected,) = torch.autograd.grad(-program.enumerated(x), program.logits)
    assert (expected.abs() > 0.3).all()
    found, errors = mean_gradients(ELBO(4), program, x, repeats=80_000, copies=2000)
    assert ((found["logits"] - expected).abs() < 5 * errors["logits"]).all()


@along_paths
def test_a_masked_draw_has_a_path_where_what_is_observed_depends_on_it(path, plain, count):
    of_one_expectation(
        path(count), plain(count), Hidden(discrete=False), torch.tensor([0.5, -1.2])
    )


# ── Noise of a guide's own ───────────────────────────────────────────────────────────────────

NOISES = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "fused dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "into a tensor": lambda x: x * torch.empty_like(x).uniform_(0.5, 2.0),
    "a tensor": lambda x: x * (0.5 + torch.rand_like(x)) + 0.1 * torch.randn(len(x), 1),
    "changed in place": lambda x: x * torch.rand_like(x).mul_(2).add_(0.5),
    "bits": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
}


class Noisy(Hierarchy):
    """A guide of two latents that noise of its own leads."""

    def __init__(self, noise):
        super().__init__(top_down=True)
        self.noise = noise

    def guide(self, x):
        super().guide(self.noise(x))


@pytest.mark.parametrize("name", ["StickingTheLanding", "DReG", "ReweightedWakeSleep"])
@pytest.mark.parametrize("noise", NOISES)
def test_a_guide_that_is_run_again_has_the_noise_of_its_draws(noise, name):
    """Bounds of one kind have one value, whichever of them runs the guide again."""
    program, x = Noisy(NOISES[noise]), torch.tensor([[1.3], [-2.1], [0.4]]).repeat(16, 1)
    plain = ELBO(3) if name == "StickingTheLanding" else IWAE(3)
    loss, _ = loss_and_gradients(EVERY[name](), program, x)
    expected, _ = loss_and_gradients(plain, program, x)
    torch.testing.assert_close(loss, expected)


@along_paths
@pytest.mark.parametrize("noise", [NOISES["dropout"], NOISES["fused dropout"]])
def test_gradients_along_paths_are_right_under_dropout(path, plain, count, noise):
    x = torch.tensor([[1.3], [-2.1]])
    of_one_expectation(path(count), plain(count), Noisy(noise), x)


def test_dropout_of_a_dreamt_latent_is_of_that_latent():
    """Downstream of a latent, the noise is that of the draws, and not what it was applied to."""

    class Downstream(Hierarchy):
        def __init__(self):
            super().__init__(top_down=True)
            self.seen = []

        def guide(self, x):
            w = self.weights
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(w[3] * x, 0.7).to_event(1))
                kept = torch.native_dropout(z1, 0.5, True)[0]
                self.seen.append((z1.detach(), kept.detach()))
                pyro.sample("z2", dist.Normal(w[4] * x + w[5] * kept, 0.8).to_event(1))

    program = Downstream()
    loss_and_gradients(ReweightedWakeSleep(2, sleep=1.0), program, torch.randn(400, 1))
    for z1, kept in program.seen:
        left = kept != 0
        torch.testing.assert_close(kept[left], 2 * z1[left])
        assert 0.4 < left.double().mean() < 0.6
    (_, asleep), (_, again) = program.seen[-2:]
    assert torch.equal(asleep != 0, again != 0)
    assert not torch.equal(asleep, again)


def test_another_way_through_a_guide_draws_its_own():
    """A guide may draw more when it is run again: that is drawn anew, and nothing fails."""

    class Longer(Hierarchy):
        def __init__(self):
            super().__init__(top_down=True)
            self.runs = 0

        def guide(self, x):
            self.runs += 1
            super().guide(x * (torch.rand(len(x), self.runs) @ torch.ones(self.runs, 1)))

    loss, _ = loss_and_gradients(DReG(2), Longer(), torch.randn(5, 1))
    assert torch.isfinite(loss)


@along_paths
def test_noise_of_a_guide_is_captured_as_it_is_drawn(path, plain, count):
    torch.manual_seed(0)
    x, losses = torch.randn(12, 1), []
    for engine in ("eager", "graph"):
        pyro.clear_param_store()
        program = Noisy(NOISES["dropout"])
        svi = CompiledSVI(
            program.model,
            program.guide,
            torch.optim.Adam(program.parameters(), lr=0.01),
            path(count),
            engine=engine,
        )
        losses.append([])
        for step in range(5):
            torch.manual_seed(step)
            losses[-1].append(float(svi.step(x)))
        assert svi.engines in ([], [engine])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ── Points and factors ───────────────────────────────────────────────────────────────────────


class Pointed(nn.Module):
    """A guide of two latents, of which the first is a point that is made of an auxiliary draw."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.4, -0.3, 0.7]))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.2, 1.0))
            w = pyro.sample("w", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(self.weights[2] * z + w, 0.7), obs=x)

    def guide(self, x):
        loc, log_scale, slope = self.weights
        with pyro.plate("data", len(x)):
            noise = dist.Normal(0.3 * loc.expand(len(x)), 1.0)
            u = pyro.sample("u", noise, infer={"is_auxiliary": True})
            z = loc * x + log_scale.exp() * u
            pyro.sample("z", dist.Delta(z, log_density=-log_scale.expand(z.shape)))
            pyro.sample("w", dist.Normal(0.3 * z + slope * x, 0.8))


@along_paths
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_density_of_a_point_is_no_score(path, plain, count, beta):
    """Pyro's `AutoStructured` has its latents so, and their scales."""
    program = Pointed()
    program.model, program.guide = (kl_weight(beta)(f) for f in (program.model, program.guide))
    of_one_expectation(path(count), plain(count), program, torch.tensor([0.7, -1.3]))


@along_paths
def test_a_factor_of_a_guide_is_no_score(path, plain, count):
    class Factored(Fixed):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.locs[0] * x, 0.6))
                pyro.factor("f", 0.2 * z**2 + self.locs[1] * z, has_rsample=True)

    program = Factored(torch.tensor([0.4, -0.3]), 1.0)
    of_one_expectation(path(count), plain(count), program, torch.tensor([0.7, -1.3]))


class Point(Fixed):
    """A point for every example."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.locs, event_dim=1))


@along_paths
def test_a_point_has_the_whole_of_its_gradient(path, plain, count):
    program, x = Point(torch.randn(3, 2), 1.0), torch.randn(3)
    (_, found), (_, expected) = (
        loss_and_gradients(bound(count), program, x) for bound in (path, plain)
    )
    torch.testing.assert_close(found["locs"], expected["locs"])
    torch.testing.assert_close(found["locs"], program.locs.detach())


def test_a_point_that_is_learned_has_no_log_probability_to_follow():
    with pytest.raises(InputError, match="the latent 'z' is a point that is learned"):
        loss_and_gradients(ReweightedWakeSleep(2), Point(torch.randn(3, 2), 1.0), torch.randn(3))


# ── Draws that exclude x ─────────────────────────────────────────────────────────────────────


class Excluding(nn.Module):
    """A latent that gives an x above it no probability."""

    def __init__(self, *, discrete):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.4))
        self.discrete = discrete

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5) if self.discrete else dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Uniform(0.0, 1 + z, validate_args=False), obs=x)

    def guide(self, x):
        logits = self.logit.expand(len(x))
        with pyro.plate("data", len(x)):
            beta = dist.Beta(logits.exp(), 1.0)
            pyro.sample("z", dist.Bernoulli(logits=logits) if self.discrete else beta)


@pytest.mark.parametrize("bound", [VIMCO(15), ReweightedWakeSleep(15), DReG(15)])
def test_a_draw_that_excludes_x_counts_as_nothing(bound):
    program = Excluding(discrete=not isinstance(bound, DReG))
    # An example is left without any draw that allows it once in a million times.
    loss, gradients = loss_and_gradients(bound, program, torch.tensor([1.5, 0.2, 1.4] * 10))
    assert torch.isfinite(loss)
    assert torch.isfinite(gradients["logit"])
    assert gradients["logit"] != 0


def test_the_others_mean_is_theirs_where_one_of_them_is_minus_infinity():
    log_weight = torch.tensor([[0.3], [-math.inf], [2.0]])
    expected = [
        torch.tensor([-math.inf, 2.0]).logsumexp(0),
        torch.tensor([0.3, 2.0, (0.3 + 2.0) / 2]).logsumexp(0),
        torch.tensor([0.3, -math.inf]).logsumexp(0),
    ]
    found = VIMCO(3)._without_each(log_weight).squeeze(-1)
    torch.testing.assert_close(found, torch.stack(expected) - math.log(3))


# ── Dreams ───────────────────────────────────────────────────────────────────────────────────


class Labelled(nn.Module):
    """x = z + 4 y + noise, both observed, and a guide that is the posterior of z."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, -2.0]))

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), obs=y)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 4 * y, 1.0), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            loc = self.weights[0] * x + self.weights[1] * y
            pyro.sample("z", dist.Normal(loc, math.sqrt(0.5)))


@pytest.mark.parametrize("by_name", [False, True])
def test_all_that_is_dreamt_is_told_to_the_guide(by_name):
    program, count = Labelled(), 20_000
    x, y = torch.randn(count), torch.zeros(count)
    bound, found = ReweightedWakeSleep(2, sleep=1.0), []
    for seed in range(20):
        torch.manual_seed(seed)
        args, kwargs = ((x,), {"y": y}) if by_name else ((x, y), {})
        loss = bound.differentiable_loss(program.model, program.guide, *args, **kwargs)
        found.append(torch.autograd.grad(loss, program.weights)[0] / count)
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(20)
    assert (mean.abs() < 5 * error).all()
    assert (error < 0.05).all()


def test_what_a_model_notes_is_not_dreamt():
    class Noting(Labelled):
        def model(self, x, y):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Bernoulli(0.5), obs=y)
                z = pyro.deterministic("noted", pyro.sample("z", dist.Normal(0.0, 1.0)))
                pyro.sample("x", dist.Normal(z + 4 * y, 1.0), obs=x)

    x, y = torch.randn(50), torch.zeros(50)
    (_, found), (_, expected) = (
        loss_and_gradients(ReweightedWakeSleep(2, sleep=1.0), program, x, y)
        for program in (Noting(), Labelled())
    )
    torch.testing.assert_close(found, expected)


def test_what_a_guide_cannot_be_told_is_refused():
    class Unnamed(Labelled):
        def model(self, x):
            super().model(x, torch.zeros(len(x)))

        def guide(self, x):
            super().guide(x, torch.zeros(len(x)))

    loss_and_gradients(ReweightedWakeSleep(2), Unnamed(), torch.randn(4))
    with pytest.raises(InputError, match="observes 'y' besides, which is none of its arguments"):
        loss_and_gradients(ReweightedWakeSleep(2, sleep=0.5), Unnamed(), torch.randn(4))

    class OwnRows(Fixed):
        def rows(self):
            return pyro.plate("data", 4, subsample_size=2)

        def model(self, x):
            with self.rows() as rows:
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])

        def guide(self, x):
            with self.rows() as rows:
                pyro.sample("z", dist.Normal(self.locs[rows], 1.0).to_event(1))

    program = OwnRows(torch.zeros(4, 2), 1.0)
    loss_and_gradients(ReweightedWakeSleep(2), program, torch.randn(4))
    with pytest.raises(InputError, match="draws 2 of 4 rows by itself"):
        loss_and_gradients(ReweightedWakeSleep(2, sleep=0.5), program, torch.randn(4))


def test_sleep_is_a_share_of_the_guides_gradient():
    found = linear_gaussian(shift=0.5, stretch=1.3)
    awake, asleep, both = (
        loss_and_gradients(ReweightedWakeSleep(3, sleep=share), found.vae, found.x)[1]
        for share in (0.0, 1.0, 0.25)
    )
    for name in both:
        torch.testing.assert_close(both[name], 0.75 * awake[name] + 0.25 * asleep[name])


# ── The parts of the KL ──────────────────────────────────────────────────────────────────────


def test_each_part_of_the_kl_has_its_own_weight():
    """Four points in the corners of a square: all of log 4 is of x, and none between coordinates.

    On one coordinate the batch is two points, so that its cross-entropy with the prior is known.
    """
    corners = torch.tensor([[-9.0, -9.0], [-9.0, 9.0], [9.0, -9.0], [9.0, 9.0]]).repeat(25, 1)
    program, x = Fixed(corners.double(), 0.01), torch.zeros(100, dtype=torch.float64)

    def loss(**weights):
        weights = {"mutual_information": 0, "total_correlation": 0, "dimension_wise": 0} | weights
        return loss_and_gradients(TotalCorrelation(**weights), program, x)[0].item() / 100

    parts = {
        "mutual_information": math.log(4),
        "total_correlation": 0.0,
        # Of each coordinate E log q(z) = -log 2 - entropy of a point, E log p(z) that of N(0, 1).
        "dimension_wise": 2 * (9**2 / 2 - math.log(0.01) - 0.5 - math.log(2)),
    }
    for name, expected in parts.items():
        found = loss(**{name: 1}) - loss()
        assert found == pytest.approx(expected, abs=2e-1 if name == "dimension_wise" else 1e-6)

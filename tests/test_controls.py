"""What weighs the KL of a program's latents, and what each bound makes of it: closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64, linear_gaussian
from pyro import poutine
from test_bounds import Bits, loss_and_gradients, mean_gradients, mean_loss
from torch import nn

from pyrovae.bounds import (
    ELBO,
    IWAE,
    MMD,
    VIMCO,
    Capacity,
    DReG,
    FreeBits,
    ReweightedWakeSleep,
    StickingTheLanding,
    TotalCorrelation,
)
from pyrovae.bounds.aggregate import _squared_mmd_to, squared_mmd
from pyrovae.distributions import Mixture
from pyrovae.errors import InputError
from pyrovae.handlers import kl_weight
from pyrovae.priors import GaussianMixture
from pyrovae.training import fit

PER_DIM = [0.5, 3.0, 1.0]


def penalty(control, kl, beta):
    """What a control makes of the mean KL of each dimension, under beta, for its gradient too.

    A control of the whole KL weighs each dimension's gradient by its beta, and its value by
    their mean, by what each dimension carries.
    """
    beta = torch.as_tensor(beta, dtype=kl.dtype).expand(kl.shape)
    if control is None:
        return (beta * kl).sum()
    if isinstance(control, FreeBits) and control.per_dim:
        return (beta * kl.clamp(min=control.nats)).sum()
    mean, whole = (beta * kl).sum() / kl.sum(), kl.sum()
    if isinstance(control, FreeBits):
        value, weight = mean * whole.clamp(min=control.nats), (whole > control.nats).to(kl)
    else:
        weight = control.strength * (whole - control.nats).sign()
        value = mean * control.strength * (whole - control.nats).abs()
    surrogate = weight.detach() * (beta * kl).sum()
    return value.detach() + surrogate - surrogate.detach()


# ── The KL that a control reads ──────────────────────────────────────────────────────────────


class Within(nn.Module):
    """A latent in a plate within an example, whose x does not depend on it.

    The KL of dimension d is that of N(loc_d, 1) from N(0, 1) for each of the plate's elements.
    """

    def __init__(self, *, beta=1.0, full_size=4, seen=None):
        super().__init__()
        # No KL is just as many nats as a control leaves free, where it has two derivatives.
        self.loc = nn.Parameter(torch.tensor([1.0, 0.6, 1.5]))
        self.beta, self.full_size, self.seen = beta, full_size, seen

    def draw(self, loc):
        with pyro.plate("within", self.full_size, subsample_size=4, dim=-2):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            with poutine.mask(mask=True if self.seen is None else self.seen):
                with kl_weight(self.beta):
                    self.draw(torch.zeros(3))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), kl_weight(self.beta):
            with poutine.mask(mask=True if self.seen is None else self.seen):
                self.draw(self.loc)

    def kl_per_dim(self):
        return self.full_size * self.loc.square() / 2


CONTROLS = [
    FreeBits(1.0),
    FreeBits(9.0, per_dim=False),
    FreeBits(2.0, per_dim=False),
    Capacity(2.0, strength=7.0),
    Capacity(30.0, strength=7.0),
]


@pytest.mark.parametrize(
    "shape",
    [{}, {"full_size": 8}, {"seen": torch.tensor([True, False, True, True, False])}],
    ids=["whole", "subsampled", "masked"],
)
@pytest.mark.parametrize("beta", [1.0, 0.25, torch.tensor(2.0), torch.tensor(PER_DIM)], ids=str)
@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_a_control_reads_all_that_an_example_has_of_a_latent(control, beta, shape):
    program, x = Within(beta=beta, **shape), torch.tensor([0.3, -0.2, 1.0, 0.1, 0.0])
    log_likelihood = dist.Normal(0.0, 1.0).log_prob(x).sum()
    count = len(x) if program.seen is None else program.seen.sum()
    expected = count * penalty(control, program.kl_per_dim(), beta) - log_likelihood
    (gradient,) = torch.autograd.grad(expected, program.loc)
    loss, found = loss_and_gradients(ELBO(exact_kl=True, kl=control), program, x)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found["loc"], gradient)


def test_training_ends_at_the_capacity_of_a_latent_in_a_plate():
    program, x = Within(), torch.zeros(20)
    bound = ELBO(exact_kl=True, kl=Capacity(2.0, strength=1.0))
    adam = lambda p: torch.optim.Adam(p, lr=0.02)  # noqa: E731
    fit(program, x, bound=bound, epochs=300, batch_size=20, optimizer=adam, progress=False)
    assert program.kl_per_dim().sum().item() == pytest.approx(2.0, abs=0.2)


UNDER = {
    "ELBO": lambda **o: ELBO(2, **o),
    "exact KL": lambda **o: ELBO(2, exact_kl=True, **o),
    "StickingTheLanding": lambda **o: StickingTheLanding(2, **o),
    # At these the distance weighs nothing, and the KL its share.
    "MMD": lambda **o: MMD(alpha=0.0, strength=1.0, **o),
    "a share": lambda **o: MMD(alpha=0.3, strength=0.7, **o),
    "TotalCorrelation": lambda **o: TotalCorrelation(total_correlation=1.0, **o),
}


@pytest.mark.parametrize("beta", [2.0, PER_DIM], ids=str)
@pytest.mark.parametrize("control", [None, FreeBits(1.6), *CONTROLS[1:]], ids=repr)
@pytest.mark.parametrize("name", UNDER)
def test_a_control_means_the_same_under_every_bound(name, control, beta):
    found = linear_gaussian(16, shift=0.2)
    with float64():
        found.vae._weights = None if beta == 2.0 else torch.tensor(beta)
        found.vae.beta = beta
    kl = found.kl_per_dim.mean(0)
    bound = UNDER[name](kl=control)
    if name == "TotalCorrelation" and (beta is PER_DIM or getattr(control, "per_dim", False)):
        with pytest.raises(InputError, match="'z' are weighted one by one"):
            loss_and_gradients(bound, found.vae, found.x)
        return
    share = 0.7 if name == "a share" else 1.0
    expected = found.elbo.mean() + kl.sum() - share * penalty(control, kl, beta)
    mean, error = mean_loss(bound, found.vae, found.x)
    assert abs(-mean / 16 - expected) < 4.5 * error / 16 + 1e-6


def test_the_test_above_is_on_both_sides_of_the_free_bits():
    kl = linear_gaussian(16, shift=0.2).kl_per_dim.mean(0)
    assert kl.min() < 1.6 < kl.max()
    assert 2.0 < kl.sum() < 9.0


@pytest.mark.parametrize("control", [FreeBits(1.6), *CONTROLS[1:]], ids=repr)
@pytest.mark.parametrize("exact", [True, False])
def test_one_beta_for_all_dimensions_is_one_for_each(exact, control):
    found, plain = linear_gaussian(16, shift=0.2), linear_gaussian(16, shift=0.2, beta=3.0)
    with float64():
        found.vae._weights = torch.full((3,), 3.0)
    bound = ELBO(2, exact_kl=exact, kl=control)
    torch.testing.assert_close(
        loss_and_gradients(bound, found.vae, found.x),
        loss_and_gradients(bound, plain.vae, plain.x),
    )


def test_free_bits_leave_the_split_of_the_kl_no_gradient():
    found = linear_gaussian(16, shift=0.2)
    free = TotalCorrelation(kl=FreeBits(1e9, per_dim=False))
    _, gradients = loss_and_gradients(free, found.vae, found.x)
    found.vae.beta = 0.0
    for bound in (TotalCorrelation(), ELBO()):
        _, expected = loss_and_gradients(bound, found.vae, found.x)
        torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize(
    "weight", [2.0, torch.tensor([[0.5, 2.0, 1.0], [3.0, 0.0, 1.0]])], ids=str
)
def test_dimensions_in_rows_and_columns_have_weights_too(weight):
    """The event of a latent may have several dimensions."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor([[1.0, 0.1, 2.0], [0.3, 1.0, 0.7]]))

        def model(self, x):
            with pyro.plate("data", len(x)):
                with kl_weight(weight):
                    pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)), kl_weight(weight):
                pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(2))

    program, x = Rows(), torch.zeros(4)
    bound = ELBO(exact_kl=True, kl=FreeBits(0.4))
    expected = 4 * (penalty(FreeBits(0.4), program.loc.square() / 2, weight))
    (gradient,) = torch.autograd.grad(expected, program.loc)
    loss, found = loss_and_gradients(bound, program, x)
    torch.testing.assert_close(loss, expected.detach() + 2 * math.log(2 * math.pi))
    torch.testing.assert_close(found["loc"], gradient)


def test_the_score_of_a_draw_knows_no_weight():
    """A discrete draw's gradient, its dimensions weighted, is that of the sum over all."""
    program, x = Bits(), torch.tensor([0.5, -1.2, 0.9])
    weight = torch.tensor([0.5, 3.0])
    weighted = Bits()
    weighted.model, weighted.guide = (
        kl_weight(weight)(f) for f in (weighted.model, weighted.guide)
    )
    codes = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
    log_q = dist.Bernoulli(logits=program.q * x[:, None, None]).log_prob(codes)
    log_p = dist.Bernoulli(logits=program.p).log_prob(codes)
    log_x = dist.Normal(codes @ program.slope, 0.8).log_prob(x[:, None])
    value = log_x + ((log_p - log_q) * weight).sum(-1)
    exact = -(log_q.sum(-1).exp() * value).sum()
    expected = torch.autograd.grad(exact, [program.p, program.q])
    found, errors = mean_gradients(ELBO(4), weighted, x, repeats=20_000)
    for name, gradient in zip(("p", "q"), expected, strict=True):
        assert ((found[name] - gradient).abs() < 4.5 * errors[name] + 1e-6).all()


# ── A bound without a KL ─────────────────────────────────────────────────────────────────────


def test_where_no_kl_is_left_nothing_can_weigh_it():
    for control in (FreeBits(5.0), Capacity(25.0), lambda kls: None):
        with pytest.raises(InputError, match=r"alpha=1 leaves no KL for .* Give an alpha below 1"):
            MMD(kl=control)
    MMD(alpha=0.9, kl=FreeBits(5.0))
    with float64():
        weights = torch.ones(3)
    for beta in (4.0, 0.0, torch.tensor(2.0)):
        found = linear_gaussian(4)
        found.vae.beta = beta
        with pytest.raises(InputError, match="weighs the KL of 'z', and MMD with alpha=1"):
            loss_and_gradients(MMD(), found.vae, found.x)
        loss_and_gradients(MMD(alpha=0.9), found.vae, found.x)
    found = linear_gaussian(4)
    found.vae._weights = weights
    with pytest.raises(InputError, match="weighs the KL of 'z', and MMD with alpha=1"):
        loss_and_gradients(MMD(), found.vae, found.x)


def test_a_warmup_of_no_kl_is_refused():
    found = linear_gaussian(8)
    options = {"epochs": 1, "progress": False}
    with pytest.raises(InputError, match="leaves no KL for a warm-up"):
        fit(found.vae, found.x, bound=MMD(), kl_warmup=1, **options)
    fit(found.vae, found.x, bound=MMD(alpha=0.5), kl_warmup=1, **options)


# ── The distance from a prior whose draws carry no gradient ──────────────────────────────────


class Bimodal(nn.Module):
    """A mixture on the line, with quadrature of the mean discrepancy from given draws."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.4, -0.3], dtype=torch.float64))
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.5], dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor([0.6, 0.9], dtype=torch.float64))

    def forward(self, count):
        parts = dist.Normal(self.loc.unsqueeze(-1), self.scale.unsqueeze(-1)).to_event(1)
        return Mixture(dist.Categorical(logits=self.logits), parts).expand((count,))

    def expected(self, x):
        """E[k(y, y')] - 2 mean_i E[k(x_i, y)], under seven kernels 2 s / (2 s + d²)."""
        grid = torch.linspace(-8, 9, 1500, dtype=torch.float64)
        density = self(len(grid)).log_prob(grid[:, None]).exp() * (grid[1] - grid[0])

        def kernel(a, b):
            squares = (a[:, None] - b).square()
            return sum(2 * s / (2 * s + squares) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

        within = density @ kernel(grid, grid) @ density
        return within - 2 * (kernel(x.squeeze(-1), grid) @ density).mean()


@pytest.mark.parametrize("count", [2, 12])
def test_a_prior_follows_the_score_of_its_draws(count):
    prior = Bimodal()
    x = torch.linspace(0.2, 2.0, count, dtype=torch.float64).unsqueeze(-1)
    exact = prior.expected(x)
    expected = torch.autograd.grad(exact, list(prior.parameters()))
    found = []
    for _ in range(2000):
        loss = _squared_mmd_to(prior(count), x)
        found.append(torch.cat(torch.autograd.grad(loss, list(prior.parameters()))))
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - torch.cat(expected)).abs() < 4.5 * error).all()


def test_the_distance_is_what_it_was_and_reaches_the_guide():
    prior, x = Bimodal(), torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    found = _squared_mmd_to(prior(5), x)
    torch.manual_seed(3)
    expected = squared_mmd(x, prior(5).sample())
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(value, x)[0] for value in (found, expected))
    torch.testing.assert_close(*gradients)


def test_a_learned_mixture_is_trained_by_the_distance():
    found = linear_gaussian(64)
    with float64():
        found.vae.prior = GaussianMixture(3, components=4)
    before = {name: p.clone() for name, p in found.vae.prior.named_parameters()}
    fit(found.vae, found.x, bound=MMD(), epochs=2, progress=False)
    for name, parameter in found.vae.prior.named_parameters():
        assert not torch.equal(parameter, before[name]), name


class Shaped(nn.Module):
    """A latent of some shape, alone or in a plate within an example."""

    def __init__(self, event, size):
        super().__init__()
        self.loc, self.event, self.size = nn.Parameter(torch.zeros(())), event, size

    def draw(self):
        z = dist.Normal(self.loc.expand(self.event), 1.0).to_event(len(self.event))
        if self.size is None:
            return pyro.sample("z", z)
        with pyro.plate("within", self.size, dim=-2):
            return pyro.sample("z", z)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            self.draw()
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            self.draw()


@pytest.mark.parametrize(
    ("event", "size"), [((3,), 1), ((3,), 4), ((3,), 10), ((), None), ((), 4), ((2, 3), None)]
)
@pytest.mark.parametrize("bound", [MMD(), TotalCorrelation()], ids=repr)
def test_one_vector_of_each_example_is_compared(bound, event, size):
    with pytest.raises(InputError, match="one latent vector of each example"):
        loss_and_gradients(bound, Shaped(event, size), torch.zeros(10))
    loss_and_gradients(bound, Shaped((3,), None), torch.zeros(10))


# ── Latents that the guide leaves to the model ───────────────────────────────────────────────


class Switch(nn.Module):
    """c -> z -> x, whose guide draws z alone: c is drawn from its prior."""

    def __init__(self, *, learned=True):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.3), requires_grad=learned)
        self.loc = nn.Parameter(torch.tensor(0.2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(logits=self.logit))
            z = pyro.sample("z", dist.Normal(2 * c, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc + x / 2, 0.8))


@pytest.mark.parametrize("bound", [IWAE(2), DReG(2), StickingTheLanding()], ids=repr)
def test_a_learned_draw_without_gradient_is_refused_in_the_model_too(bound):
    x = torch.tensor([2.0, -0.5])
    with pytest.raises(InputError, match=r"'c' are discrete.*Take VIMCO, ReweightedWakeSleep or"):
        loss_and_gradients(bound, Switch(), x)
    fixed = Switch(learned=False)
    assert torch.isfinite(bound.differentiable_loss(fixed.model, fixed.guide, x))


def test_the_bounds_that_are_named_instead_train_it():
    program, x = Switch(), torch.tensor([2.0, -0.5])
    chance = program.logit.sigmoid()
    # The ELBO is the mean over c of E_q[log N(z; 2 c, 1)], and what does not depend on c.
    of_one = [(-((program.loc + x / 2 - 2 * c).square() + 0.64) / 2).sum() for c in (0, 1)]
    elbo = (1 - chance) * of_one[0] + chance * of_one[1]
    evidence = (
        torch.stack([1 - chance, chance]).log()
        + dist.Normal(torch.tensor([0.0, 2.0]), math.sqrt(2)).log_prob(x[:, None])
    ).logsumexp(-1)
    found, errors = mean_gradients(ELBO(4), program, x, repeats=20_000)
    (expected,) = torch.autograd.grad(-elbo, program.logit, retain_graph=True)
    assert abs(found["logit"] - expected) < 4.5 * errors["logit"]
    # Many draws make the others' bound the evidence.
    (expected,) = torch.autograd.grad(-evidence.sum(), program.logit)
    for bound in (VIMCO(200), ReweightedWakeSleep(200)):
        found, errors = mean_gradients(bound, program, x, repeats=8000, copies=200)
        assert abs(found["logit"] - expected) < 4.5 * errors["logit"] + 0.01, bound


# ── Wake and sleep ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("beta", [0.0, 0.01, 2.0, PER_DIM], ids=str)
def test_beta_weighs_draws_and_not_what_the_guide_follows(beta):
    found = linear_gaussian(shift=0.5, stretch=1.3)
    vae, x = found.vae, found.x
    with float64():
        weight = torch.tensor(beta)
    vae.beta, vae._weights = beta, weight if weight.dim() else None
    _, gradients = loss_and_gradients(ReweightedWakeSleep(3), vae, x)

    torch.manual_seed(0)
    q = vae.encoder(x)
    z = q.sample((3,))
    log_p, log_q = (d.base_dist.log_prob(z) for d in (dist.Normal(z * 0, 1.0).to_event(1), q))
    log_x = vae.decoder(z).log_prob(x)
    share = (log_x + (weight * (log_p - log_q)).sum(-1)).detach().softmax(0)
    for part, objective in (("encoder", log_q.sum(-1)), ("decoder", log_x)):
        for name, parameter in getattr(vae, part).named_parameters():
            loss = -(share * objective).sum()
            (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            torch.testing.assert_close(gradients[f"{part}.{name}"], expected)


@pytest.mark.parametrize("beta", [0.0, 0.01, PER_DIM], ids=str)
def test_a_dream_is_worth_as_much_under_every_beta(beta):
    gradients = []
    for value in (1.0, beta):
        found = linear_gaussian(shift=0.5, stretch=1.3)
        with float64():
            found.vae._weights = torch.tensor(value) if value is PER_DIM else None
        found.vae.beta = value
        bound = ReweightedWakeSleep(3, sleep=1.0)
        gradients.append(loss_and_gradients(bound, found.vae, found.x)[1])
    for name in gradients[0]:
        if name.startswith("encoder"):
            assert gradients[0][name].abs().sum() > 0
            torch.testing.assert_close(gradients[0][name], gradients[1][name])

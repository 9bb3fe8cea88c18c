"""Tables of mixed types and missing entries: closed forms, enumeration, and whole programs."""

import math
from functools import partial
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import SCALE, X_DIM, AsGiven, float64, linear_gaussian
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import MultivariateNormal, constraints

import pyrovae
from pyrovae.data import Batch, Examples, Standardize
from pyrovae.decoders import (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    GaussianDecoder,
    NanMaskedDecoder,
    TabularDecoder,
)
from pyrovae.distributions import Codes, ContinuousBernoulli, NanMasked
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.generation import reconstruct, sample
from pyrovae.imputation import impute
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE
from pyrovae.networks import MLP, NanMaskedInput, TabularInput
from pyrovae.priors import StandardNormal
from pyrovae.supports import check_support
from pyrovae.svi import CompiledSVI

NAN = math.nan
COLUMNS = (3, 0, 4, 2, 0)
ROW = torch.tensor([2.0, 0.3, 1.0, 0.0, -0.7])
GENEROUS = 4.5  # standard errors, where many numbers are compared


class Given(nn.Module):
    """A network that puts out numbers of its own, whatever its input."""

    def __init__(self, *out):
        super().__init__()
        self.out = nn.Parameter(torch.tensor(out))
        self.out_shape = (len(out),)

    def forward(self, z):
        return self.out.expand(*z.shape[:-1], -1)


def decoder(columns=COLUMNS, seed=0):
    """A table's likelihood and what its network put out."""
    rng = torch.Generator().manual_seed(seed)
    (width,) = TabularDecoder.net_shape((len(columns),), columns=columns)
    made = TabularDecoder(Given(*torch.randn(width, generator=rng).tolist()), columns=columns)
    with torch.no_grad():
        made.log_scale.copy_(torch.linspace(-1, 0.5, len(made.log_scale)))
    return made


def row_of(columns=COLUMNS, seed=0):
    return decoder(columns, seed)(torch.zeros(1))


# ── The likelihood of a row ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("columns", [(2, 3, 4), (3, 2, 3, 2), (2,), (5,)])
def test_codes_sum_to_one(columns):
    rows = torch.tensor(list(product(*[range(codes) for codes in columns]))).float()
    total = row_of(columns).log_prob(rows).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))


@pytest.mark.parametrize("columns", [(0,), (2, 0), (0, 3)])
def test_numbers_integrate_to_one_beside_codes(columns):
    grid = torch.linspace(-30, 30, 6001)
    places = [grid if codes == 0 else torch.arange(codes).float() for codes in columns]
    rows = torch.cartesian_prod(*places).reshape(-1, len(columns))
    total = row_of(columns).log_prob(rows).double().exp().sum() * 0.01
    assert total.item() == pytest.approx(1.0, rel=1e-5)


def test_a_row_is_a_product_of_its_columns_each_by_its_own_parameters():
    made = decoder()
    # Columns of one kind together, by the number of their codes.
    numbers, bit, three, four = made.net.out.split([2, 1, 3, 4])
    scale = made(torch.zeros(1)).groups[0].base_dist.scale
    expected = (
        dist.Normal(numbers[0], scale[0]).log_prob(ROW[1])
        + dist.Normal(numbers[1], scale[1]).log_prob(ROW[4])
        + dist.Bernoulli(logits=bit[0]).log_prob(ROW[3])
        + three.log_softmax(0)[2]
        + four.log_softmax(0)[1]
    )
    torch.testing.assert_close(made(torch.zeros(1)).log_prob(ROW), expected)


def test_columns_of_as_many_codes_have_logits_side_by_side():
    made = decoder((3, 2, 3))
    _, first, last = made.net.out.split([1, 3, 3])
    row = made(torch.zeros(1))
    for value, expected in ((0.0, first[0] - last[2]), (1.0, first[1] - last[2])):
        one, other = torch.tensor([[value, 0.0, 2.0], [2.0, 0.0, 2.0]])
        found = row.log_prob(one) - row.log_prob(other)
        torch.testing.assert_close(found, expected + last[2] - first[2])


def test_draws_have_the_probabilities_and_the_moments_of_their_columns():
    row, count = row_of(), 40_000
    x = row.sample((count,))
    numbers, bits, three, four = (group.base_dist for group in row.groups)
    found = [
        ((x[:, [1, 4]] - numbers.loc) / numbers.scale, 0.0, 1.0),
        (((x[:, [1, 4]] - numbers.loc) / numbers.scale).square(), 1.0, 2.0),
        (x[:, [3]], bits.probs, bits.probs * (1 - bits.probs)),
    ]
    for place, codes in ((0, three), (2, four)):
        p = codes.probs[0]
        found.append(((x[:, [place]] == torch.arange(len(p))).float(), p, p * (1 - p)))
    for values, mean, variance in found:
        error = torch.as_tensor(variance / count).sqrt()
        assert ((values.mean(0) - mean).abs() < GENEROUS * error).all()


def test_the_mean_is_expected_for_numbers_and_bits_and_most_probable_for_codes():
    row = row_of()
    numbers, bits, three, four = (group.base_dist for group in row.groups)
    assert row.mean[[1, 4]].tolist() == numbers.loc.tolist()
    assert row.mean[3] == bits.probs
    assert row.mean[[0, 2]].tolist() == [three.logits.argmax(), four.logits.argmax()]


@pytest.mark.parametrize(("start", "expected"), [(-1e4, 0.1), (0.0, 1.0), (1e4, 5.0)])
def test_scales_stay_within_their_bounds(start, expected):
    made = TabularDecoder(Given(0.0), columns=(0,), min_scale=0.1, max_scale=5.0)
    with torch.no_grad():
        made.log_scale.fill_(start)
    scale = made(torch.zeros(1)).groups[0].base_dist.scale
    assert scale.item() == pytest.approx(expected, rel=0.25)
    assert 0.1 / (1 + 0.1 / 5.0) <= scale.item() <= 5.0 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("row", "inside"),
    [
        (ROW.tolist(), True),
        ([NAN] * 5, True),
        ([3.0, 0.3, 1.0, 0.0, -0.7], False),
        ([-1.0, 0.3, 1.0, 0.0, -0.7], False),
        ([1.5, 0.3, 1.0, 0.0, -0.7], False),
        ([2.0, 0.3, 1.0, 2.0, -0.7], False),
        ([2.0, math.inf, 1.0, 0.0, -0.7], False),
        ([2.0, 1e30, NAN, 0.0, -0.7], True),
    ],
)
def test_a_row_is_checked_column_by_column(row, inside):
    assert row_of().support.check(torch.tensor(row)) == inside


def test_a_table_of_codes_alone_is_discrete_and_of_others_not():
    assert row_of((2, 3)).support.is_discrete
    assert not row_of((2, 0)).support.is_discrete


@pytest.mark.parametrize("columns", [(), (1,), (0, -3), (2, 1)])
def test_columns_without_a_choice_of_values_are_refused(columns):
    with pytest.raises(InputError, match="columns"):
        TabularDecoder(Given(0.0), columns=columns)


@pytest.mark.parametrize("shape_of", [TabularDecoder.net_shape, TabularInput.net_shape])
@pytest.mark.parametrize("x_shape", [(4,), (1, 5), ()])
def test_as_many_columns_as_entries(shape_of, x_shape):
    with pytest.raises(InputError, match="5 columns"):
        shape_of(x_shape, columns=COLUMNS)


# ── Missing entries ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hidden", [[0], [1], [2, 3], [0, 1, 4], [0, 1, 2, 3, 4]], ids=str)
def test_a_missing_entry_of_a_row_adds_nothing_to_value_or_gradient(hidden):
    made = decoder()
    value = ROW.clone()
    value[hidden] = NAN
    row = made(torch.zeros(1))
    found = row.log_prob(value)
    parts = zip(row.groups, row.split(ROW), strict=True)
    entries = row.join([group.log_prob(part) for group, part in parts])
    kept = [i for i in range(5) if i not in hidden]
    torch.testing.assert_close(found, entries[kept].sum())
    if not kept:
        assert found == 0

    found.backward()
    gradient = torch.split(made.net.out.grad, [1, 1, 1, 3, 4])
    by_column = dict(zip((1, 4, 3, 0, 2), gradient, strict=True))
    for column, part in by_column.items():
        assert part.isfinite().all()
        assert (part == 0).all() == (column in hidden)
    assert (made.log_scale.grad == 0).tolist() == [1 in hidden, 4 in hidden]


class Below(dist.Normal):
    """What has an upper bound alone."""

    support = constraints.less_than(0.0)

    def sample(self, sample_shape=()):
        return -super().sample(sample_shape).abs()


BASES = {
    "normal": (lambda p: dist.Normal(p, p.exp()), 0.3),
    "laplace": (lambda p: dist.Laplace(p, 1.0), 0.0),
    "student-t": (lambda p: dist.StudentT(2 + p.exp(), p), 0.3),
    "bernoulli": (lambda p: dist.Bernoulli(logits=p), 1.0),
    "continuous bernoulli": (ContinuousBernoulli, 1.0),
    "poisson": (lambda p: dist.Poisson(p.exp()), 3.0),
    "negative binomial": (lambda p: dist.NegativeBinomial(4.0, logits=p), 3.0),
    "binomial": (lambda p: dist.Binomial(5, logits=p), 5.0),
    "geometric": (lambda p: dist.Geometric(logits=p), 3.0),
    "exponential": (lambda p: dist.Exponential(p.exp()), 0.5),
    "gamma": (lambda p: dist.Gamma(p.exp(), 1.0), 0.5),
    "beta": (lambda p: dist.Beta(p.exp(), 2.0), 0.5),
    "log-normal": (lambda p: dist.LogNormal(p, 1.0), 0.5),
    "codes": (lambda p: Codes(logits=p[:, None] * torch.arange(3.0)), 2.0),
    "uniform": (lambda p: dist.Uniform(p, p + 4.0), 2.0),
    "pareto": (lambda p: dist.Pareto(p.exp(), 2.0), 7.0),
    "below zero": (lambda p: Below(p, 1.0), -0.5),
}


@pytest.mark.parametrize("name", BASES)
def test_any_distribution_of_single_numbers_can_leave_entries_out(name):
    make, number = BASES[name]
    p = torch.tensor([0.4, -0.3, 1.2, 0.7], requires_grad=True)
    x = torch.tensor([number, NAN, number, NAN])
    with pyro.validation_enabled(True):
        masked = NanMasked(make(p))
        found = masked.log_prob(x)
        whole = masked.sample((3,))
        assert not whole.isnan().any()
        assert masked.support.check(whole).all()
        with pytest.raises(ValueError, match="support"):
            masked.log_prob(torch.full((4,), math.inf))
    expected = make(p.detach()).log_prob(torch.full((4,), number))
    torch.testing.assert_close(found.detach()[[0, 2]], expected[[0, 2]])
    assert found[[1, 3]].tolist() == [0, 0]

    found.sum().backward()
    assert p.grad.isfinite().all()
    assert p.grad[[1, 3]].tolist() == [0, 0]
    assert p.grad[[0, 2]].ne(0).all() or name == "uniform"
    assert masked.mean.tolist() == make(p.detach()).mean.tolist()


def test_it_is_the_masked_normal_of_pyro():
    x = torch.where(torch.rand(50) < 0.3, NAN, torch.randn(50))
    loc, scale = torch.randn(50), torch.rand(50) + 0.1
    expected = dist.NanMaskedNormal(loc, scale).log_prob(x)
    torch.testing.assert_close(NanMasked(dist.Normal(loc, scale)).log_prob(x), expected)


def test_a_log_probability_broadcasts_over_draws():
    base = dist.Normal(torch.randn(4, 1, 3), 1.0)
    x = torch.tensor([[0.5, NAN, 1.0], [NAN, NAN, NAN]])
    found = NanMasked(base).to_event(1).log_prob(x)
    assert found.shape == (4, 2)
    assert found[:, 1].tolist() == [0] * 4


def test_events_that_are_not_single_numbers_are_refused():
    with pytest.raises(InputError, match=r"Independent.*\(3,\)"):
        NanMasked(dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_a_likelihood_that_does_not_factorise_is_refused():
    with pytest.raises(InputError, match=r"MixedColumns.*TabularDecoder"):
        NanMaskedDecoder(decoder())(torch.zeros(1))


# ── The networks that read them ──────────────────────────────────────────────────────────────


class Echo(nn.Module):
    """Keeps its input."""

    def __init__(self, *in_shape):
        super().__init__()
        self.in_shape = self.out_shape = in_shape

    def forward(self, x):
        return x


def test_a_vector_is_followed_by_what_was_observed():
    net = NanMaskedInput(Echo(6))
    assert net.in_shape == (3,)
    assert NanMaskedInput.net_shape((3,)) == (6,)
    found = net(torch.tensor([[0.5, NAN, 0.0], [NAN, -1.0, 2.0]]))
    assert found.tolist() == [[0.5, 0, 0, 1, 0, 1], [0, -1, 2, 0, 1, 1]]


def test_an_image_gets_a_channel_that_says_what_was_observed():
    net = NanMaskedInput(Echo(4, 5, 7))
    assert NanMaskedInput.net_shape((2, 5, 7)) == (4, 5, 7)
    x = torch.randn(3, 2, 5, 7)
    x[0, 1, 2, 3] = NAN
    values, mask = net(x).chunk(2, dim=1)
    assert torch.equal(mask, (~x.isnan()).float())
    assert torch.equal(values, x.nan_to_num(0))


def test_columns_become_numbers_with_their_mask_and_codes_that_are_none_or_one():
    net = TabularInput(Echo(8), columns=(3, 0, 3))
    assert TabularInput.net_shape((3,), columns=(3, 0, 3)) == (8,)
    found = net(torch.tensor([[2.0, -0.5, 0.0], [NAN, NAN, 1.0]]))
    assert found.tolist() == [[-0.5, 1, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize("columns", [(0, 0), (2, 3)])
def test_columns_of_one_kind_alone_are_read_too(columns):
    net = TabularInput(Echo(*TabularInput.net_shape((2,), columns=columns)), columns=columns)
    assert net(torch.ones(4, 2)).shape == (4, *net.out_shape)


def test_networks_without_room_are_refused():
    with pytest.raises(InputError, match="no room"):
        NanMaskedInput(MLP((5,), (2,)))
    with pytest.raises(InputError, match=r"7 features.*6"):
        TabularInput(MLP((6,), (2,)), columns=(0, 3, 2))


# ── Exactly: the linear-Gaussian model of what was observed ──────────────────────────────────


def with_holes(num_examples=40):
    """A linear-Gaussian VAE whose guide is broad, and x with a third of its entries missing.

    The guide's mean is that of the whole posterior, with nothing added for what is missing.
    """
    case = linear_gaussian(num_examples)
    with float64():
        net = MLP(NanMaskedInput.net_shape((X_DIM,)), (6,), hidden=())
        to_mean, b = case.vae.encoder.net.weight[:3], case.vae.decoder.net.bias
        with torch.no_grad():
            net.layers[0].weight.zero_()[:3] = torch.cat([to_mean, -to_mean * b], 1)
            net.layers[0].bias.zero_()
        vae = VAE(
            case.vae.prior,
            NanMaskedDecoder(case.vae.decoder),
            GaussianEncoder(NanMaskedInput(net)),
        )
    x = case.x.clone()
    x[torch.rand(x.shape) < 1 / 3] = NAN
    x[0] = NAN
    x[1] = case.x[1]
    decoding = case.vae.decoder.net
    W, b = decoding.weight.detach(), decoding.bias.detach()
    return vae, x, W @ W.T + SCALE**2 * torch.eye(X_DIM, dtype=W.dtype), b


def marginal(row, covariance, loc):
    seen = ~row.isnan()
    if not seen.any():
        return 0.0
    normal = MultivariateNormal(loc[seen], covariance[seen][:, seen])
    return normal.log_prob(row[seen]).item()


def test_the_evidence_of_what_was_observed_is_its_marginal():
    vae, x, covariance, loc = with_holes()
    examples = Examples(x, preprocessing=AsGiven(), missing=True)
    found = evaluate(vae, examples, num_samples=20_000)
    expected = torch.tensor([marginal(row, covariance, loc) for row in x])
    z = (found.log_evidence - expected) / found.log_evidence_error
    assert z.abs().max() < GENEROUS
    assert abs(z.mean()) < 4 / math.sqrt(len(z))
    assert found.log_evidence_error.max() < 0.1
    assert found.bits_per_dim is None


def test_imputations_are_of_the_conditional_distribution():
    vae, x, covariance, loc = with_holes(6)
    copies = 500
    found = impute(vae, Batch(x), count=copies, num_samples=1500).x
    assert torch.equal(found[:, 1], x[1].expand(copies, -1))
    for row, draws in zip(x[2:], found.unbind(1)[2:], strict=True):
        seen, hidden = ~row.isnan(), row.isnan()
        assert torch.equal(draws[:, seen], row[seen].expand(copies, -1))
        gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, hidden]).T
        mean = loc[hidden] + gain @ (row[seen] - loc[seen])
        variance = (covariance[hidden][:, hidden] - gain @ covariance[seen][:, hidden]).diagonal()
        # Of the copies, and of the draws that they are chosen from, which are worth fewer.
        error = (variance * (1 / copies + 1 / 150)).sqrt()
        assert ((draws[:, hidden].mean(0) - mean).abs() < GENEROUS * error).all()
        ratio = draws[:, hidden].var(0) / variance
        assert ((ratio - 1).abs() < GENEROUS * math.sqrt(2 / 150)).all()


# ── Whole programs ───────────────────────────────────────────────────────────────────────────


def table(count=300, missing=0.3, seed=0):
    """Rows of one hidden number: two numbers, three codes and a bit; whole, and with holes."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, generator=rng)
    noise = 0.3 * torch.randn(count, 2, generator=rng)
    codes = (z > -0.5).float() + (z > 0.5).float()
    whole = torch.stack([codes, z + noise[:, 0], (z > 0).float(), noise[:, 1] - z], -1)
    holes = torch.rand(whole.shape, generator=rng) < missing
    return whole, torch.where(holes, NAN, whole)


KINDS = (3, 0, 2, 0)


def tabular_vae(latent_dim=2):
    torch.manual_seed(0)
    x_shape, features = (4,), TabularInput.net_shape((4,), columns=KINDS)
    width = TabularDecoder.net_shape(x_shape, columns=KINDS)
    return VAE(
        StandardNormal(latent_dim),
        TabularDecoder(MLP((latent_dim,), width, hidden=(16,)), columns=KINDS),
        GaussianEncoder(
            TabularInput(MLP(features, (2 * latent_dim,), hidden=(16,)), columns=KINDS)
        ),
    )


def masked_vae(kind=BernoulliDecoder, x_shape=(6,)):
    torch.manual_seed(0)
    net = MLP(NanMaskedInput.net_shape(x_shape), (4,), hidden=(8,))
    return VAE(
        StandardNormal(2),
        NanMaskedDecoder(kind(MLP((2,), x_shape, hidden=(8,)))),
        GaussianEncoder(NanMaskedInput(net)),
    )


def bits_with_holes(*shape):
    x = (torch.rand(shape) < 0.4).float()
    return torch.where(torch.rand(shape) < 0.3, NAN, x)


PROGRAMS = {
    "table": lambda: (tabular_vae(), table(20)[1]),
    "bits": lambda: (masked_vae(), bits_with_holes(20, 6)),
    "numbers": lambda: (masked_vae(GaussianDecoder), bits_with_holes(20, 6)),
    "images": lambda: (
        masked_vae(ContinuousBernoulliDecoder, (1, 6, 5)),
        bits_with_holes(20, 1, 6, 5),
    ),
}
every_program = pytest.mark.parametrize("name", PROGRAMS)


def losses(make, name, **options):
    pyro.clear_param_store()
    vae, x = PROGRAMS[name]()
    svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
    found = []
    for step in range(5):
        torch.manual_seed(step)
        found.append(float(svi.step(x)))
    if options:
        assert svi.engines == ["graph"]
    return found


@every_program
def test_captured_training_is_that_of_pyro(name):
    stock = losses(SVI, name)
    assert losses(CompiledSVI, name, engine="graph") == pytest.approx(stock, rel=1e-5, abs=1e-5)


@every_program
def test_a_program_of_missing_entries_runs_through_everything(name):
    vae, x = PROGRAMS[name]()
    x[3] = NAN
    examples = Examples(x, missing=True)
    assert inspect_program(vae, examples.head(3)).vectorizes
    run = pyrovae.fit(vae, examples, test=examples, epochs=2, batch_size=8, progress=False)
    found = run.evaluate(num_samples=10)
    assert all(v.isfinite().all() for v in (found.elbo, found.kl, found.log_evidence))
    assert found.log_likelihood[3] == 0
    assert found.bits_per_dim is None
    assert reconstruct(vae, examples.head(5)).x.isfinite().all()
    assert sample(vae, examples.head(1), 7).x.isfinite().all()
    assert impute(vae, examples.head(5), count=2, num_samples=3).x.isfinite().all()
    assert run.reconstruct(4).figure is not None


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_training_on_what_was_observed_learns_what_was_not(engine):
    whole, x = table()
    vae, examples = tabular_vae(), Examples(x, missing=True)
    run = pyrovae.fit(
        vae,
        examples,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        epochs=30,
        batch_size=50,
        engine=engine,
        progress=False,
    )
    assert run.config["engine"]["name"] == engine
    hidden = x.isnan()
    drawn = impute(vae, examples.head(len(x)), count=20, num_samples=20).x
    for column, codes in enumerate(KINDS):
        rows = hidden[:, column]
        truth, seen = whole[rows, column], whole[~rows, column]
        if codes:
            right = (drawn[:, rows, column].mode(0).values == truth).float().mean()
            assert right > (truth == seen.mode().values).float().mean() + 0.2
        else:
            error = (drawn[:, rows, column].mean(0) - truth).square().mean()
            assert error < 0.5 * truth.var()


# ── What is refused before the first step ────────────────────────────────────────────────────


def test_a_likelihood_that_takes_no_missing_entry_is_refused_by_example_and_column():
    x = torch.zeros(8, 6)
    x[5, 2] = NAN
    vae = VAE(
        StandardNormal(2),
        BernoulliDecoder(MLP((2,), (6,))),
        GaussianEncoder(NanMaskedInput(MLP((12,), (4,)))),
    )
    with pytest.raises(InputError, match=r"missing.*Bernoulli.*example 5, column 2.*NanMasked"):
        pyrovae.fit(vae, Examples(x, missing=True), progress=False)


def test_the_entry_of_an_image_is_named():
    x = torch.zeros(8, 1, 6, 5)
    x[5, 0, 3, 2] = NAN
    vae = masked_vae(x_shape=(1, 6, 5))
    vae.decoder = vae.decoder.decoder
    with pytest.raises(InputError, match=r"example 5, entry \(0, 3, 2\)"):
        check_support(vae, [Batch(x)])


def test_an_encoder_that_reads_no_missing_entry_is_refused_by_example():
    x = torch.zeros(8, 6)
    x[5, 2] = NAN
    vae = masked_vae()
    vae.encoder = GaussianEncoder(MLP((6,), (4,)))
    with pytest.raises(InputError, match=r"guide gives NaN.*'z' of example 5.*NanMaskedInput"):
        pyrovae.fit(vae, Examples(x, missing=True), progress=False)
    with pytest.raises(InputError, match="'z' of example 1"):
        inspect_program(vae, Batch(x[4:]))


def test_a_code_that_a_column_lacks_is_refused_by_its_column():
    x = table(20)[1]
    x[0] = torch.tensor([3.0, 0.0, 0.0, 0.0])
    with pytest.raises(InputError, match=r"MixedColumns.*example 0, column 0 \(3\)"):
        pyrovae.fit(tabular_vae(), Examples(x, missing=True), progress=False)


def test_a_run_on_a_table_with_holes_is_loaded_again(tmp_path):
    _, x = table(60)
    np.save(tmp_path / "table.npy", x.numpy())
    standard = Standardize.of(x, columns=KINDS)
    with pytest.raises(InputError, match="missing=True"):
        pyrovae.load_data(tmp_path / "table.npy", preprocessing=standard)
    data = pyrovae.load_data(tmp_path / "table.npy", preprocessing=standard, missing=True)
    run = pyrovae.fit(tabular_vae(), data, epochs=1, run_dir=tmp_path / "run", progress=False)
    again = pyrovae.load(tmp_path / "run")
    expected = run.evaluate(num_samples=5).log_evidence
    assert torch.equal(again.evaluate(num_samples=5).log_evidence, expected)
    other = again.on(tmp_path / "table.npy").evaluate(num_samples=5)
    assert other.num_examples == 60

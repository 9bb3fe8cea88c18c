"""Likelihoods drawn element by element, against every value that there is, and loops by hand."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import side_by_side
import torch
from linear_gaussian import float64
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn
from torch.func import functional_call

from pyrovae.decoders import PixelCNNDecoder, RecurrentTextDecoder
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.models import VAE
from pyrovae.networks import MLP, TokenEncoderNet
from pyrovae.priors import StandardNormal

Z = 3


def pixels(x_shape, *, spread=0.5, **options):
    """A PixelCNN, in float64, with weights large enough to be far from uniform."""
    with float64():
        shape = PixelCNNDecoder.net_shape(x_shape, features=options.get("features", 32))
        return strong(PixelCNNDecoder(MLP((Z,), shape, hidden=()), x_shape, **options), spread)


def text(length, *, spread=0.7, **options):
    options = {"embedding": 3, "hidden": 4} | options
    with float64():
        net = MLP((Z,), RecurrentTextDecoder.net_shape((length,), hidden=options["hidden"]))
        return strong(RecurrentTextDecoder(net, (length,), **options), spread)


def strong(module, spread):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=spread)
    return module


def latents(*batch_shape):
    return torch.randn(*batch_shape, Z, dtype=torch.float64)


def every_value(decoder, symbols):
    values = product(range(symbols), repeat=math.prod(decoder.x_shape))
    return torch.tensor(list(values), dtype=torch.float64).reshape(-1, *decoder.x_shape)


def in_order(x):
    """The elements of values (N, x), in the order in which they are drawn."""
    return x.movedim(1, -1).flatten(1) if x.dim() == 4 else x


SMALL = {
    "binary": (lambda: pixels((1, 2, 2), features=4, layers=2, kernel=3), 2),
    "wide": (lambda: pixels((1, 1, 3), features=4, layers=1, kernel=3, levels=3), 3),
    "colour": (lambda: pixels((2, 2, 1), features=5, layers=2, kernel=5, levels=3), 3),
    "text": (lambda: text(4, symbols=3), 3),
    "one symbol": (lambda: text(1, symbols=5), 5),
    "LSTM": (lambda: text(4, symbols=3, cell="lstm"), 3),
}
LARGE = {
    "binary": (lambda: pixels((1, 5, 7), features=4, layers=3, kernel=5), 2),
    "grey": (lambda: pixels((1, 4, 6), features=6, layers=5, kernel=3, levels=5), 5),
    "colour": (lambda: pixels((3, 4, 5), features=7, layers=4, kernel=3, levels=4), 4),
    "column": (lambda: pixels((2, 4, 1), features=4, layers=1, kernel=7), 2),
    "text": (lambda: text(9, symbols=6), 6),
    "LSTM": (lambda: text(9, symbols=6, cell="lstm"), 6),
}
small = pytest.mark.parametrize(("make", "symbols"), SMALL.values(), ids=SMALL)
large = pytest.mark.parametrize(("make", "symbols"), LARGE.values(), ids=LARGE)


# ── The distribution ─────────────────────────────────────────────────────────────────────────


@small
def test_the_probabilities_of_all_values_sum_to_one(make, symbols):
    decoder = make()
    log_p = decoder(latents(4)).log_prob(every_value(decoder, symbols)[:, None])
    torch.testing.assert_close(log_p.logsumexp(0), log_p.new_zeros(4), atol=1e-12, rtol=0)
    assert log_p.std(0).min() > 0.1, "not a uniform, of which little could go wrong"


@small
def test_draws_come_as_often_as_they_are_probable(make, symbols):
    decoder, n = make(), 10000
    density, values = decoder(latents(2)), every_value(decoder, symbols)
    p = density.log_prob(values[:, None]).exp().detach().T
    draws = density.sample((n,)).flatten(2).long()
    places = symbols ** torch.arange(draws.shape[2] - 1, -1, -1)
    counts = torch.stack(
        [torch.bincount(row, minlength=len(values)) for row in (draws @ places).T]
    )

    chi_square = ((counts - n * p).square() / (n * p)).sum(1)
    cells = len(values)
    variance = 2 * (cells - 1) + ((1 / p).sum(1) - cells**2 - 2 * cells + 2) / n
    assert ((chi_square - (cells - 1)).abs() < 4 * variance.sqrt()).all()


@large
def test_one_pass_is_the_chain_of_conditionals(make, symbols):
    decoder, chain = make(), []
    z, x = latents(3), torch.randint(symbols, (3, *decoder.x_shape)).double()
    elements = iter(in_order(x).unbind(1))

    def draw(logits):
        element = next(elements).long().reshape(logits.shape[:-1])
        chain.append(torch.distributions.Categorical(logits=logits).log_prob(element).reshape(3))
        return element

    density = decoder(z)
    with torch.no_grad():
        made = decoder.generate(density.context, draw)
    assert torch.equal(made.double(), x)
    torch.testing.assert_close(torch.stack(chain).sum(0), density.log_prob(x))
    assert next(elements, None) is None


@large
def test_an_element_hears_of_all_before_it_and_of_no_other(make, symbols):
    decoder = make()
    x = torch.randint(symbols, (40, *decoder.x_shape)).double()
    context = decoder(latents(40)).context
    places = in_order(torch.arange(x[0].numel()).reshape(1, *decoder.x_shape))[0]

    def logits(values):
        return in_order_of_logits(decoder.logits(values, context), x.dim())

    before, hears = logits(x), []
    for place in places:
        other = x.clone().flatten(1)
        other[:, place] = (other[:, place] + 1) % symbols
        moved = (logits(other.reshape(x.shape)) - before).abs().amax((0, 2))
        hears.append(moved > 0)

    past = torch.ones(len(places), len(places)).triu(1).bool()
    assert torch.equal(torch.stack(hears), past)


def in_order_of_logits(logits, rank):
    return logits.movedim(1, 3).flatten(1, 3) if rank == 4 else logits


def test_the_derivatives_by_the_future_of_a_pixel_are_zero():
    decoder = pixels((2, 3, 4), features=6, layers=4, kernel=3, levels=3)
    x = torch.rand(20, *decoder.x_shape, dtype=torch.float64)
    context = decoder(latents(20)).context

    def logits(values):
        # A sum over images, of which each has its own.
        return in_order_of_logits(decoder.logits(values, context), 4).sum(0)

    jacobian = torch.autograd.functional.jacobian(logits, x).abs().sum(1)
    size = in_order(jacobian.sum(1)).T
    past = torch.ones_like(size).triu(1).bool()
    assert (size[~past] == 0).all()
    assert (size[past] > 0).all()


@large
def test_every_element_hears_of_what_it_is_given(make, symbols):
    decoder = make()
    x = torch.randint(symbols, (40, *decoder.x_shape)).double()
    context = decoder(latents(40)).context
    moved = decoder.logits(x, context + 0.1) - decoder.logits(x, context)
    assert moved.abs().amax((0, -1)).gt(0).all()


@large
def test_particles_on_the_left_score_the_same_values(make, symbols):
    decoder = make()
    z, x = latents(2, 3), torch.randint(symbols, (3, *decoder.x_shape)).float()
    together = decoder(z).log_prob(x)
    assert together.shape == (2, 3)
    for k, n in product(range(2), range(3)):
        torch.testing.assert_close(decoder(z[k, n]).log_prob(x[n]), together[k, n])


@large
@pytest.mark.parametrize("which", ["", "net.", "last"])
def test_weights_of_each_particle_act_as_in_a_loop(make, symbols, which):
    """All are drawn, or those of the network alone, or a single bias: 4 particles of a batch."""
    decoder, z, drawn = make(), latents(3), {}
    last = "read_out.3.bias" if isinstance(decoder, PixelCNNDecoder) else "read_out.bias"
    for name, weight in decoder.named_parameters():
        if name.startswith(which) or name == (last if which == "last" else ""):
            drawn[name] = weight + 0.1 * torch.randn(4, 1, *weight.shape, dtype=weight.dtype)
    x = torch.randint(symbols, (3, *decoder.x_shape)).float()

    together = functional_call(decoder, drawn, z)
    assert together.batch_shape == (4, 3)
    found, made = together.log_prob(x), generate(together)
    assert found.shape == (4, 3)
    assert len(found.detach().unique(dim=0)) == 4
    for k in range(4):
        alone = functional_call(decoder, {key: value[k, 0] for key, value in drawn.items()}, z)
        assert alone.batch_shape == (3,)
        torch.testing.assert_close(found[k], alone.log_prob(x))
        assert (made[k] == generate(alone)).all()


def generate(density):
    """The values whose every element is the likeliest after those before it."""
    with torch.no_grad():
        return density.scorer.generate(density.context, lambda logits: logits.argmax(-1))


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("name", ["text", "LSTM", "colour"])
def test_a_bayesian_decoder_is_scored_by_its_draws(name, num_particles):
    """Pyro scores x after the model, when the sites of the weights are drawn no more."""
    make, symbols = LARGE[name]
    decoder = make()
    to_pyro_module_(decoder)
    for module in decoder.modules():
        for key, weight in list(module.named_parameters(recurse=False)):
            near = dist.Normal(weight.detach(), 0.1).to_event(weight.dim())
            setattr(module, key, PyroSample(near))
    z, x = latents(3), torch.randint(symbols, (3, *decoder.x_shape)).double()

    def model():
        with pyro.plate("particles", num_particles, dim=-2):
            density = decoder(z)
            with pyro.plate("data", 3, dim=-1):
                return pyro.sample("x", density, obs=x)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    weights = {n: s["value"] for n, s in trace.nodes.items() if "." in n}
    assert len(weights) == len(list(make().named_parameters()))
    expected = functional_call(make(), weights, z).log_prob(x)
    assert expected.shape == (num_particles, 3)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)


@pytest.mark.parametrize("name", ["text", "colour"])
def test_weights_may_be_other_than_parameters(name):
    """A plain tensor, a layer in place of another, or pruned, as they are at the time."""
    make, symbols = LARGE[name]
    decoder, z = make(), latents(3)
    x = torch.randint(symbols, (3, *decoder.x_shape)).float()
    layer = decoder.read_out if name == "text" else decoder.read_out[3]
    expected = decoder(z).log_prob(x)

    held = layer.weight.detach()
    del layer.weight
    layer.weight = held
    density = decoder(z)
    for _ in range(2):
        torch.testing.assert_close(density.log_prob(x), expected)
        density.sample()
    assert layer.weight is held
    layer.weight = held * 2
    torch.testing.assert_close(density.log_prob(x), expected)
    assert layer.weight is not held

    if name == "text":
        decoder.read_out = nn.Sequential(layer, nn.Softplus())
        assert not torch.allclose(decoder(z).log_prob(x), expected)


def test_several_threads_may_score():
    decoder, x = SMALL["text"][0](), torch.zeros(2, 4)
    density = decoder(latents(2))
    expected = density.log_prob(x)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: density.log_prob(x), range(200)):
            torch.testing.assert_close(found, expected)


@large
def test_symbols_may_be_of_any_type(make, symbols):
    decoder = make()
    density, x = decoder(latents(3)), torch.randint(symbols, (3, *decoder.x_shape))
    torch.testing.assert_close(density.log_prob(x), density.log_prob(x.float()))
    assert density.sample().dtype == torch.float64


def test_draws_of_one_batch_are_their_own():
    decoder = pixels((1, 3, 3), features=4, layers=1)
    draws = decoder(latents(2)).expand((50, 2)).sample((3,))
    assert draws.shape == (3, 50, 2, 1, 3, 3)
    assert len(draws.reshape(300, 9).unique(dim=0)) > 50


@large
def test_what_is_no_symbol_is_outside_the_support(make, symbols):
    decoder = make()
    density = decoder(latents())
    for bad in (-1.0, 0.5, float(symbols), math.nan):
        x = torch.zeros(decoder.x_shape)
        x.view(-1)[-1] = bad
        assert not density.support.check(x)
        for checking in (density, density.expand((2,))):
            with pytest.raises(ValueError, match="support"):
                checking.log_prob(x)
    assert density.support.check(torch.full(decoder.x_shape, symbols - 1.0))


def test_there_is_no_mean():
    with pytest.raises(NotImplementedError):
        _ = text(3)(latents()).mean


def test_levels_are_numbers_from_minus_one_to_one():
    scale = pixels((1, 2, 2), levels=5)._scale
    assert scale(torch.arange(5.0)).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


# ── Text ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
def test_the_text_decoder_is_a_cell_step_by_step(cell):
    is_gru = cell is nn.GRUCell
    decoder = text(5, symbols=6, cell="gru" if is_gru else "lstm")
    z, x = latents(3), torch.randint(6, (3, 5))
    weights = {k.removesuffix("_l0"): v for k, v in decoder.recurrent.state_dict().items()}
    cell, given = cell(7, 4, dtype=torch.float64), decoder.net(z).tanh()

    state = given if is_gru else (given, given)
    symbol, total = torch.full((3,), 6), torch.zeros(3, dtype=torch.float64)
    for t in range(5):
        fed = torch.cat([decoder.embed.weight[symbol], given], -1)
        state = functional_call(cell, weights, (fed, state))
        symbol = x[:, t]
        h = state if is_gru else state[0]
        total += decoder.read_out(h).log_softmax(-1)[torch.arange(3), symbol]
    torch.testing.assert_close(decoder(z).log_prob(x), total)


def dependence(decoder):
    """How far each symbol's own logits go with the one before it."""
    x = torch.randint(decoder.symbols, (200, 6))
    context = decoder(latents(200)).context
    torch.manual_seed(1)
    first = decoder.logits(x, context)
    torch.manual_seed(1)
    return (decoder.logits((x + 1) % decoder.symbols, context) - first).abs().amax((0, 2))


def test_a_decoder_whose_words_are_all_dropped_asks_z_alone():
    decoder = text(6, symbols=4, word_dropout=1.0)
    assert dependence(decoder).eq(0).all()
    assert dependence(decoder.eval())[1:].gt(0).all()


def test_words_are_dropped_in_training_alone_and_as_often_as_asked():
    decoder, shown = text(40, symbols=4, word_dropout=0.3), []
    decoder.embed.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    x, z = torch.randint(4, (500, 40)), latents(500)
    before = torch.cat([torch.full((500, 1), 4), x[:, :-1]], 1)

    decoder(z).log_prob(x)
    dropped = shown[-1][:, 1:] == 4
    share, n = dropped.double().mean(), dropped.numel()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    assert torch.equal(shown[-1][:, 1:][~dropped], x[:, :-1][~dropped])
    assert dropped.float().mean(0).sub(0.3).abs().max() < 0.15, "at every place"

    decoder.eval()(z).log_prob(x)
    assert torch.equal(shown[-1], before)
    decoder.train()(z).sample()
    assert (shown[-1] < 4).all(), "a draw reads what was drawn"


def test_what_is_predicted_is_never_dropped():
    decoder = text(6, symbols=4, word_dropout=1.0)
    x = torch.randint(4, (5, 6))
    logits = decoder.logits(x, decoder(latents(5)).context)
    assert logits.shape == (5, 6, 4)
    z = latents(1)
    values = torch.cartesian_prod(*[torch.arange(4)] * 6)
    assert decoder(z).log_prob(values).exp().sum().item() == pytest.approx(1.0)


# ── In a VAE ─────────────────────────────────────────────────────────────────────────────────


def image_vae():
    decoder = PixelCNNDecoder(MLP((2,), (4, 4, 3), hidden=(4,)), (1, 4, 3), features=4, layers=1)
    return VAE(StandardNormal(2), decoder, GaussianEncoder(MLP((1, 4, 3), (4,), hidden=(4,))))


def text_vae(word_dropout, cell="gru"):
    sizes = {"symbols": 6, "embedding": 3, "hidden": 4, "cell": cell}
    decoder = RecurrentTextDecoder(MLP((2,), (4,)), (5,), word_dropout=word_dropout, **sizes)
    return VAE(StandardNormal(2), decoder, GaussianEncoder(TokenEncoderNet((5,), (4,), **sizes)))


@pytest.mark.parametrize(
    ("vae", "symbols", "shape"),
    [
        (image_vae, 2, (1, 4, 3)),
        (lambda: text_vae(0.0), 6, (5,)),
        (lambda: text_vae(0.4), 6, (5,)),
        (lambda: text_vae(0.4, "lstm"), 6, (5,)),
    ],
    ids=["PixelCNN", "text", "word dropout", "LSTM"],
)
def test_a_vae_of_it_trains_captured_as_in_python(vae, symbols, shape):
    side_by_side.check(vae(), torch.randint(symbols, (8, *shape)).float())


@pytest.mark.parametrize(
    "make",
    [
        lambda: PixelCNNDecoder(nn.Identity(), (4,)),
        lambda: PixelCNNDecoder(nn.Identity(), (1, 4, 4), levels=1),
        lambda: PixelCNNDecoder(nn.Identity(), (3, 4, 4), features=2),
        lambda: PixelCNNDecoder(nn.Identity(), (1, 4, 4), kernel=4),
        lambda: PixelCNNDecoder(nn.Identity(), (1, 4, 4), kernel=1),
        lambda: PixelCNNDecoder(nn.Identity(), (1, 4, 4), layers=0),
        lambda: RecurrentTextDecoder(nn.Identity(), (1, 4, 4)),
        lambda: RecurrentTextDecoder(nn.Identity(), (4,), symbols=0),
        lambda: RecurrentTextDecoder(nn.Identity(), (4,), cell="rnn"),
        lambda: RecurrentTextDecoder(nn.Identity(), (4,), word_dropout=1.1),
        lambda: RecurrentTextDecoder(nn.Identity(), (4,), word_dropout=math.nan),
    ],
)
def test_an_option_that_cannot_be_is_refused(make):
    with pytest.raises(InputError):
        make()

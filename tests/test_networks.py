"""Networks: shapes of every size, leading dimensions, smooth bounds, and each one by hand."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import side_by_side
import torch
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.decoders import GaussianDecoder
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.models import VAE
from pyrovae.networks import (
    MLP,
    Centred,
    ConvNet,
    DeconvNet,
    GatedMLP,
    Log1p,
    RecurrentDecoderNet,
    RecurrentEncoderNet,
    ResidualConvNet,
    ResidualDeconvNet,
    ResidualMLP,
    Scaled,
    TokenEncoderNet,
    smooth_clamp,
    smooth_floor,
)
from pyrovae.networks.layers import Conv2d, ConvTranspose2d, Linear
from pyrovae.networks.recurrent import begin_at, make_recurrent, recur
from pyrovae.priors import StandardNormal

SIDES = [(1, 1), (2, 3), (5, 7), (8, 8), (17, 23), (28, 20)]


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("strides", [(1,), (2, 2), (3, 1, 2)], ids=str)
def test_convolutions_down_and_up_meet_images_of_any_size(sides, strides):
    image, channels = (2, *sides), (3,) * len(strides)
    down = ConvNet(image, (5,), channels=channels, strides=strides, hidden=4)
    up = DeconvNet((5,), image, coarse=2, channels=channels, strides=strides)
    x = torch.randn(2, 3, *image)
    assert down(x).shape == (2, 3, 5)
    assert up(down(x)).shape == x.shape


def test_an_mlp_flattens_what_it_takes_and_shapes_what_it_gives():
    net = MLP((2, 3), (5, 7), hidden=())
    x = torch.randn(4, 2, 3)
    by_hand = x.reshape(4, 6) @ net.layers[0].weight.T + net.layers[0].bias
    torch.testing.assert_close(net(x), by_hand.reshape(4, 5, 7))


@pytest.mark.parametrize(
    ("net", "linear", "nonlinear"),
    [
        (MLP((3,), (2,), hidden=(5, 7), activation=nn.Tanh), 3, 2),
        (ConvNet((1, 4, 4), (2,), channels=(2, 3), strides=(1, 2), activation=nn.Tanh), 4, 3),
        (DeconvNet((3,), (1, 4, 4), channels=(2, 3), strides=(1, 2), activation=nn.Tanh), 4, 3),
    ],
)
def test_the_activation_stands_between_layers_and_not_at_the_end(net, linear, nonlinear):
    leaves = [module for module in net.modules() if not list(module.children())]
    assert not isinstance(leaves[-1], nn.Tanh)
    assert sum(isinstance(leaf, nn.Tanh) for leaf in leaves) == nonlinear
    assert len(leaves) == linear + nonlinear


def test_strides_and_channels_must_be_as_many():
    with pytest.raises(ValueError):
        ConvNet((1, 8, 8), (2,), channels=(2, 3), strides=(1,))
    with pytest.raises(ValueError):
        DeconvNet((2,), (1, 8, 8), channels=(2, 3), strides=(1,))


def test_an_image_may_be_a_view_that_is_not_contiguous():
    net = ConvNet((2, 5, 7), (3,), channels=(2,), strides=(2,))
    x = torch.randn(4, 5, 7, 2)
    torch.testing.assert_close(net(x.movedim(-1, 1)), net(x.movedim(-1, 1).contiguous()))


def test_a_pixel_moves_the_outputs_near_it_alone():
    net = DeconvNet((2,), (1, 9, 9), coarse=1, channels=(2,), strides=(2,))
    coarse = torch.zeros(1, *net.map_shape)
    coarse[0, 0, 0, 0] = 1.0
    moved = (net.convolutions(coarse) - net.convolutions(coarse * 0))[0, 0].abs() > 0
    assert moved[:4, :4].any()
    assert not moved[4:].any()
    assert not moved[:, 4:].any()


# ── Smooth bounds ────────────────────────────────────────────────────────────────────────────

FAR = torch.tensor([-1e30, -1e4, -88.0, -8.0, 0.0, 3.0, 88.0, 1e4, 1e30])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_clamp_keeps_anything_between_its_bounds(dtype):
    clamped = smooth_clamp(FAR.to(dtype), -7.0, 3.5)
    # The lower bound gives way by softplus(-10.5).
    assert (clamped >= -7.0 - 3e-5).all()
    assert (clamped <= 3.5).all()
    assert (clamped.diff() >= 0).all()


def test_the_clamp_is_nearly_the_identity_inside():
    values = torch.linspace(-3, 0, 20)
    torch.testing.assert_close(smooth_clamp(values, -7.0, 3.5), values, atol=0.05, rtol=0)


def test_the_clamp_is_steep_inside_and_still_slopes_outside():
    values = torch.linspace(-18.0, 14.0, 65, dtype=torch.float64, requires_grad=True)
    smooth_clamp(values, -7.0, 3.5).sum().backward()
    assert (values.grad > 0).all()
    assert (values.grad <= 1).all()
    assert values.grad[27:37].min() > 0.9


def test_the_floor_is_a_smooth_maximum():
    assert smooth_floor(torch.tensor(-1e4), -2.0) == -2.0
    assert smooth_floor(torch.tensor(50.0), -2.0) == 50.0
    assert smooth_floor(torch.tensor(-2.0), -2.0).item() == pytest.approx(-2 + 0.6931472)


# ── Dense networks ───────────────────────────────────────────────────────────────────────────


def test_a_gated_layer_is_a_product_of_a_linear_one_and_a_gate():
    net = GatedMLP((2, 3), (4,), hidden=(5,))
    x = torch.randn(7, 2, 3)
    (A, B), (a, b) = net.layers[0].weight.chunk(2), net.layers[0].bias.chunk(2)
    flat = x.flatten(1)
    hidden = (flat @ A.T + a) * torch.sigmoid(flat @ B.T + b)
    by_hand = hidden @ net.layers[2].weight.T + net.layers[2].bias
    torch.testing.assert_close(net(x), by_hand)


def test_gated_layers_pass_a_signal_on_before_they_are_trained():
    """Under torch's own first weights a thousandth of its square is left."""
    net, h = GatedMLP((200,), (1,), hidden=(200, 200, 200)), torch.randn(500, 200)
    for layer in net.layers[:-1]:
        h = layer(h)
    assert 0.1 < h.square().mean() < 1


def test_small_numbers_are_scaled_before_a_network():
    net, x = MLP((3,), (4,)), torch.randn(7, 3)
    torch.testing.assert_close(Scaled(net, factor=5.0)(x), net(5 * x))
    assert (Scaled(net, factor=5.0).in_shape, Scaled(net, factor=5.0).out_shape) == ((3,), (4,))


def test_a_residual_block_adds_to_what_it_takes():
    net = ResidualMLP((3,), (4,), hidden=5, blocks=2, activation=nn.Tanh)
    x = torch.randn(7, 3)
    h = net.enter(x)
    for branch in net.branches:
        h = h + branch[3](branch[1](h.tanh()).tanh())
    torch.testing.assert_close(net(x), net.read_out[1](h.tanh()))
    assert ResidualMLP((3,), (4,), blocks=0)(x).shape == (7, 4)


# ── Weights with batch dimensions ────────────────────────────────────────────────────────────

IMAGE, SERIES = (2, 4, 5), (4, 3)
SMALL = {"channels": (4,), "strides": (2,)}
NETS = {
    "MLP": lambda: MLP((3,), (2, 2), hidden=(5,)),
    "GatedMLP": lambda: GatedMLP((3,), (4,), hidden=(5, 2)),
    "ResidualMLP": lambda: ResidualMLP((3,), (4,), hidden=5, blocks=1),
    "ConvNet": lambda: ConvNet(IMAGE, (4,), channels=(3, 2), strides=(1, 2), hidden=4),
    "DeconvNet": lambda: DeconvNet((3,), IMAGE, coarse=3, channels=(4,)),
    "ResidualConvNet": lambda: ResidualConvNet(IMAGE, (4,), groups=2, **SMALL),
    "ResidualDeconvNet": lambda: ResidualDeconvNet((3,), IMAGE, groups=2, **SMALL),
    "weight norm": lambda: ResidualConvNet(IMAGE, (4,), groups=0, **SMALL),
    "weight norm, up": lambda: ResidualDeconvNet((3,), IMAGE, groups=0, **SMALL),
    "GRU": lambda: RecurrentEncoderNet(SERIES, (4,), hidden=5, bidirectional=True),
    "LSTM": lambda: RecurrentEncoderNet(SERIES, (4,), hidden=5, cell="lstm", bidirectional=True),
    "GRU, with ends": lambda: RecurrentEncoderNet(
        SERIES, (4,), hidden=5, bidirectional=True, missing=True
    ),
    "LSTM, with ends": lambda: RecurrentEncoderNet(
        SERIES, (4,), hidden=5, cell="lstm", missing=True
    ),
    "GRU, down": lambda: RecurrentDecoderNet((2,), SERIES, hidden=5),
    "LSTM, down": lambda: RecurrentDecoderNet((2,), (8, 3), hidden=5, cell="lstm", steps=4),
    "symbols": lambda: TokenEncoderNet((4,), (3,), symbols=6, embedding=3, hidden=5),
}
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def given_to(net, *batch_shape):
    if isinstance(net, TokenEncoderNet):
        return torch.randint(6, (*batch_shape, *net.in_shape))
    return torch.randn(*batch_shape, *net.in_shape)


@every_net
@pytest.mark.parametrize("shared_input", [True, False])
def test_weights_of_each_particle_act_as_in_a_loop(make, shared_input):
    # As the values of sites outside a plate of 6 examples, under 4 particles.
    net = make().double()
    weights = {k: torch.randn(4, 1, *v.shape, dtype=v.dtype) for k, v in net.named_parameters()}
    x = given_to(net, 6) if shared_input else given_to(net, 4, 6)
    x = x.double() if x.is_floating_point() else x
    found = torch.func.functional_call(net, weights, x)
    for k in range(4):
        alone = {name: weight[k, 0] for name, weight in weights.items()}
        expected = torch.func.functional_call(net, alone, x if shared_input else x[k])
        torch.testing.assert_close(found[k], expected)


@every_net
def test_one_particle_is_a_particle(make):
    net = make()
    x, weights = given_to(net, 6), {k: v[None, None] for k, v in net.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(net, weights, x), net(x)[None])


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(2, 3, 3, stride=2, padding=1),
        ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=(1, 0)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_convolution_may_be_each_examples_own_and_biases_alone_be_drawn(layer):
    x = torch.randn(6, 2, 4, 5)
    weight, bias = torch.randn(6, *layer.weight.shape), torch.randn(4, 1, 3)
    found = torch.func.functional_call(layer, {"weight": weight}, x)
    for row, one, out in zip(x, weight, found, strict=True):
        torch.testing.assert_close(torch.func.functional_call(layer, {"weight": one}, row), out)
    found = torch.func.functional_call(layer, {"bias": bias}, x)
    expected = layer(x) - layer.bias[:, None, None] + bias[..., None, None]
    torch.testing.assert_close(found, expected)


class Convolutions(TorchDispatchMode):
    """The number of groups of each convolution that is computed."""

    def __init__(self):
        super().__init__()
        self.groups = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.groups.append(args[-1])
        return func(*args, **(kwargs or {}))


def test_weights_are_not_repeated_for_the_examples_that_share_them():
    layer = Conv2d(2, 3, 3)
    weights = {k: torch.randn(4, 1, *v.shape) for k, v in layer.named_parameters()}
    for x in (torch.randn(4, 50, 2, 5, 5), torch.randn(50, 2, 5, 5)):
        with Convolutions() as found:
            torch.func.functional_call(layer, weights, x)
        assert found.groups in ([4], [1]), "a group for each particle, or none"


def test_weights_may_belong_to_each_example_and_biases_alone_be_drawn():
    layer, x = Linear(3, 2), torch.randn(6, 3)
    weight, bias = torch.randn(6, 2, 3), torch.randn(4, 1, 2)
    found = torch.func.functional_call(layer, {"weight": weight}, x)
    expected = torch.stack([row @ one.T for row, one in zip(x, weight, strict=True)]) + layer.bias
    torch.testing.assert_close(found, expected)
    found = torch.func.functional_call(layer, {"bias": bias}, x)
    torch.testing.assert_close(found, x @ layer.weight.T + bias)


@every_net
def test_a_network_with_a_prior_over_its_weights_takes_vectorized_particles(make):
    net = make()
    to_pyro_module_(net)
    for module in list(net.modules()):
        for name, value in list(module.named_parameters(recurse=False)):
            prior = dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim())
            setattr(module, name, PyroSample(prior))
    x, y = given_to(net, 6), torch.randn(6, *net.out_shape)

    def model(x, y):
        loc = net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, 1.0).to_event(len(net.out_shape)), obs=y)

    particles = pyro.plate("particles", 5, dim=-2)
    trace = pyro.poutine.trace(particles(model)).get_trace(x, y)
    together = trace.nodes["y"]["fn"].log_prob(y)
    assert together.shape == (5, 6)
    drawn = {n: s["value"] for n, s in trace.nodes.items() if s["type"] == "sample" and n != "y"}
    drawn = {n: value[3, 0] for n, value in drawn.items() if n not in ("data", "particles")}
    alone = pyro.poutine.trace(pyro.condition(model, drawn)).get_trace(x, y)
    torch.testing.assert_close(alone.nodes["y"]["fn"].log_prob(y), together[3])


# ── Residual convolutional networks ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("groups", [2, 0])
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_residual_networks_down_and_up_meet_images_of_any_size(sides, groups):
    image = (3, *sides)
    options = {"channels": (4, 6), "strides": (3, 2), "groups": groups}
    down = ResidualConvNet(image, (5,), **options)
    up = ResidualDeconvNet((5,), image, **options)
    x = torch.randn(2, 3, *image)
    assert down(x).shape == (2, 3, 5)
    assert up(down(x)).shape == x.shape


@pytest.mark.parametrize("groups", [2, 0])
def test_a_residual_stage_is_its_convolution_and_its_blocks(groups):
    net = ResidualConvNet((1, 5, 7), (3,), channels=(4,), strides=(2,), groups=groups)
    x = torch.randn(2, 1, 5, 7)
    (conv, block, norm, _), silu = net.convolutions, nn.functional.silu
    first, _, a, second, _, b = block.branch
    h = conv(x)
    h = h + b(silu(second(a(silu(first(h))))))
    torch.testing.assert_close(net(x), net.read_out(silu(norm(h)).flatten(1)))
    assert isinstance(norm, nn.GroupNorm) == bool(groups)
    if not groups:
        g, v = (getattr(a.parametrizations.weight, f"original{i}") for i in range(2))
        norms = v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        torch.testing.assert_close(a.weight, g * v / norms)


def test_weight_normalisation_survives_copies_and_state_dicts():
    options = {"channels": (4,), "strides": (1,), "groups": 0}
    net, x = ResidualConvNet((1, 4, 4), (3,), **options), torch.randn(2, 1, 4, 4)
    other = ResidualConvNet((1, 4, 4), (3,), **options)
    other.load_state_dict(net.state_dict())
    for again in (other, copy.deepcopy(net), copy.copy(net)):
        torch.testing.assert_close(again(x), net(x))

    deep = copy.deepcopy(net)
    for parameter in deep.parameters():
        nn.init.normal_(parameter)
    assert not torch.allclose(deep(x), net(x))
    torch.testing.assert_close(other(x), net(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResidualMLP((2,), (2,), blocks=-1),
        lambda: ResidualConvNet((1, 4, 4), (2,), blocks=-1),
        lambda: ResidualConvNet((1, 4, 4), (2,), groups=-1),
        lambda: ResidualConvNet((1, 4, 4), (2,), channels=(6,), strides=(1,), groups=4),
        lambda: ResidualDeconvNet((2,), (1, 4, 4), channels=(6,), strides=(1,), groups=4),
    ],
)
def test_an_option_that_cannot_be_is_refused(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLP(5, (2,)), r"in_shape is 5, and not a tuple\. Give \(5,\)\.$"),
        (lambda: MLP((5,), 2), r"out_shape is 2"),
        (lambda: MLP((5,), (2,), hidden=400), r"hidden is 400"),
        (lambda: MLP((5,), (2,), hidden=(4, 0)), r"hidden is \(4, 0\)\. .*1 or more"),
        (lambda: GatedMLP((5,), 2), r"out_shape is 2"),
        (lambda: GatedMLP((5,), (2,), hidden=(-3,)), r"hidden is \(-3,\)"),
        (lambda: ResidualMLP(5, (2,)), r"in_shape is 5"),
        (lambda: ResidualMLP((5,), (2,), hidden=0), r"hidden is 0\. .*at least 1"),
        (lambda: ResidualMLP((5,), (2,), hidden=2.5), r"hidden is 2\.5\. Give a whole"),
        (lambda: ConvNet((1, 8, 8), (2,), hidden=0), r"hidden is 0"),
        (
            lambda: ConvNet((1, 8, 8), (2,), channels=(0, 2), strides=(1, 1)),
            r"channels is \(0, 2\)",
        ),
        (lambda: DeconvNet((2,), (1, 8, 8), coarse=0), r"coarse is 0"),
        (lambda: RecurrentEncoderNet((5, 3), (2,), hidden=0), r"hidden is 0"),
        (lambda: RecurrentDecoderNet((2,), (5, 3), hidden=-1), r"hidden is -1"),
        (lambda: TokenEncoderNet((5,), (2,), embedding=0), r"embedding is 0"),
        (lambda: TokenEncoderNet((5,), (2,), symbols=0), r"symbols is 0"),
        (lambda: ConvNet((1, 8, 8), (2,), channels=(2, 3)), r"strides are .*channels \(2, 3\)"),
        (lambda: ConvNet((1, 8, 8), (2,), channels=(2,), strides=(0,)), r"strides is \(0,\)"),
        (lambda: ConvNet((1, 8, 8), (2,), channels=8), r"channels is 8"),
        (lambda: DeconvNet((2,), (1, 8, 8), channels=(2, 3)), r"strides are \(2,\)"),
        (lambda: ResidualConvNet((1, 8, 8), (2,), channels=(8,)), r"strides are"),
        (lambda: ResidualDeconvNet((2,), (1, 8, 8), strides=(1,)), r"strides are \(1,\)"),
        (lambda: ConvNet((5,), (2,)), r"in_shape is \(5,\), and .* \(C, H, W\).*MLP"),
        (lambda: DeconvNet((2,), (5,)), r"out_shape is \(5,\), and .* \(C, H, W\)"),
        (lambda: ResidualConvNet((5,), (2,)), r"in_shape is \(5,\)"),
        (lambda: ResidualDeconvNet((2,), (5,)), r"out_shape is \(5,\)"),
        (lambda: RecurrentEncoderNet((5,), (2,)), r"in_shape is \(5,\), and .* \(T, F\)"),
        (lambda: RecurrentDecoderNet((2,), (5,)), r"out_shape is \(5,\), and .* \(T, F\)"),
        (lambda: TokenEncoderNet((5, 3), (2,)), r"in_shape is \(5, 3\), and .* \(T\)"),
        (lambda: Centred(MLP((5,), (2,)), levels=1), r"levels is 1\..*at least 2"),
    ],
)
def test_sizes_that_a_network_cannot_have_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


# ── Recurrent networks ───────────────────────────────────────────────────────────────────────


def step_by_step(recurrent, x, suffix=""):
    """The states (N, T, H) of one direction, by torch's cell."""
    hidden, is_gru = recurrent.hidden_size, isinstance(recurrent, nn.GRU)
    cell = (nn.GRUCell if is_gru else nn.LSTMCell)(recurrent.input_size, hidden, dtype=x.dtype)
    weights = {
        name: getattr(recurrent, f"{name}_l0{suffix}") for name, _ in cell.named_parameters()
    }
    zeros, states = x.new_zeros(len(x), hidden), []
    state = zeros if is_gru else (zeros, zeros)
    for fed in x.unbind(1):
        state = torch.func.functional_call(cell, weights, (fed, state))
        states.append(state if is_gru else state[0])
    return torch.stack(states, 1)


every_cell = pytest.mark.parametrize("cell", ["gru", "lstm"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@every_cell
def test_a_recurrent_encoder_reads_out_the_end(cell, bidirectional, dtype):
    options = {"hidden": 4, "cell": cell, "bidirectional": bidirectional}
    net = RecurrentEncoderNet((5, 3), (2,), **options).to(dtype)
    x = torch.randn(6, 5, 3, dtype=dtype)
    ends = step_by_step(net.recurrent, x)[:, -1]
    if bidirectional:
        ends = torch.cat([ends, step_by_step(net.recurrent, x.flip(1), "_reverse")[:, -1]], -1)
    torch.testing.assert_close(net(x), net.read_out(ends))


LENGTHS = [5, 3, 1, 4]


def padded(x, lengths):
    """Sequences with NaN after their ends, and numbers missing before, one of a last step."""
    x = x.clone()
    x[0, 1, 2] = x[1, 2, 0] = torch.nan
    for row, length in zip(x, lengths, strict=True):
        row[length:] = torch.nan
    return x


@pytest.mark.parametrize("bidirectional", [False, True])
@every_cell
def test_what_comes_after_the_end_of_a_sequence_is_not_read(cell, bidirectional):
    """As with torch's packed sequences, their gradients, and with each sequence by itself."""
    options = {"hidden": 4, "cell": cell, "bidirectional": bidirectional}
    net = RecurrentEncoderNet((5, 3), (2,), missing=True, **options).double()
    x = padded(torch.randn(4, 5, 3, dtype=torch.float64), LENGTHS)
    found = net(x)
    for row, length, out in zip(x, LENGTHS, found, strict=True):
        torch.testing.assert_close(out, net(row[:length]))
        torch.testing.assert_close(out, net(row[None])[0])

    packed = nn.utils.rnn.pack_padded_sequence(
        torch.cat([x.nan_to_num(), (~x.isnan()).double()], -1),
        torch.tensor(LENGTHS),
        batch_first=True,
        enforce_sorted=False,
    )
    _, state = net.recurrent(packed)
    h = state[0] if cell == "lstm" else state
    expected = net.read_out(torch.cat(list(h), -1))
    torch.testing.assert_close(found, expected)
    weights = list(net.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), weights),
        torch.autograd.grad(expected.square().sum(), weights),
    )


@every_cell
def test_a_sequence_of_which_nothing_was_observed_is_read_as_none(cell):
    net = RecurrentEncoderNet((5, 3), (2,), hidden=4, cell=cell, bidirectional=True, missing=True)
    x = torch.full((2, 5, 3), torch.nan)
    x[1] = 0.5
    torch.testing.assert_close(net(x)[0], net.read_out(torch.zeros(8)))
    net(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_cell
def test_a_recurrent_decoder_is_fed_z_at_every_step(cell, dtype):
    net = RecurrentDecoderNet((2,), (5, 3), hidden=4, cell=cell).to(dtype)
    z = torch.randn(6, 2, dtype=dtype)
    states = step_by_step(net.recurrent, z[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(net(z), net.read_out(states))


@pytest.mark.parametrize("bidirectional", [False, True])
@every_cell
def test_states_and_gradients_are_those_of_torch(cell, bidirectional):
    layer = make_recurrent(cell, 3, 4, bidirectional=bidirectional).double()
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    found, left = recur(layer, x)
    states, ends = layer(x.flatten(0, 1))
    ends = (ends,) if cell == "gru" else ends
    torch.testing.assert_close(found.flatten(0, 1), states)
    for own, theirs in zip(left, ends, strict=True):
        torch.testing.assert_close(own.flatten(0, 1), theirs.transpose(0, 1).flatten(1))

    inputs = [x, *layer.parameters()]
    weights = torch.randn_like(states)
    ours = torch.autograd.grad((found.flatten(0, 1) * weights).sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad((states * weights).sum(), inputs))


@every_cell
def test_a_sequence_is_read_in_two_parts_as_in_one(cell):
    layer, x, start = make_recurrent(cell, 3, 4), torch.randn(6, 5, 3), torch.randn(6, 4)
    states, left = recur(layer, x, begin_at(layer, start))
    first, state = recur(layer, x[:, :2], begin_at(layer, start))
    rest, end = recur(layer, x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), states)
    torch.testing.assert_close(end, left)
    assert not torch.allclose(recur(layer, x)[0], states)


def test_numbers_of_one_kind_lie_side_by_side():
    net = RecurrentDecoderNet((2,), (10, 3), hidden=4, steps=5)
    z = torch.randn(6, 2)
    states = step_by_step(net.recurrent, z[:, None].expand(-1, 5, -1))
    loc, scale = net(z).chunk(2, -2)
    torch.testing.assert_close(torch.cat([loc, scale], -1), net.read_out(states))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RecurrentEncoderNet((5, 3), (2,), cell="GRU"),
        lambda: RecurrentDecoderNet((2,), (5, 3), cell="rnn"),
        lambda: RecurrentDecoderNet((2,), (5, 3), steps=2),
        lambda: RecurrentDecoderNet((2,), (5, 3), steps=0),
        lambda: TokenEncoderNet((5,), (2,), cell=""),
    ],
)
def test_a_cell_or_a_length_that_cannot_be_is_refused(make):
    with pytest.raises(InputError):
        make()


def test_an_encoder_of_symbols_reads_their_embeddings():
    net = TokenEncoderNet((4,), (2,), symbols=5, embedding=3, hidden=6)
    x = torch.randint(5, (7, 4))
    torch.testing.assert_close(net(x), net.net(net.embed.weight[x]))
    torch.testing.assert_close(net(x.float()), net(x))
    assert net(x + 100).isfinite().all(), "the likelihood refuses what is no symbol"


# ── In a VAE ─────────────────────────────────────────────────────────────────────────────────


def residual_convolutions(groups):
    options = {"channels": (4,), "strides": (2,), "groups": groups}
    down = ResidualConvNet(IMAGE, (4,), **options)
    return down, ResidualDeconvNet((2,), IMAGE, **options)


def recurrent(cell, **options):
    encoding = RecurrentEncoderNet(
        SERIES, (4,), hidden=3, cell=cell, bidirectional=True, **options
    )
    return encoding, RecurrentDecoderNet((2,), SERIES, hidden=3, cell=cell)


@pytest.mark.parametrize(
    ("nets", "shape", "engine"),
    [
        (
            lambda: (GatedMLP((5,), (4,), hidden=(3,)), ResidualMLP((2,), (5,), hidden=3)),
            (5,),
            "graph",
        ),
        (lambda: residual_convolutions(2), IMAGE, "graph"),
        (lambda: residual_convolutions(0), IMAGE, "graph"),
        (lambda: recurrent("gru"), SERIES, "graph"),
        (lambda: recurrent("lstm"), SERIES, "graph"),
        (lambda: recurrent("lstm"), SERIES, "inductor"),
        (lambda: recurrent("gru", missing=True), SERIES, "graph"),
        (lambda: recurrent("gru", missing=True), SERIES, "inductor"),
    ],
    ids=[
        "dense",
        "group norm",
        "weight norm",
        "GRU",
        "LSTM",
        "LSTM compiled",
        "GRU with ends",
        "GRU with ends compiled",
    ],
)
def test_a_vae_of_them_trains_captured_as_in_python(nets, shape, engine):
    encoding, decoding = nets()
    vae = VAE(StandardNormal(2), GaussianDecoder(decoding), GaussianEncoder(encoding))
    side_by_side.check(vae, torch.randn(8, *shape), engine)


def test_counts_are_read_by_their_logarithms_and_learned_inputs_on_both_sides_of_zero():
    net = MLP((5,), (5,), hidden=())
    with torch.no_grad():
        weight, bias = net.parameters()
        weight.copy_(torch.eye(5))
        bias.zero_()
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 4.0], requires_grad=True)
    read = Log1p(net)(x)
    logs = torch.tensor([-4.0, -2.0, 1.0, 2.0, 5.0]).abs().log()
    torch.testing.assert_close(read, logs * torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]))
    (slope,) = torch.autograd.grad(read.sum(), x)
    torch.testing.assert_close(slope, 1 / (1 + x.abs()))


def test_sizes_may_be_numbers_of_numpy():
    eight = np.int64(8)
    assert MLP((eight,), torch.Size([3]), hidden=[eight])(torch.zeros(2, 8)).shape == (2, 3)
    assert RecurrentEncoderNet((5, 2), (4,), hidden=eight)(torch.zeros(2, 5, 2)).shape == (2, 4)
    assert ResidualMLP((5,), (4,), hidden=eight, blocks=np.int8(1))(torch.zeros(5)).shape == (4,)

"""Networks: shapes of every size, leading dimensions, and smooth bounds."""

import pytest
import torch
from torch import nn

from pyrovae.networks import MLP, ConvNet, DeconvNet, smooth_clamp, smooth_floor

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

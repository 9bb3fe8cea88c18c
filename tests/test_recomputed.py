"""Functions that are gone through again for their gradients."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pyrovae.distributions.recomputed import in_blocks
from pyrovae.errors import InputError

X = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(7, 3)
WEIGHTS = torch.linspace(-2, 3, 7, dtype=torch.float64)


class Score:
    """A function that reads parameters, and what was made of them outside of it."""

    def __init__(self):
        self.net = nn.Linear(3, 4).double()
        self.log_scale = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(()))
        self.calls = 0
        self.start()

    def start(self):
        self.scale = self.log_scale.exp()

    def __call__(self, x):
        self.calls += 1
        found = self.net(x).tanh() / self.scale
        return (found.square() - self.log_scale).sum(-1) + x.mT.mT.sum(-1)

    @property
    def inputs(self):
        return [*self.net.parameters(), self.log_scale, self.unused]


class MadeAnew(Score):
    """Reads another tensor at each call, which no operation made: it cannot be told apart."""

    def __call__(self, x):
        with torch._C.DisableTorchFunction():
            self.start()
        return super().__call__(x)


class Hidden(Score):
    """Reads parameters where no Python sees it."""

    def __init__(self):
        super().__init__()
        self.traced = torch.jit.trace(self.net, X)

    def __call__(self, x):
        self.calls += 1
        return self.traced(x).tanh().sum(-1)


def gradients(found, score, x):
    inputs = [*score.inputs, x]
    return torch.autograd.grad((WEIGHTS * found).sum(), inputs, allow_unused=True)


@pytest.mark.parametrize("make", [Score, MadeAnew, Hidden])
@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_values_and_gradients_are_those_of_the_function(make):
    torch.manual_seed(0)
    score, x = make(), X.clone().requires_grad_()
    expected = score(x)
    of_all = gradients(expected, score, x)
    score.start()
    found = torch.cat(in_blocks(score, x.split(2)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for a, b in zip(gradients(found, score, x), of_all, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13) if b is not None else None
        assert (a is None) == (b is None)


def test_nothing_of_a_block_is_kept():
    score, x, made = Score(), X.clone().requires_grad_(), []

    class Keeping(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                made.append(weakref.ref(found))
            return found

    with Keeping():
        found = in_blocks(score, x.split(2))
    gc.collect()
    alive = [ref() for ref in made if ref() is not None]
    # The blocks, their results, and nothing of what was made in between.
    assert len(made) > 20
    assert len(alive) <= 2 * len(found)


def test_without_gradients_a_function_is_gone_through_once():
    score = Score()
    with torch.no_grad():
        in_blocks(score, X.split(2))
    assert score.calls == 4


def test_networks_under_autocast_are_so_again():
    score, x = Score(), X.float()
    score.net.float()
    score.log_scale.data = score.log_scale.data.float()
    score.start()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = score(x)
        found = torch.cat(in_blocks(score, x.split(2)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    weights = [score.net.weight, score.log_scale]
    weighted = WEIGHTS.float()
    (of_all, _), (a, _) = (
        torch.autograd.grad((weighted * y).sum(), weights, retain_graph=True)
        for y in (expected, found)
    )
    # In another precision they would differ by bfloat16's 1 %, and in blocks they add up
    # in another order.
    torch.testing.assert_close(a, of_all, rtol=4e-3, atol=4e-3)


def test_gradients_of_gradients_are_refused():
    score, x = Score(), X.clone().requires_grad_()
    found = torch.cat(in_blocks(score, x.split(2)))
    with pytest.raises(InputError, match="fewer values"):
        torch.autograd.grad(found.sum(), [x], create_graph=True)

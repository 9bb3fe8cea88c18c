"""Capture and compilation of functions: what is read by reference, and the order of draws."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyrovae.capture import CaptureError, capture, compile_graph

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def normal(*shape):
    return torch.empty(*shape).normal_()


def into_a_part():
    whole = torch.zeros(4)
    whole[1:].normal_()
    return whole


def gamma(x):
    return torch._standard_gamma(1 + x.square())


# Functions that draw several times, with no order among the draws but that of the program.
DRAWS = {
    "two normals": lambda x: [x + normal(4), x * normal(4, 3).sum()],
    "small before large": lambda x: [normal(4).sum() * x, normal(()) + x, normal(100).sum() - x],
    "uniforms": lambda x: [(torch.rand(4) < 0.5) * x, torch.rand_like(x), torch.randn(4) * x],
    "Bernoulli": lambda x: [torch.bernoulli(x.sigmoid()), normal(4), torch.bernoulli(x.sigmoid())],
    "dropout between": lambda x: [normal(4), F.dropout(x, 0.5), normal(4) + x, F.dropout(x, 0.3)],
    "gamma first": lambda x: [gamma(x), normal(4), torch.rand(4), gamma(x), torch.randn_like(x)],
    "integers": lambda x: [torch.randint(0, 9, (4,)) + x, torch.randperm(4) * x, normal(4)],
    "integers after gamma": lambda x: [gamma(x), torch.poisson(x.exp()), normal(4) * x],
    "a transposed like": lambda x: [torch.rand_like(x.expand(3, 4).t().contiguous().t()) + x],
    "into a part": lambda x: [into_a_part() + x, normal(4)],
    "multinomial": lambda x: [torch.multinomial(x.exp(), 2, True) + x.sum(), normal(4)],
}


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DRAWS)
def test_compiled_draws_are_those_of_the_program(name, dtype):
    function, x = DRAWS[name], torch.linspace(-1, 1, 4, dtype=dtype)
    torch.set_default_dtype(dtype)
    try:
        run = compile_graph(capture(function, [x]), [x])
        for seed in range(3):
            torch.manual_seed(seed)
            expected = function(x)
            after = torch.get_rng_state()
            torch.manual_seed(seed)
            for a, b in zip(run(x), expected, strict=True):
                torch.testing.assert_close(a, b)
            assert torch.equal(torch.get_rng_state(), after)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_what_is_closed_over_is_read_at_every_call(compiled):
    small, number, buffer = nn.Parameter(torch.ones(3)), torch.tensor(2.0), torch.zeros(3)

    def function(x):
        buffer.add_(1)
        return [x * small * number + torch.tensor(0.5)]

    graph = capture(function, [torch.ones(3)])
    run = compile_graph(graph, [torch.ones(3)]) if compiled else graph
    buffer.zero_()
    with torch.no_grad():
        assert run(torch.ones(3))[0].tolist() == [2.5] * 3
        small.mul_(2)
        number.fill_(10)
        assert run(torch.ones(3))[0].tolist() == [20.5] * 3
    assert buffer.tolist() == [2.0] * 3


def test_what_no_result_depends_on_is_not_done_but_for_draws():
    """On a GPU the rows that Pyro counts of a plate would be a tensor on the CPU."""
    dropped, x = torch.ones(3), torch.ones(4)

    def function(x):
        (dropped * torch.arange(3)).sum()
        normal(2)
        return [x + normal(4)]

    graph = capture(function, [x])
    assert graph.closed_over == []
    assert not graph.module.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.default)
    torch.manual_seed(0)
    expected = function(x)[0]
    torch.manual_seed(0)
    assert torch.equal(graph(x)[0], expected)


def test_a_value_that_is_asked_for_cannot_be_captured():
    for function in (
        lambda x: [x * x.sum().item()],
        lambda x: [x if x.sum() > 0 else -x],
        lambda x: [x * float(x[0])],
    ):
        with pytest.raises(CaptureError, match="value of a tensor"):
            capture(function, [torch.ones(3)])


def test_a_capture_changes_no_noise_after_it():
    x = torch.ones(4)
    graph = capture(DRAWS["two normals"], [x])
    torch.manual_seed(0)
    if shutil.which("g++"):
        compile_graph(graph, [x])
    assert torch.equal(
        normal(4), torch.empty(4).normal_(generator=torch.Generator().manual_seed(0))
    )

"""Recorded steps are those of the graph, on a stand-in for CUDA's recorder and on a GPU."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_for_tests import binary, same, small_vae, weights
from pyro.infer import SVI, Trace_ELBO
from recorder import Tape, stand_in
from torch import nn

import pyrovae
from pyrovae import CompiledSVI, recording
from pyrovae.capture import CaptureError, capture
from pyrovae.recording import Recording
from pyrovae.svi import Stepper, stepper
from pyrovae.svi.estimators import estimate_with
from pyrovae.svi.faithfulness import Difference

X = binary(64)


@pytest.fixture
def recorder(monkeypatch):
    stand_in(monkeypatch)


def train(make, steps=10, x=X, between=lambda vae: None):
    """The losses of some steps, and the weights after them."""
    pyro.clear_param_store()
    vae = small_vae().to(x.device)
    svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        losses.append(svi.step(x))
        between(vae)
    return list(map(float, losses)), weights(vae), svi


def recorded(*args, **kwargs):
    return CompiledSVI(*args, engine="cuda-graph", **kwargs)


def as_graph(*args, **kwargs):
    return CompiledSVI(*args, engine="graph", **kwargs)


# ── A recording ──


def test_a_replay_takes_its_inputs_and_what_it_closes_over_as_they_are(recorder):
    weight = torch.ones(3)
    graph = capture(lambda x: [(x * weight).sum(), torch.randn(3)], [torch.ones(3)])
    run = Recording(graph, [torch.ones(3)])
    with torch.no_grad():
        weight.mul_(2)
    torch.manual_seed(0)
    total, noise = run(torch.full((3,), 5.0))
    torch.manual_seed(0)
    assert total == 30
    assert torch.equal(noise, torch.randn(3))


def test_what_a_run_is_given_is_not_written_to(recorder):
    graph = capture(lambda x: [x.mul(1).add_(1)], [torch.ones(3)])
    given = torch.zeros(3)
    run = Recording(graph, [given])
    run(torch.full((3,), 7.0))
    assert torch.equal(given, torch.zeros(3))


def test_an_input_keeps_its_order_in_memory(recorder):
    x = torch.arange(6.0).reshape(2, 3).t()
    graph = capture(lambda x: [x.as_strided((6,), (1,))], [x])
    assert torch.equal(Recording(graph, [x])(x)[0], torch.arange(6.0))


def test_parameters_that_move_are_read_where_they_are(recorder):
    def move(vae):
        parameters = list(vae.parameters())
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters), parameters)

    found, expected = (train(make, between=move) for make in (recorded, SVI))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[2].engines == ["cuda-graph"]


OWN = torch.Generator()
CASES = {
    "lie on a GPU": (lambda x: [x + 1], torch.ones(3), "meta"),
    "share their memory": (lambda x: [x + 1], torch.ones(1).expand(3), "cpu"),
    # By torch 2.11 it is not even captured.
    "(?i)generator": (lambda x: [x + torch.rand(3, generator=OWN)], torch.ones(3), "cpu"),
    "processes share": (
        lambda x: [(x + 1, pyrovae.shared_noise.exchange())[0]],
        torch.ones(3),
        "cpu",
    ),
    "not while recording": (lambda x: [torch.cholesky_inverse(x)], torch.eye(3), "cpu"),
}


@pytest.mark.parametrize("says", CASES)
def test_what_a_recording_would_not_see_is_refused(says, monkeypatch, recorder):
    function, x, place = CASES[says]
    monkeypatch.setattr(recording, "PLACE", place)

    def refuse(self, func, types, args=(), kwargs=None):
        raise RuntimeError("not while recording\nand more")

    if says == "not while recording":
        monkeypatch.setattr(Tape, "__torch_dispatch__", refuse)
    with pytest.raises(CaptureError, match=says):
        Recording(capture(function, [x]), [x])


# ── Steps ──


def test_steps_are_those_of_the_graph_to_the_bit(recorder):
    (found, ours, svi), (expected, theirs, _) = train(recorded), train(as_graph)
    assert svi.engines == ["cuda-graph"]
    assert found == expected
    assert same(ours, theirs)


def test_a_result_is_not_written_to_by_the_next_step(recorder):
    vae = small_vae()
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.1)
    step = Stepper(
        estimate_with(Trace_ELBO(), vae.model, vae.guide),
        optimizer,
        owners=[vae],
        engine="cuda-graph",
    )
    first = step(X)
    kept = [number.item() for number in first]
    second = step(X)
    assert step.engines == ["cuda-graph"]
    assert [number.item() for number in first] == kept != [number.item() for number in second]


def test_recording_leaves_no_trace(recorder):
    """In buffers that the first runs change, nor in the noise."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    svi = recorded(*_normalised(norm), pyro.optim.SGD({"lr": 0.0}), Trace_ELBO())
    svi.step(X)
    assert int(norm.num_batches_tracked) == 1
    ours = torch.rand(3)

    pyro.clear_param_store()  # or the parameters would be those of the first module
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    svi = as_graph(*_normalised(norm), pyro.optim.SGD({"lr": 0.0}), Trace_ELBO())
    svi.step(X)
    assert torch.equal(torch.rand(3), ours)


def _normalised(norm):
    def model(x):
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(norm(x) + z, 1.0).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(6))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


def test_the_gradient_of_a_step_is_not_that_of_a_check_after_it(recorder, monkeypatch):
    """At a kink the next noise is asked, which runs the recording once more."""
    expected = train(recorded)[1]
    differ, asked = stepper.difference, []

    def at_a_kink(*args):
        asked.append(args)
        return Difference("a gradient", may_be_a_kink=True) if len(asked) == 3 else differ(*args)

    monkeypatch.setattr(stepper, "difference", at_a_kink)
    found = train(recorded)
    assert len(asked) == 5  # four steps, and once more
    assert found[2].engines == ["cuda-graph"]
    assert same(found[1], expected)


def test_where_there_is_no_gpu_the_graph_is_run_as_it_is():
    with pytest.warns(UserWarning, match=r"cannot be recorded.*does not lie on a GPU\.$"):
        losses, _, svi = train(recorded)
    assert svi.engines == ["graph"]
    assert losses == train(as_graph)[0]


# ── On a GPU ──


@pytest.mark.usefixtures("gpu")
def test_a_gpu_replays_the_steps_of_the_graph():
    found = {make: train(make, x=X.cuda()) for make in (recorded, as_graph, SVI)}
    assert found[recorded][2].engines == ["cuda-graph"]
    assert found[recorded][0] == found[as_graph][0]
    assert found[recorded][0] == pytest.approx(found[SVI][0], rel=1e-4)
    assert same(found[recorded][1], found[as_graph][1])


@pytest.mark.gpu
@pytest.mark.on_a_real_gpu
def test_auto_finds_a_recording_the_fastest_for_a_small_step():
    svi = train(lambda *args: CompiledSVI(*args, engine="auto"), x=X.cuda())[2]
    assert svi.engines == ["cuda-graph"]

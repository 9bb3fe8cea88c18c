"""CompiledSVI does what `pyro.infer.SVI` does, where a graph might easily do something else."""

import copy
import math
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_coupling
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoIAFNormal
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from pyrovae.capture import Graph
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.svi import CompiledSVI
from pyrovae.svi import compiled as compiled_module

X = torch.linspace(-1, 3, 30).reshape(10, 3)


@pytest.fixture(autouse=True)
def _anew():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def compiled(model, guide, optimizer, loss, engine="graph"):
    return CompiledSVI(model, guide, optimizer, loss, engine=engine)


def steps(make, model, calls, *, optimizer=None, loss=None, guide=None, before=None):
    """The losses of one, and what is in the store after all."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optimizer = optimizer or pyro.optim.Adam({"lr": 0.1})
    svi = make(model, guide or (lambda *args: None), optimizer, loss or Trace_ELBO())
    losses = []
    for number, arguments in enumerate(calls):
        if before is not None:
            before(number)
        losses.append(float(svi.step(*arguments)))
    return losses, {name: value.clone() for name, value in pyro.get_param_store().items()}


def assert_alike(model, calls, **told):
    expected, found = (steps(make, model, calls, **told) for make in (SVI, compiled))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1])


def normal(loc):
    def model(*args):
        x = args[-1]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc(*args), 1.0).to_event(1), obs=x)

    return model


# ── What is trained ──


def test_the_momentum_of_a_parameter_that_is_not_used_goes_on():
    """As in semi-supervised training, where calls of two kinds take turns."""

    def loc(used, x):
        a, b = pyro.param("a", torch.zeros(3)), pyro.param("b", torch.zeros(3))
        return a + b if used else a

    for order in ("TFFTF", "FFTFT"):
        assert_alike(normal(loc), [(letter == "T", X) for letter in order])
    sgd = pyro.optim.SGD({"lr": 0.1, "momentum": 0.9})
    assert_alike(normal(loc), [(letter == "T", X) for letter in "TFTFF"], optimizer=sgd)


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("scheduled", [True, False])
def test_the_rate_of_a_parameter_that_is_used_later_has_decayed(engine, scheduled):
    """As in training by stages, in the first of which some networks are at rest."""

    def loc(used, x):
        a, b = pyro.param("a", torch.zeros(3)), pyro.param("b", torch.zeros(3))
        return a + b if used else a

    found = []
    for make in (SVI, partial(compiled, engine=engine)):
        if scheduled:
            told = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5}
            optimizer = pyro.optim.ExponentialLR(told)
        else:
            optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.5, "weight_decay": 0.1})

        def decay(number, optimizer=optimizer):
            if scheduled and number:
                optimizer.step()

        calls = [(number >= 3, X) for number in range(6)]
        found.append(steps(make, normal(loc), calls, optimizer=optimizer, before=decay))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_calls_that_train_nothing_take_turns_with_others():
    """As the auxiliary loss of a semi-supervised VAE does, for batches without labels."""

    def model(x, y=None):
        loc = pyro.param("loc", torch.zeros(3))
        if y is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="it trains nothing"):
        assert_alike(model, [(X,), (X, X), (X,), (X,), (X, X)])


def test_an_optimizer_of_torch_leaves_what_has_no_gradient():
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.zeros(3)) for _ in range(2))

        def model(self, used, x):
            normal(lambda *_: self.a + self.b if used else self.a)(x)

        def guide(self, used, x):
            pass

    program = Program()
    svi = compiled(
        program.model, program.guide, torch.optim.Adam(program.parameters(), lr=0.1), Trace_ELBO()
    )
    svi.step(True, X)
    before = program.b.clone()
    svi.step(False, X)
    assert torch.equal(program.b, before)


def test_a_parameter_without_an_entry_is_trained_with_the_others():
    assert_alike(
        normal(lambda x: pyro.param("a", torch.zeros(3)) + pyro.param("b", torch.zeros(0)).sum()),
        [(X,)] * 4,
    )


@pytest.mark.parametrize("alone", [True, False])
def test_parameters_in_a_reentrant_checkpoint_are_not_left_untrained(alone):
    """`autograd.grad` has no gradient for them, and would say nothing."""
    found = {}
    for make, reentrant in ((SVI, True), (CompiledSVI, True), (CompiledSVI, False)):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

        def model(x):
            loc = torch.zeros(3) if alone else pyro.param("loc", torch.zeros(3))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x, net=net, reentrant=reentrant):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                given = x.clone().requires_grad_()
                loc = checkpoint(net, given, use_reentrant=reentrant)
                pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

        svi = make(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        if make is CompiledSVI and reentrant:
            with pytest.raises(InputError, match="use_reentrant=False"):
                svi.step(torch.ones(5, 3))
            continue
        losses = []
        for seed in range(5):
            torch.manual_seed(seed)
            losses.append(float(svi.step(torch.ones(5, 3))))
        found[make] = losses
    assert found[CompiledSVI] == pytest.approx(found[SVI], rel=1e-5)


@pytest.mark.parametrize("make_optimizer", [pyro.optim.SparseAdam, pyro.optim.SGD])
def test_sparse_gradients_are_run_in_python(make_optimizer):
    def model(rows):
        net = pyro.module("net", embedding)
        with pyro.plate("data", len(rows)):
            pyro.sample("x", dist.Normal(net(rows), 1.0).to_event(1), obs=torch.ones(4, 3))

    rows = torch.tensor([0, 1, 1, 2])
    found = []
    for make in (SVI, compiled):
        torch.manual_seed(0)
        embedding = nn.Embedding(5, 3, sparse=True)
        told = {"optimizer": make_optimizer({"lr": 0.1})}
        if make is compiled:
            with pytest.warns(UserWarning, match="a gradient is sparse"):
                found.append(steps(make, model, [(rows,)] * 4, **told)[0])
        else:
            found.append(steps(make, model, [(rows,)] * 4, **told)[0])
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("make_optimizer", [pyro.optim.Adam, pyro.optim.SGD])
def test_complex_parameters_are_trained(make_optimizer):
    def loc(x):
        return torch.fft.irfft(pyro.param("a", torch.ones(2, dtype=torch.complex64)), n=3)

    assert_alike(normal(loc), [(X,)] * 5, optimizer=make_optimizer({"lr": 0.01}))


def test_an_optimizer_that_goes_by_rows_is_given_those_of_the_step():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            loc = pyro.param("loc", torch.zeros(10, 3), event_dim=1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[rows])

    def optimizer(aware):
        return pyro.optim.DCTAdam({"lr": 0.1, "subsample_aware": aware})

    assert_alike(model, [(X,)] * 7, optimizer=optimizer(False))
    with pytest.warns(UserWarning, match="goes by the rows that a plate draws"):
        assert_alike(model, [(X,)] * 7, optimizer=optimizer(True))


# ── What keys a graph ──


def test_two_arguments_may_be_one_tensor_and_then_two():
    calls = [(X, X), (X, X), (X, X + 1), (X + 2, X), (X, X)]
    assert_alike(normal(lambda x, y: pyro.param("a", torch.zeros(3)) * x), calls)


def test_an_argument_may_be_what_the_program_reads_besides():
    data = X.clone()
    model = normal(lambda x: pyro.param("a", torch.zeros(3)) + data.mean(0))
    assert_alike(model, [(data,), (data,), (data + 1,), (data + 2,)])


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_flow_that_keeps_what_it_has_inverted_is_trained(engine):
    flow = affine_coupling(3, hidden_dims=[4])

    def model(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=x)

    start = copy.deepcopy(flow.state_dict())
    found = []
    for make in (SVI, partial(compiled, engine=engine)):
        flow.load_state_dict(start)
        found.append(steps(make, model, [(X + number,) for number in range(5)]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_an_argument_that_is_a_parameter_is_trained():
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def model(self, weight, x):
            normal(lambda x: weight)(x)

        def guide(self, weight, x):
            pass

    program = Program()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    svi = compiled(program.model, program.guide, optimizer, Trace_ELBO())
    svi.step(program.weight, X)
    assert svi.engines == ["graph"]
    torch.testing.assert_close(program.weight.detach(), 0.1 * X.sum(0))


def test_a_submodule_that_is_replaced_is_run():
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 3)

        def model(self, x):
            normal(self.net)(x)

        def guide(self, x):
            pass

    losses = []
    for engine in ("eager", "graph"):
        torch.manual_seed(0)
        program = Program()
        sgd = pyro.optim.SGD({"lr": 0.01})
        svi = compiled(program.model, program.guide, sgd, Trace_ELBO(), engine)
        losses.append([])
        for step in range(7):
            if step == 4:
                program.net = nn.Linear(3, 3)
            losses[-1].append(float(svi.step(X)))
    assert losses[0] == pytest.approx(losses[1])


def test_a_blocked_parameter_that_is_set_anew_is_seen():
    model = poutine.block(
        normal(lambda x: pyro.param("a", torch.zeros(3)) + pyro.param("b", torch.zeros(3))),
        hide=["b"],
    )

    def set_anew(number):
        if number == 4:
            pyro.get_param_store()["b"] = torch.full((3,), 5.0)

    assert_alike(model, [(X,)] * 7, before=set_anew)


def test_a_handler_round_a_step_counts():
    model = normal(lambda x: pyro.param("a", torch.zeros(3)))
    found = []
    for make in (SVI, compiled):
        pyro.clear_param_store()
        svi = make(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = [float(svi.step(X)) for _ in range(5)]
        with poutine.scale(scale=10.0):
            if make is compiled:
                with pytest.warns(UserWarning, match="handler of Pyro's round a step"):
                    losses.append(float(svi.step(X)))
            else:
                losses.append(float(svi.step(X)))
        found.append([*losses, float(svi.step(X))])
    assert found[0] == pytest.approx(found[1])


def test_a_hook_on_a_parameter_is_called():
    model = normal(lambda x: pyro.param("a", torch.zeros(3)))
    found = []
    for make in (SVI, compiled):
        pyro.clear_param_store()
        svi = make(model, lambda x: None, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
        svi.step(X)
        parameter = pyro.get_param_store()._params["a"]
        before = parameter.clone()
        parameter.register_hook(torch.zeros_like)
        if make is compiled:
            with pytest.warns(UserWarning, match="'a' has a hook"):
                svi.step(X)
        svi.step(X)
        torch.testing.assert_close(parameter, before)
        found.append(before)
    torch.testing.assert_close(*found)


# ── What leaves no trace ──


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.filterwarnings("ignore:A graph does not see that the parameter")
def test_a_hook_on_a_parameter_is_called_once_a_step(engine):
    """As scripts note the norms of gradients."""
    model = normal(lambda x: pyro.param("a", torch.zeros(3)))
    found = []
    for make in (SVI, partial(compiled, engine=engine)):
        pyro.clear_param_store()
        svi = make(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        svi.evaluate_loss(X)
        norms = []
        parameter = pyro.get_param_store()._params["a"]
        parameter.register_hook(lambda gradient, norms=norms: norms.append(float(gradient.norm())))
        for _ in range(3):
            svi.step(X)
        found.append(norms)
    assert found[1] == pytest.approx(found[0])


@pytest.mark.filterwarnings("error")
def test_who_asks_for_python_is_not_told_what_a_graph_does_not_see():
    model = normal(lambda x: pyro.param("a", torch.zeros(3)) + random.random())
    steps(partial(compiled, engine="eager"), model, [(X,)])


def test_attributes_that_a_script_gives_its_tensors_are_there():
    def noted(number):
        x = X + number
        x.scale = 0.5
        return x

    model = normal(lambda x: pyro.param("a", torch.zeros(3)) * x.scale)
    calls = [(noted(number),) for number in range(3)]
    expected, found = (steps(m, model, calls) for m in (SVI, partial(compiled, engine="eager")))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)


class Standardizing(nn.Module):
    """A module that sets a parameter and a buffer to what it first sees, and notes that it has."""

    def __init__(self, replaces):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))
        self.register_buffer("std", torch.ones(3))
        self.replaces, self.is_set = replaces, False

    def forward(self, x):
        if not self.is_set:
            with torch.no_grad():
                self.mean.copy_(x.mean(0))
                if self.replaces:
                    self.std = x.std(0)
                else:
                    self.std.copy_(x.std(0))
            self.is_set = True
        return self.mean + self.std


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("replaces", [True, False])
@pytest.mark.filterwarnings("error")
def test_what_a_module_sets_at_its_first_call_is_set(engine, replaces):
    """As a normalisation does that starts from its first batch."""
    found, nets = [], []
    for make in (SVI, partial(compiled, engine=engine)):
        net = Standardizing(replaces)
        model = normal(lambda x, net=net: pyro.module("net", net)(x))
        found.append(steps(make, model, [(X + number,) for number in range(3)]))
        nets.append(net)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict())


class Noted(nn.Module):
    """A module that is run by another method than its call, and counts."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(3))

    def encode(self, x):
        self.mean.lerp_(x.mean(0), 0.5)
        return self.weight + self.mean


def test_buffers_of_a_module_that_is_never_called_are_changed_once_a_step():
    found = []
    for make in (SVI, compiled):
        net = Noted()

        def model(x, net=net):
            pyro.module("net", net)
            normal(net.encode)(x)

        found.append((steps(make, model, [(X,)] * 5)[0], net.mean.clone()))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_a_plain_tensor_that_a_program_writes_to_is_written_once_a_step():
    counts = []
    for make in (SVI, compiled):
        count = torch.zeros(2, 3)

        def loc(x, count=count):
            count[0].add_(1.0)
            count[:, 1].add_(count[0, 1])
            return pyro.param("a", torch.zeros(3)) + 0.1 * count[0]

        steps(make, normal(loc), [(X,)] * 5)
        counts.append(count)
    torch.testing.assert_close(*counts)


def test_such_a_tensor_is_as_it_was_after_a_step_that_failed():
    count = torch.zeros(())

    def loc(x):
        count.add_(1.0)
        return pyro.param("a", torch.zeros(3)) + 0 * count

    svi = compiled(normal(loc), lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(X)
    with pytest.raises(NonFiniteError):
        svi.step(X * math.inf)
    assert count == 1


@pytest.mark.parametrize("draw", [np.random.standard_normal, random.random])
def test_noise_of_numpy_and_python_is_drawn_once_a_step(draw):
    model = normal(lambda x: pyro.param("a", torch.zeros(3)) + draw())

    def losses(make):
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        return steps(make, model, [(X,)] * 6)[0]

    expected = losses(SVI)
    with pytest.warns(UserWarning, match="noise is drawn by NumPy or by Python"):
        assert losses(compiled) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:The program cannot be captured")  # by some versions of torch
def test_noise_of_a_generator_of_ones_own_is_drawn_once_a_step():
    found = []
    for make in (SVI, compiled):
        own = torch.Generator().manual_seed(0)
        model = normal(
            lambda x, own=own: pyro.param("a", torch.zeros(3)) + torch.randn(3, generator=own)
        )
        found.append(steps(make, model, [(X,)] * 6)[0])
    assert found[0] == pytest.approx(found[1])


def test_an_argument_that_is_changed_in_place_is_changed_once_a_step():
    def loc(x):
        x.add_(1.0)
        return pyro.param("a", torch.zeros(3))

    found = []
    for make in (SVI, compiled):
        x = X.clone()
        if make is compiled:
            with pytest.warns(UserWarning, match="an argument is changed in place"):
                found.append((steps(make, normal(loc), [(x,)] * 4)[0], x))
        else:
            found.append((steps(make, normal(loc), [(x,)] * 4)[0], x))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_a_parameter_that_bad_data_have_made_is_not_kept():
    model = normal(lambda x: pyro.param("a", lambda: x.mean(0)))
    svi = compiled(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(NonFiniteError, match="step 0: The parameter 'a' was not finite"):
        svi.step(X * math.nan)
    assert "a" not in pyro.get_param_store()
    svi.step(X)
    assert "a" in pyro.get_param_store()


# ── Losses ──


@pytest.mark.parametrize(
    ("jitted", "plain"),
    [
        (JitTrace_ELBO, Trace_ELBO),
        (JitTraceMeanField_ELBO, TraceMeanField_ELBO),
        (JitTraceEnum_ELBO, TraceEnum_ELBO),
    ],
)
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_loss_that_compiles_itself_is_the_one_that_it_compiles(jitted, plain, engine):
    @config_enumerate
    def model(x):
        p = pyro.param("p", torch.tensor([0.2, 0.8]))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = loc
            if plain is TraceEnum_ELBO:
                mean = loc + 3.0 * pyro.sample("c", dist.Categorical(logits=p))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, 0])
        return p

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.zeros(())), 0.5))

    def losses(loss):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = compiled(model, guide, pyro.optim.SGD({"lr": 0.01}), loss, engine)
        return [float(svi.step(X)) for _ in range(4)]

    told = {"max_plate_nesting": 1, "num_particles": 2}
    assert losses(jitted(**told)) == losses(plain(**told))


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_distribution_that_goes_on_validating_does_not_speak_for_the_guard(engine):
    likelihood = dist.Normal(torch.zeros(()), 1.0).expand([10, 3]).to_event(1)

    def model(x):
        a = pyro.param("a", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood, obs=x + a)

    svi = compiled(model, lambda x: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO(), engine)
    svi.step(X)
    with pytest.raises(NonFiniteError, match="In step 1: The log-probability of site 'x'"):
        svi.step(X * math.nan)


def test_a_graph_that_fails_where_the_program_does_not_is_left(monkeypatch):
    model = normal(lambda x: pyro.param("a", torch.zeros(3)) + torch.randn(3))
    expected = steps(SVI, model, [(X,)] * 3)

    def fail(graph, *inputs):
        torch.randn(3)  # it had drawn some noise
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Graph, "__call__", fail)
    with pytest.warns(UserWarning, match="run in Python from here on: no such kernel"):
        found = steps(compiled, model, [(X,)] * 3)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    timed = steps(partial(CompiledSVI, engine="auto"), model, [(X,)] * 3)
    assert timed[0] == pytest.approx(expected[0], rel=1e-5)


def test_an_lstm_of_torch_is_captured():
    """Its kernel of oneDNN has no gradient where gradients are off, as they are for a graph."""
    net = nn.LSTM(3, 3, batch_first=True)
    start = copy.deepcopy(net.state_dict())
    made = []

    def make(*args):
        net.load_state_dict(start)
        made.append((SVI, compiled)[len(made)](*args))
        return made[-1]

    model = normal(lambda x: pyro.module("net", net)(x[:, None])[0].squeeze(1))
    expected, found = (steps(make, model, [(X,)] * 3) for _ in range(2))
    assert made[1].engines == ["graph"]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1])


def test_large_gradients_are_finite():
    model = normal(lambda x: 1e12 * pyro.param("a", torch.zeros(3)))

    def scaled(x):
        with poutine.scale(scale=1e9):
            model(x)

    assert_alike(scaled, [(X,)] * 3)


def test_a_guide_that_makes_its_network_as_it_runs_is_captured():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        normal(lambda x: z)(x)

    guide = AutoIAFNormal(model, hidden_dim=[8])
    svi = compiled(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(4):
        svi.step(X)
    assert svi.engines == ["graph"]


# ── The interface ──


@pytest.mark.parametrize("name", ["model", "guide", "optim", "loss"])
def test_what_it_was_made_with_stays(name):
    svi = compiled(
        normal(lambda x: pyro.param("a", torch.zeros(3))),
        lambda x: None,
        pyro.optim.Adam({"lr": 0.1}),
        Trace_ELBO(),
    )
    with pytest.raises(AttributeError):
        setattr(svi, name, getattr(svi, name))


@pytest.mark.parametrize("elbo", [True, False])
def test_its_loss_is_a_function_as_that_of_svi(elbo):
    """As scripts call it to choose among initial values."""
    loss = Trace_ELBO() if elbo else Trace_ELBO().differentiable_loss
    model = normal(lambda x: pyro.param("a", torch.zeros(3)))
    found = []
    for make in (SVI, compiled):
        svi = make(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), loss)
        with torch.no_grad():
            found.append(float(svi.loss(svi.model, svi.guide, X)))
    assert found[0] == found[1]


def test_losses_that_are_kept_stay_what_they_were_and_share_their_memory(monkeypatch):
    monkeypatch.setattr(compiled_module._Slots, "SIZE", 3)
    model = normal(lambda x: pyro.param("a", torch.zeros(3)))
    expected = steps(SVI, model, [(X,)] * 7)[0]
    pyro.clear_param_store()
    svi = compiled(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    kept = [svi.step(X) for _ in range(7)]
    assert [float(loss) for loss in kept] == pytest.approx(expected, rel=1e-5)
    assert len({loss.untyped_storage().data_ptr() for loss in kept}) == 3
    assert not any(loss.requires_grad for loss in kept)


def test_a_step_without_gradients_says_so():
    svi = compiled(
        normal(lambda x: pyro.param("a", torch.zeros(3))),
        lambda x: None,
        pyro.optim.Adam({"lr": 0.1}),
        Trace_ELBO(),
    )
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        svi.step(X)


# ── What a script does to its optimizer and its loss ──


def moving(*args):
    return pyro.param("a", torch.zeros(3))


def _start_anew(optimizer):
    optimizer.pt_optim_args["lr"] = 1e-3
    optimizer.optim_objs.clear()


def _replace_all(optimizer):
    optimizer.pt_optim_args["lr"] = 1e-3
    optimizer.optim_objs = {}


def _clip(optimizer):
    optimizer.grad_clip = {p: _halve for p in optimizer.optim_objs}


def _halve(parameter):
    parameter.grad.mul_(torch.tensor([0.5, 1.0, 2.0]))


def _hook_before(optimizer):
    def scale(own, args, kwargs):
        own.param_groups[0]["params"][0].grad.mul_(torch.tensor([1e-3, 1.0, -1.0]))

    for own in optimizer.optim_objs.values():
        own.register_step_pre_hook(scale)


def _wrap_step(optimizer):
    for own in optimizer.optim_objs.values():
        own.step = lambda closure=None: None


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize(
    "change",
    [_start_anew, _replace_all, _clip, _hook_before, _wrap_step],
    ids=lambda f: f.__name__,
)
def test_what_a_script_does_to_an_optimizer_in_the_middle_holds(change, engine):
    found = []
    for make in (SVI, partial(compiled, engine=engine)):
        optimizer = pyro.optim.Adam({"lr": 0.1})

        def before(number, optimizer=optimizer):
            if number == 5:
                change(optimizer)

        found.append(steps(make, normal(moving), [(X,)] * 9, optimizer=optimizer, before=before))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1])


class Halved(Trace_ELBO):
    """An estimator that takes its gradient in a way of its own."""

    def loss_and_grads(self, model, guide, *args, **kwargs):
        return super().loss_and_grads(model, guide, *args, **kwargs) / 2


class Tempered(Trace_ELBO):
    """One whose differentiable loss is its own."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return super().differentiable_loss(model, guide, *args, **kwargs) / 2

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


@pytest.mark.filterwarnings("ignore:The program cannot be captured")
def test_an_estimator_that_trains_in_its_own_way_is_refused_and_a_tensor_of_its_own_is_taken():
    replaced = Trace_ELBO()
    replaced.loss_and_grads = Halved().loss_and_grads
    for loss in (Halved(), replaced):
        with pytest.raises(InputError, match=r"takes its gradient by itself.*differentiable_loss"):
            compiled(normal(moving), lambda x: None, pyro.optim.SGD({"lr": 0.1}), loss)
    assert_alike(normal(moving), [(X,)] * 4, loss=Tempered())


def test_a_loss_that_is_for_evaluation_alone_is_what_evaluate_loss_calls():
    class Marked(Trace_ELBO):
        def loss(self, model, guide, *args, **kwargs):
            return 7.0

    svi = compiled(normal(moving), lambda x: None, pyro.optim.SGD({"lr": 0.1}), Marked())
    assert float(svi.evaluate_loss(X)) == 7.0
    assert float(svi.step(X)) != 7.0


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_arguments_may_have_any_name(engine):
    model = normal(moving)
    svi = compiled(
        lambda x, method, loss: model(x),
        lambda x, method, loss: None,
        pyro.optim.SGD({"lr": 0.1}),
        Trace_ELBO(),
        engine,
    )
    svi.step(X, method="a", loss=2.0)
    svi.evaluate_loss(X, method="a", loss=2.0)


# ── What a script changes, wherever the program reads it ──


class Scaled:
    """A program of a class of a user's, whose scale has its default there."""

    scale = 1.0

    def model(self, x):
        with poutine.scale(scale=self.scale), pyro.plate("data", len(x)):
            loc = pyro.param("a", torch.zeros(3))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def __call__(self, x):
        self.model(x)


class ScaledModule(Scaled, nn.Module):
    """The same as a module, which may have no such attribute either."""

    def model(self, x):
        with poutine.scale(scale=getattr(self, "weight", 1.0) * self.scale):
            normal(moving)(x)

    def forward(self, x):
        self.model(x)

    def __call__(self, x):
        self.model(x)


def _by_scale(thing):
    thing.scale = np.float32(5.0)


def _by_class(thing):
    type(thing).scale = 5.0


def _by_name(thing):
    thing.weight = 5.0


@pytest.mark.parametrize("change", [_by_scale, _by_class, _by_name], ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda thing: thing.model,
        lambda thing: poutine.scale(thing.model, 0.5),
        lambda thing: config_enumerate(thing.model),
        lambda thing: partial(thing.model),
        lambda thing: lambda x: thing.model(x),
        lambda thing: thing,
    ],
    ids=["method", "handler", "decorator", "partial", "closure", "object"],
)
@pytest.mark.parametrize("kind", [Scaled, ScaledModule])
def test_what_a_script_gives_a_program_between_comparisons_is_seen(kind, wrap, change):
    if kind is Scaled and change is _by_name:
        pytest.skip("it has no such name")
    found = []
    for make in (SVI, compiled):
        own = type("Own", (kind,), {})
        thing = own()

        def before(number, thing=thing):
            if number == 10:
                change(thing)

        found.append(steps(make, wrap(thing), [(X,)] * 15, before=before))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1])


WEIGHT = 1.0
NET = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Dropout(0.5))


def test_a_number_and_a_mode_that_a_model_reads_by_name_are_seen(monkeypatch):
    def model(x):
        with poutine.scale(scale=WEIGHT * local):
            # A method of its own, and none that a hook of torch's is called at.
            kept = torch.nn.functional.dropout(x, 0.5, training=NET.training)
            normal(lambda x: pyro.param("a", torch.zeros(3)) + kept)(x)

    found = []
    for make in (SVI, compiled):
        local = 1.0
        NET.train()
        monkeypatch.setitem(globals(), "WEIGHT", 1.0)

        def before(number):
            nonlocal local
            if number == 5:
                local = 3.0
            if number == 10:
                monkeypatch.setitem(globals(), "WEIGHT", 7.0)
            if number == 13:
                NET.eval()

        found.append(steps(make, model, [(X,)] * 15, before=before))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_a_layer_that_is_pruned_in_the_middle_is_seen():
    found = []
    for make in (SVI, compiled):
        torch.manual_seed(0)
        layer = nn.Linear(3, 3, bias=False)

        def before(number, layer=layer):
            if number == 10:
                prune.l1_unstructured(layer, "weight", amount=4)

        def model(x, layer=layer):
            pyro.module("layer", layer)
            normal(lambda x: layer(x.flip(-1)))(x)

        found.append(steps(make, model, [(X,)] * 15, before=before)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_autocast_round_a_step_is_seen():
    def model(x):
        weight = pyro.param("w", torch.full((3, 3), 0.3))
        normal(lambda x: (x @ weight).float() + torch.zeros(()))(x)

    found = []
    for make in (SVI, compiled):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = []
        for number in range(30):
            with torch.autocast("cpu", torch.bfloat16, enabled=9 < number < 20):
                losses.append(float(svi.step(X)))
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nest")
@pytest.mark.filterwarnings("ignore:The program cannot be", "ignore:An argument that is no tensor")
@pytest.mark.parametrize(
    "turn", [torch.Tensor.to_sparse_csr, lambda x: torch.nested.nested_tensor([x])]
)
def test_arguments_without_strides_are_taken(engine, turn):
    def model(x):
        normal(moving)(x.to_dense() if x.layout is torch.sparse_csr else x.unbind()[0])

    for make in (SVI, partial(compiled, engine=engine)):
        losses = steps(make, model, [(turn(X),)] * 3)[0]
        assert losses[2] < losses[0]


def test_a_module_whose_buffers_are_still_to_be_made_is_taken():
    found = []
    for make in (SVI, compiled):
        norm = nn.LazyBatchNorm1d(affine=False)

        def model(x, norm=norm):
            normal(lambda x: pyro.param("a", torch.zeros(3)) + norm(x))(x)

        found.append(steps(make, model, [(X,)] * 4)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_parameter_that_is_given_another_size_is_seen():
    found = []
    for make in (SVI, compiled):
        pyro.clear_param_store()
        layer = nn.Embedding(3, 1)
        nn.init.zeros_(layer.weight)

        def model(x, layer=layer):
            pyro.module("layer", layer)
            normal(lambda x: layer.weight.sum() * torch.ones(3))(x)

        svi = make(model, lambda x: None, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO())
        losses = [float(svi.step(X)) for _ in range(3)]
        layer.weight.data = torch.zeros(5, 1)
        layer.weight.grad = None
        found.append([*losses, *(float(svi.step(X)) for _ in range(3))])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_tensor_with_a_gradient_that_nobody_trains_is_named_once(engine):
    """A script may train it by an optimizer of its own, from what `.grad` would be."""
    layer = nn.Linear(3, 3, bias=False)
    model = normal(lambda x: pyro.param("a", torch.zeros(3)) + layer(x))
    with pytest.warns(UserWarning, match=r"shape \(3, 3\) has a gradient.*pyro.module") as found:
        steps(partial(compiled, engine=engine), model, [(X,)] * 3)
    assert len(found) == 1


@pytest.mark.filterwarnings("error")
def test_what_is_named_or_hidden_or_detached_is_none_of_these():
    layer = nn.Linear(3, 3, bias=False)

    def model(x):
        with poutine.block():
            pyro.module("layer", layer)
        normal(lambda x: pyro.param("a", torch.zeros(3)) + layer(x))(x)

    assert_alike(model, [(X,)] * 3)
    assert_alike(normal(lambda x: pyro.param("b", torch.zeros(3)) + layer(x).detach()), [(X,)] * 3)


def test_noise_that_a_program_winds_back_by_itself_is_found_at_once():
    def guide(x):
        with torch.random.fork_rng(), pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.zeros(3)), 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    expected = steps(SVI, model, [(X,)] * 4, guide=guide)[0]
    with pytest.warns(UserWarning, match="At step 1 .* the noise that is left for the next step"):
        found = steps(compiled, model, [(X,)] * 4, guide=guide)[0]
    assert found == pytest.approx(expected, rel=1e-5)

"""CompiledSVI against Pyro's own SVI, program by program and back end by back end."""

import copy
import gc
import math
import shutil
import weakref
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from program_table import binary, entry
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import nn

import pyrovae
from pyrovae import CompiledSVI
from pyrovae import capture as capture_module
from pyrovae.bounds import ELBO, FreeBits, TotalCorrelation
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.svi import Stepper
from pyrovae.svi import backends as backends_module
from pyrovae.svi import estimators as svi_module
from pyrovae.svi import faithfulness as faithfulness_module
from pyrovae.svi import guard as guard_module
from pyrovae.svi import planner as planner_module
from pyrovae.svi import sentinel as sentinel_module

COMPILED = pytest.param(
    "inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
)
COMPILED_OR_GRAPH = pytest.mark.parametrize("back_end", ["graph", COMPILED])


def engine(name):
    return partial(CompiledSVI, engine=name)


# ── In place of SVI ──


def linear_program():
    """A program with small parameters, a constraint, and a plate."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.full((3,), 0.1))
        # Used the other way round, so that its gradient lies otherwise than itself.
        weight = pyro.param("weight", torch.linspace(-0.2, 0.3, 12).reshape(3, 4)).t()[:3]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x + x @ weight, 0.7).to_event(1))

    return model, guide


X = torch.linspace(-1, 3, 30).reshape(10, 3)
OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05, "betas": (0.8, 0.95)}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.3}),
    "AMSGrad": lambda: pyro.optim.Adam({"lr": 0.05, "amsgrad": True, "weight_decay": 0.1}),
    "decoupled": lambda: pyro.optim.Adam(
        {"lr": 0.05, "decoupled_weight_decay": True, "weight_decay": 0.3}
    ),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.001}),
    "momentum": lambda: pyro.optim.SGD({"lr": 0.001, "momentum": 0.9, "nesterov": True}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam(
        {"lr": 0.05, "clip_norm": 0.5, "lrd": 0.9, "weight_decay": 0.1, "eps": 1e-2}
    ),
    "centred ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "centered_variance": True}),
    "per parameter": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "loc" else 0.01}),
    "clipped gradients": lambda: pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 0.1}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "scheduled": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8}
    ),
}


def train(make, optimizer, steps=12):
    """The losses, the store and the optimizer's state after some steps."""
    pyro.clear_param_store()
    svi = make(*linear_program(), optimizer, Trace_ELBO())
    losses = []
    for step in range(steps):
        pyro.set_rng_seed(step)
        losses.append(float(svi.step(X)))
        if hasattr(optimizer, "step"):
            optimizer.step()
    named = pyro.get_param_store().named_parameters()
    if make is not SVI:
        assert all(parameter.grad is None for _, parameter in named)
    store = {name: value.detach().clone() for name, value in named}
    return losses, store, optimizer.get_state()


def assert_close(found, expected, path=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_close(found[key], value, f"{path}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{path}/{index}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=path)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5), path
    else:
        assert found == expected, path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_does_what_it_does_under_svi(name):
    losses, store, state = train(SVI, OPTIMIZERS[name]())
    found = train(engine("graph"), OPTIMIZERS[name]())
    assert found[0] == pytest.approx(losses, rel=1e-5)
    assert_close(found[1], store)
    assert_close(found[2], state)


@pytest.mark.parametrize("name", ["Adam", "ClippedAdam", "momentum", "scheduled"])
def test_the_state_of_an_optimizer_can_be_carried_over(name):
    # Half of the steps by SVI, then a new process: the state loaded into a new optimizer.
    def in_two_halves(make):
        pyro.clear_param_store()
        program, optimizer = linear_program(), OPTIMIZERS[name]()
        for half in range(2):
            svi = make(*program, optimizer, Trace_ELBO())
            for step in range(4):
                pyro.set_rng_seed(4 * half + step)
                svi.step(X)
            state, optimizer = optimizer.get_state(), OPTIMIZERS[name]()
            optimizer.set_state(state)
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    assert_close(in_two_halves(engine("graph")), in_two_halves(SVI))


@COMPILED_OR_GRAPH
def test_small_parameters_and_schedules_are_read_at_every_step(back_end):
    # A compiler that took a 0-dimensional tensor for a number would train against its first value.
    weight = torch.tensor(0.0)
    model, guide = linear_program()
    weighted = [pyrovae.kl_weight(weight)(f) for f in (model, guide)]
    losses = []
    for make in (SVI, engine(back_end)):
        pyro.clear_param_store()
        svi, found = make(*weighted, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()), []
        for step in range(6):
            weight.fill_(step / 3)
            pyro.set_rng_seed(step)
            found.append(float(svi.step(X)))
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(set(losses[0])) == 6


def test_losses_are_numbers_to_those_who_keep_them():
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="graph"
    )
    losses = [svi.step(X) for _ in range(3)]
    assert len({float(loss) for loss in losses}) == 3
    assert not any(loss.requires_grad for loss in losses)
    assert f"{losses[0]:.3f}" == f"{float(losses[0]):.3f}"
    assert losses[0] > losses[2]
    assert sum(losses) / 3 < losses[0]


def test_evaluating_the_loss_is_no_step():
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="graph"
    )
    svi.step(X)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    pyro.set_rng_seed(0)
    ours = svi.evaluate_loss(X)
    pyro.set_rng_seed(0)
    stock = SVI(svi.model, svi.guide, svi.optim, Trace_ELBO()).evaluate_loss(X)
    assert float(ours) == pytest.approx(stock)
    assert not ours.requires_grad
    assert_close(dict(pyro.get_param_store().items()), before)


def test_a_torch_optimizer_and_its_scheduler(recwarn):
    torch.manual_seed(0)
    program = entry("hierarchical").guide.__self__
    twin = entry("hierarchical").guide.__self__
    twin.load_state_dict(program.state_dict())
    x = entry("hierarchical").args[0]
    ours = torch.optim.Adam(program.parameters(), lr=0.1)
    theirs = torch.optim.Adam(twin.parameters(), lr=0.1)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, theirs)]
    svi = CompiledSVI(program.model, program.guide, ours, Trace_ELBO(), engine="graph")
    for step in range(5):
        torch.manual_seed(step)
        svi.step(x)
        torch.manual_seed(step)
        theirs.zero_grad()
        Trace_ELBO().differentiable_loss(twin.model, twin.guide, x).backward()
        theirs.step()
        for scheduler in schedulers:
            scheduler.step()
    assert_close(dict(program.named_parameters()), dict(twin.named_parameters()))
    assert_close(ours.state_dict()["state"], theirs.state_dict()["state"])
    assert not recwarn.list


def test_a_state_loaded_into_a_torch_optimizer_is_the_one_that_moves(recwarn):
    def trained(make):
        module = entry("hierarchical").guide.__self__
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        step = make(module, optimizer)
        step()
        saved = copy.deepcopy(optimizer.state_dict())
        step()
        optimizer.load_state_dict(saved)
        # A scheduler that has not seen the optimizer step warns.
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        step()
        scheduler.step()
        return dict(module.named_parameters()), optimizer.state_dict()["state"]

    x = entry("hierarchical").args[0]

    def ours(module, optimizer):
        svi = CompiledSVI(module.model, module.guide, optimizer, Trace_ELBO(), engine="graph")

        def step():
            torch.manual_seed(0)
            svi.step(x)

        return step

    def theirs(module, optimizer):
        def step():
            torch.manual_seed(0)
            optimizer.zero_grad()
            Trace_ELBO().differentiable_loss(module.model, module.guide, x).backward()
            optimizer.step()

        return step

    found, expected = trained(ours), trained(theirs)
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])
    assert not recwarn.list


def test_a_loss_that_is_a_parameter_is_reported_as_it_was():
    svi = CompiledSVI(
        lambda: None,
        lambda: None,
        pyro.optim.SGD({"lr": 1.0}),
        lambda model, guide: pyro.param("a", torch.tensor(5.0)),
        engine="graph",
    )
    assert [float(loss) for loss in [svi.step(), svi.step()]] == [5.0, 4.0]


def test_an_optimizer_of_another_kind_is_refused():
    with pytest.raises(InputError, match="optimizer"):
        CompiledSVI(*linear_program(), lambda parameters: None, Trace_ELBO())
    with pytest.raises(InputError, match="engine"):
        CompiledSVI(*linear_program(), pyro.optim.SGD({"lr": 1}), Trace_ELBO(), engine="fast")
    with pytest.raises(InputError, match="TraceGraph_ELBO"):
        CompiledSVI(*linear_program(), pyro.optim.SGD({"lr": 1}), TraceGraph_ELBO())


def test_a_loss_may_be_a_function():
    def loss(model, guide, x):
        return Trace_ELBO().differentiable_loss(model, guide, x) * 2

    doubled = train(
        lambda m, g, o, _: CompiledSVI(m, g, o, loss, engine="eager"), OPTIMIZERS["SGD"]()
    )
    plain = train(SVI, OPTIMIZERS["SGD"]())
    assert doubled[0][0] == pytest.approx(2 * plain[0][0])


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_a_loss_may_have_the_shape_of_a_single_number(back_end):
    def loss(model, guide, *args):
        latents = poutine.trace(guide).get_trace(*args)
        found = poutine.trace(poutine.replay(model, trace=latents)).get_trace(*args)
        return (latents.log_prob_sum() - found.log_prob_sum()).reshape(1, 1)

    svi = CompiledSVI(*linear_program(), pyro.optim.Adam({"lr": 0.1}), loss, engine=back_end)
    assert svi.step(X).shape == ()
    assert svi.engines == [back_end]


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda x: (x, x), "a tuple"),
        (lambda _: 1.0, "a float"),
        (lambda x: x.expand(3), r"shape \(3,\)"),
    ],
)
def test_a_loss_that_is_no_number_is_refused(returned, told):
    def loss(model, guide, *args):
        return returned(Trace_ELBO().differentiable_loss(model, guide, *args))

    svi = CompiledSVI(*linear_program(), pyro.optim.Adam({"lr": 0.1}), loss)
    with pytest.raises(InputError, match=f"The loss is .*{told}.*and not one number"):
        svi.step(X)


# ── What is trained ──


def test_the_store_is_the_users():
    pyro.param("another", torch.ones(2))
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="graph"
    )
    svi.step(X)
    kept = pyro.get_param_store()
    assert sorted(kept.keys()) == ["another", "loc", "scale", "slope", "weight"]
    assert torch.equal(kept["another"], torch.ones(2))


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_a_store_that_is_cleared_is_trained_anew(back_end):
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=back_end
    )
    for _ in range(3):
        svi.step(X)
        pyro.clear_param_store()
        svi.step(X)
        assert pyro.param("loc").item() == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_modules_train_without_being_registered(back_end):
    program = entry("hierarchical").guide.__self__
    before = {name: p.clone() for name, p in program.named_parameters()}
    svi = CompiledSVI(
        program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=back_end
    )
    svi.step(binary(10, 6))
    assert all(not torch.equal(p, before[name]) for name, p in program.named_parameters())
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("back_end", ["eager", "graph"])
@pytest.mark.filterwarnings("ignore:decoder.bias was not registered")
def test_blocked_and_frozen_parameters_stay(back_end):
    model, guide = linear_program()
    blocked = poutine.block(model, hide=["loc"])
    svi = CompiledSVI(blocked, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=back_end)
    for _ in range(2):
        svi.step(X)
    assert pyro.param("loc").item() == 0.0
    assert not torch.equal(pyro.param("scale"), torch.ones(3))

    program = entry("conditional").guide.__self__
    x, y = entry("conditional").args
    hidden = poutine.block(program.guide, hide_types=["param"])
    svi = CompiledSVI(
        program.model, hidden, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=back_end
    )
    svi.step(x, y)
    program.decoder.bias.requires_grad_(False)
    frozen = program.decoder.bias.clone()
    before = program.encoder.bias.clone()
    svi.step(x, y)
    assert torch.equal(program.decoder.bias, frozen)
    assert not torch.equal(program.encoder.bias, before)


class Registering(nn.Module):
    """A module that registers itself in its model alone, or not at all."""

    def __init__(self, name=None):
        super().__init__()
        self.out, self.slope = nn.Linear(3, 3), nn.Parameter(torch.zeros(3))
        self.name = name

    def model(self, x):
        if self.name:
            pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.out(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 1.0).to_event(1))


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_a_blocked_parameter_of_a_module_that_registers_itself_stays(back_end):
    program = Registering("program")
    model = poutine.block(program.model, hide=["program$$$out.bias"])
    before = {name: p.clone() for name, p in program.named_parameters()}
    svi = CompiledSVI(
        model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=back_end
    )
    svi.step(X)
    moved = [n for n, p in program.named_parameters() if not torch.equal(p, before[n])]
    assert moved == ["slope", "out.weight"]


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_a_module_that_was_registered_elsewhere_is_trained_all_the_same(back_end):
    program = Registering()
    pyro.module("elsewhere", program)
    before = {name: p.clone() for name, p in program.named_parameters()}
    svi = CompiledSVI(
        program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=back_end
    )
    svi.step(X)
    assert not any(torch.equal(p, before[name]) for name, p in program.named_parameters())


def test_the_arguments_of_a_step_are_those_of_that_step():
    found = {}
    for name in ("eager", "graph"):
        pyro.clear_param_store()
        svi = CompiledSVI(
            *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=name
        )
        found[name] = losses_of(svi, [((X + shift,), {}) for shift in range(3)])
    assert found["graph"] == pytest.approx(found["eager"], rel=1e-5)


def unregistered_step(program, optimizer, back_end="graph"):
    return CompiledSVI(program.model, program.guide, optimizer, Trace_ELBO(), engine=back_end)


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_an_optimizer_of_some_parameters_trains_those(back_end):
    program = Registering()
    before = {name: p.clone() for name, p in program.named_parameters()}
    optimizer = torch.optim.Adam(program.out.parameters(), lr=0.1, betas=[0.9, 0.99])
    svi = unregistered_step(program, optimizer, back_end)
    for _ in range(3):
        svi.step(X)
    moved = [n for n, p in program.named_parameters() if not torch.equal(p, before[n])]
    assert moved == ["out.weight", "out.bias"]
    other = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
    with pytest.raises(InputError, match="the optimizer has none"):
        unregistered_step(program, other, back_end).step(X)


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_a_parameter_that_thaws_is_trained(back_end):
    program = Registering()
    program.slope.requires_grad_(False)
    svi = unregistered_step(program, torch.optim.SGD(program.parameters(), lr=0.1), back_end)
    svi.step(X)
    assert not program.slope.any()
    program.slope.requires_grad_(True)
    svi.step(X)
    assert program.slope.all()
    assert back_end in svi.engines


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_parameters_that_pyro_keeps_in_their_modules(back_end):
    with pyro.settings.context(module_local_params=True):
        program = entry("Bayesian regression")
        svi = CompiledSVI(*program[:2], pyro.optim.Adam({"lr": 0.1}), program.loss, engine="graph")
        svi.step(*program.args)
        before = [p.clone() for p in program.guide.parameters()]
        svi.step(*program.args)
        after = list(program.guide.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_a_parameter_that_takes_the_place_of_another_is_trained(back_end):
    program = Registering()
    svi = unregistered_step(program, torch.optim.SGD(program.parameters(), lr=0.1), back_end)
    svi.step(X)
    old, program.slope = program.slope, nn.Parameter(torch.zeros_like(program.slope))
    svi._stepper.update.optimizer.add_param_group({"params": [program.slope]})
    before = old.clone()
    svi.step(X)
    assert program.slope.all()
    assert torch.equal(old, before)


def test_a_rate_that_decays_does_so_once_a_step():
    """Also where parameters of one group were first met at different steps."""

    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.late = (nn.Parameter(torch.zeros(())) for _ in range(2))

        def model(self, x, late):
            mean = self.loc + self.late if late else self.loc
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

        def guide(self, x, late):
            pass

    found = []
    x = torch.ones(3)
    for merged in (True, False):
        program = Growing()
        options = {"lr": 0.1, "lrd": 0.5}
        optimizer = pyro.optim.clipped_adam.ClippedAdam(program.parameters(), **options)
        svi = CompiledSVI(program.model, program.guide, optimizer, Trace_ELBO(), engine="eager")
        if not merged:
            svi._stepper.update._kernel = lambda parameters, gradients: None
        for late in (False, False, True, True):
            svi.step(x, late)
        found.append([*program.parameters(), torch.tensor(optimizer.param_groups[0]["lr"])])
    assert_close(*found)


def test_options_by_name_need_a_name():
    class Nameless(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pass

    program = Nameless()
    svi = unregistered_step(program, pyro.optim.Adam(lambda name: {"lr": 0.1}))
    with pytest.raises(InputError, match=r"has none for one of shape \(3,\)"):
        svi.step(torch.ones(4, 3))
    svi = unregistered_step(program, pyro.optim.Adam({"lr": 0.1}))
    svi.step(torch.ones(4, 3))
    assert program.loc.all()


def test_a_rate_changed_after_a_state_was_loaded_is_the_one_that_counts():
    program = Registering()
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    svi = unregistered_step(program, optimizer)
    svi.step(X)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    before = snapshot(program)[0]
    svi.step(X)
    assert_close(snapshot(program)[0], before)


CHANGES = {
    "Adam": [
        lambda group: group.update(lr=3e-3),
        lambda group: group.update(weight_decay=0.3),
        lambda group: group.update(amsgrad=False, eps=0.1),
        lambda group: group.update(betas=[0.8, 0.95]),
        lambda group: group["betas"].__setitem__(0, 0.1),
        lambda group: group.update(decoupled_weight_decay=True),
        lambda group: group.update(maximize=True),
    ],
    "SGD": [
        lambda group: group.update(lr=3e-3),
        lambda group: group.update(momentum=0.9),
        lambda group: group.update(nesterov=True),
        lambda group: group.update(differentiable=False, weight_decay=0.3),
    ],
}


@pytest.mark.parametrize("name", CHANGES)
def test_options_that_a_script_changes_between_steps_count_from_then_on(name):
    found = []
    for merged in (True, False):
        torch.manual_seed(0)
        program = Registering()
        every = [{"params": [p]} for p in program.parameters()]
        optimizer = getattr(torch.optim, name)(every, lr=1e-3)
        svi = unregistered_step(program, optimizer)
        if not merged:
            svi._stepper.update._kernel = lambda parameters, gradients: None
        for change in CHANGES[name]:
            # Twice before, so that what is remembered of the first is there to be wrong.
            torch.manual_seed(0)
            svi.step(X)
            svi.step(X)
            change(optimizer.param_groups[1])
        svi.step(X)
        found.append(list(program.parameters()))
    assert_close(*found)


def test_an_optimizer_whose_state_is_emptied_begins_anew():
    found = []
    for emptied in (True, False):
        torch.manual_seed(0)
        program = Registering()
        optimizer = torch.optim.Adam(program.parameters(), lr=1e-3)
        svi = unregistered_step(program, optimizer)
        svi.step(X)
        svi.step(X)
        if emptied:
            optimizer.state.clear()
        else:
            optimizer = torch.optim.Adam(program.parameters(), lr=1e-3)
            svi = unregistered_step(program, optimizer)
        torch.manual_seed(1)
        svi.step(X)
        svi.step(X)
        found.append(list(program.parameters()))
    assert_close(*found)


def test_an_optimizer_with_a_step_of_its_own_takes_it():
    class Doubled(pyro.optim.PyroOptim):
        def __call__(self, params, *args, **kwargs):
            super().__call__(params, *args, **kwargs)
            super().__call__(params, *args, **kwargs)

    found = {}
    for make in (SVI, engine("graph")):
        optimizer = Doubled(torch.optim.Adam, {"lr": 0.05})
        found[make is SVI] = train(make, optimizer, steps=4)
    assert_close(found[False], found[True])


def test_an_optimizer_that_needs_a_closure_is_refused():
    program = Registering()
    with pytest.raises(InputError, match="LBFGS"):
        unregistered_step(program, torch.optim.LBFGS(program.parameters()))


class Averaging(nn.Module):
    """A guide that keeps an average of what it sees in a buffer, in place or by replacing it."""

    def __init__(self, replaces):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self.register_buffer("average", torch.zeros(3))
        self.replaces = replaces

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc + self.average, 1.0).to_event(1), obs=x)

    def guide(self, x):
        if self.replaces:
            self.average = 0.5 * self.average + x.mean(0)
        else:
            self.average.mul_(0.5).add_(x.mean(0))


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.filterwarnings("ignore:A graph does not see that the buffer")
def test_a_buffer_that_the_program_itself_changes_moves_once_per_step(replaces):
    averages, losses = [], []
    for make in (SVI, engine("graph")):
        program = Averaging(replaces)

        def model(x, program=program):
            pyro.module(f"averaging {id(program)}", program)
            program.model(x)

        svi = make(
            program.model if make is not SVI else model,
            program.guide,
            pyro.optim.SGD({"lr": 0.01}),
            Trace_ELBO(),
        )
        losses.append([float(svi.step(X)) for _ in range(5)])
        averages.append(program.average)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(averages[1], averages[0])
    assert svi.engines == (["eager"] if replaces else ["graph"])


def test_the_mode_of_the_program_itself_keys_a_capture():
    class Dropping(Registering):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                loc = nn.functional.dropout(z @ self.out.weight, 0.9, self.training)
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    losses = {}
    for name in ("eager", "graph"):
        torch.manual_seed(0)
        program = Dropping()
        svi = unregistered_step(program, torch.optim.SGD(program.parameters(), lr=0.0), name)
        losses[name] = losses_of(svi, [((X,), {})])
        program.eval()
        losses[name] += losses_of(svi, [((X,), {})])
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-5)


# ── What keys a capture ──


class Switched(nn.Module):
    """A program with a Python argument, a keyword and a module that has a mode."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))

    def model(self, x, power=1, *, sign="+"):
        with pyro.plate("data", len(x)):
            loc = self.net(x) ** power
            pyro.sample("x", dist.Normal(loc if sign == "+" else -loc, 1.0).to_event(1), obs=x)

    def guide(self, x, power=1, *, sign="+"):
        pass


def losses_of(svi, calls):
    found = []
    for step, (args, kwargs) in enumerate(calls):
        pyro.set_rng_seed(step)
        found.append(float(svi.step(*args, **kwargs)))
    return found


@COMPILED_OR_GRAPH
def test_shapes_types_and_python_arguments_key_a_capture(back_end):
    calls = [
        ((X,), {}),
        ((X[:4],), {}),
        ((X, 2), {}),
        ((X,), {"sign": "-"}),
        ((X.t().contiguous().t(),), {}),
    ]
    if back_end == "inductor":
        calls = calls[:2]
    found = {}
    for name in ("eager", back_end):
        torch.manual_seed(0)
        program = Switched()
        svi = CompiledSVI(
            program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine=name
        )
        found[name] = losses_of(svi, calls * 3)
        assert svi.engines == ([name] if name == "eager" else [name] * len(calls))
    assert found[back_end] == pytest.approx(found["eager"], rel=1e-4)


def test_the_mode_of_a_module_keys_a_capture():
    found = {}
    for name in ("eager", "graph"):
        torch.manual_seed(0)
        program = Switched()
        svi = CompiledSVI(
            program.model, program.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO(), engine=name
        )
        found[name] = []
        for mode in (True, False, True, False):
            program.net[2].train(mode)
            found[name] += losses_of(svi, [((X,), {})])
        assert svi.engines == [name] * 2
        found[name] += program.net[2].running_mean.tolist()
    assert found["graph"] == pytest.approx(found["eager"], rel=1e-4)


class Annealed(nn.Module):
    """A program of attributes that a script changes, and of some that it changes itself."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self.net = nn.Linear(3, 3, bias=False)
        self.net.gain = 1.0
        self.register_buffer("shift", torch.zeros(3))
        self.mask, self.family, self.calls = torch.ones(3) > 0, "normal", 0

    def model(self, x):
        self.calls += 1
        self.last = x.mean()
        family = dist.Normal if self.family == "normal" else dist.Laplace
        loc = self.loc + self.net.gain * self.net(x) + self.shift
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=self.mask.all()):
            pyro.sample("x", family(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass

    def change(self, what, step):
        """Gives what a script may have changed another value from a step on."""
        later = step >= 5
        if what == "a number":
            self.net.gain = 1.0 + later
        elif what == "a word":
            self.family = "laplace" if later else "normal"
        elif what == "a tensor":
            self.mask = torch.full((3,), not later)
        elif what == "a buffer":
            self.shift = torch.full((3,), float(later))
        elif what == "an epoch that nothing reads":
            self.net.gain, self.epoch = 1.0 + later, step
        elif what == "a number at every step":
            self.net.gain = 1.0 + 1e-3 * step
        else:
            self.calls = 0


def annealed(what, back_end, steps=12):
    torch.manual_seed(0)
    program = Annealed()
    optimizer = torch.optim.SGD(program.parameters(), lr=1e-3)
    svi = CompiledSVI(program.model, program.guide, optimizer, Trace_ELBO(), engine=back_end)
    losses = []
    for step in range(steps):
        if what in ("a tensor", "a buffer") and step not in (0, 5):
            pass  # each of them is another object
        else:
            program.change(what, step)
        losses.append(float(svi.step(X)))
    return losses, svi.engines


@pytest.mark.parametrize(
    "what",
    ["a number", "a word", "a tensor", "a buffer", "a counter", "an epoch that nothing reads"],
)
@pytest.mark.filterwarnings("error")
def test_what_a_script_changes_of_a_module_keys_a_capture(what):
    """Between two comparisons a graph would go on with what it was."""
    expected, _ = annealed(what, "eager")
    found, engines = annealed(what, "graph")
    assert found == pytest.approx(expected, rel=1e-6)
    assert engines == ["graph"] * (1 if what == "a counter" else 2)


class Weighed:
    """A program that is no module, its KL weighed by an attribute."""

    def __init__(self):
        self.beta = 1.0

    def model(self, x):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)), poutine.scale(scale=self.beta):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        slope = pyro.param("slope", torch.full((3,), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))


@pytest.mark.parametrize("what", ["program", "loss", "control"])
def test_so_does_what_it_changes_of_a_program_that_is_no_module_or_of_the_loss(what):
    losses = {}
    for name in ("eager", "graph"):
        pyro.clear_param_store()
        program = Weighed()
        loss = TotalCorrelation() if what == "loss" else ELBO(kl=FreeBits(0.1))
        optimizer = pyro.optim.SGD({"lr": 1e-3})
        svi = CompiledSVI(program.model, program.guide, optimizer, loss, engine=name)
        losses[name] = losses_of(svi, [((X,), {})] * 5)
        if what == "program":
            program.beta = 0.5
        elif what == "loss":
            loss.total_correlation = 3.0
        else:
            loss.kl.nats = 4.0
        losses[name] += losses_of(svi, [((X,), {})] * 2)
        assert svi.engines == [name] * (1 if name == "eager" else 2)
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-5)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_a_script_changes_again_and_again_is_run_in_python():
    expected, _ = annealed("a number at every step", "eager", steps=30)
    with pytest.warns(UserWarning, match="More than 8 times 'gain' is something else") as caught:
        found, engines = annealed("a number at every step", "graph", steps=30)
    assert len(caught) == 1
    assert found == pytest.approx(expected, rel=1e-6)
    assert engines == ["graph"] * 7 + ["eager"]


def test_parameters_that_are_others_at_every_step_are_not_captured_for_ever():
    program = Annealed()
    svi = CompiledSVI(
        program.model, program.guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO(), engine="graph"
    )

    def steps():
        for _ in range(20):
            program.loc = nn.Parameter(program.loc.detach().clone())
            svi.step(X)

    with pytest.warns(UserWarning, match="More than 8 times modules or parameters are"):
        steps()
    assert svi.engines == ["eager"] * 8
    assert program.loc.detach().norm() > 0


def test_too_many_kinds_of_arguments_are_run_in_python():
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="graph"
    )
    with pytest.warns(UserWarning, match="Pad"):
        losses_of(svi, [((X[:rows],), {}) for rows in range(1, 11)])
    assert svi.engines == ["graph"] * 8 + ["eager"]


def test_an_argument_that_cannot_be_compared_is_run_in_python():
    model, guide = linear_program()
    arrays = [lambda x, f=f: f(torch.from_numpy(x)) for f in (model, guide)]
    svi = CompiledSVI(*arrays, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="graph")
    with pytest.warns(UserWarning, match="hashed"):
        losses = losses_of(svi, [((X[:rows].numpy(),), {}) for rows in (10, 5, 10)])
    pyro.clear_param_store()
    stock = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert losses == pytest.approx(losses_of(stock, [((X[:r],), {}) for r in (10, 5, 10)]))


# ── Faithfulness ──


class Counting(nn.Module):
    """A program that depends on something besides its arguments and parameters."""

    def __init__(self, what):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self._what, self.calls = [what], 0  # in a list it is nothing that keys a capture

    @property
    def what(self):
        return self._what[0]

    @what.setter
    def what(self, what):
        self._what[0] = what

    def model(self, x):
        self.calls += 1
        scale = 1.0
        if self.what == "Python state":
            scale = 1.0 + self.calls
        elif self.what == "NumPy":
            scale = 1.0 + float(abs(self.loc.detach().numpy()).sum())
        elif self.what == "tolist":
            scale = 1.0 + abs(self.loc.tolist()[0])
        elif self.what == "its own randomness":
            scale = 1.0 + np.random.default_rng(self.calls).random()
        elif self.what == "a branch":
            scale = 2.0 if self.loc.sum() > 0.2 else 1.0
        elif self.what == "the loss alone":
            pyro.factor("constant", torch.tensor(float(self.calls)))
        elif self.what == "a gradient alone":
            moved = self.calls * self.loc.sum()
            pyro.factor("no value", moved - moved.detach())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, scale).to_event(1), obs=x)

    def guide(self, x):
        pass


@pytest.mark.parametrize(
    "what",
    [
        "Python state",
        "NumPy",
        "tolist",
        "its own randomness",
        "the loss alone",
        "a gradient alone",
    ],
)
def test_a_program_that_a_graph_would_get_wrong_is_found_out(what):
    program = Counting(what)
    svi = CompiledSVI(
        program.model, program.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO(), engine="graph"
    )
    with pytest.warns(UserWarning, match="disagree about .*, so it is run in Python"):
        losses = [float(svi.step(X)) for _ in range(4)]
    assert svi.engines == ["eager"]
    if what in ("NumPy", "tolist"):
        stock = entry_like_stock(Counting(what))
        assert losses == pytest.approx([stock.step(X) for _ in range(4)], rel=1e-5)


def test_a_program_that_was_found_out_is_run_in_python_whatever_its_arguments():
    program = Counting("the loss alone")
    svi = CompiledSVI(
        program.model, program.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO(), engine="graph"
    )
    program.what = "nothing"
    svi.step(X[:7])
    program.what = "the loss alone"
    with pytest.warns(UserWarning, match="disagree about the loss"):
        svi.step(X)
    program.what = "nothing"
    svi.step(X[:5])
    assert svi.engines == ["eager"] * 3


def entry_like_stock(program):
    def model(x):
        pyro.module("program", program)
        program.model(x)

    return SVI(model, program.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())


def test_a_program_that_changes_between_the_checks_is_found_out_at_the_next(monkeypatch):
    monkeypatch.setattr(faithfulness_module, "EVERY", 10)
    program = Counting("nothing yet")
    svi = unregistered_step(program, torch.optim.SGD(program.parameters(), lr=0.001))
    for _ in range(5):
        svi.step(X)
    program.what = "the loss alone"
    for _ in range(2):
        svi.step(X)
    with pytest.warns(UserWarning, match="At step 8"):
        svi.step(X)

    program = Counting("nothing yet")
    svi = unregistered_step(program, torch.optim.SGD(program.parameters(), lr=0.001))
    for _ in range(8):
        svi.step(X)
    program.what = "the loss alone"
    svi.step(X)
    with pytest.warns(UserWarning, match="At step 10"):
        svi.step(X)


def disturbed_graph(monkeypatch, where, is_off):
    """Programs are captured with one number off: at passes of which `is_off(n)`, n from 1."""

    def capture(function, tensors):
        graph, passes = capture_module.capture(function, tensors), iter(range(1, 1000))

        def run(*given):
            found = list(graph(*given))
            if is_off(next(passes)):
                found[where] = found[where] + 0.01 * (1 + found[where].abs().max())
            return found

        return run

    monkeypatch.setattr(backends_module, "capture", capture)


@pytest.mark.parametrize("where", [0, 2])  # the loss, the gradient of the first parameter
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.filterwarnings("error")
def test_a_gradient_that_differs_at_a_kink_alone_is_no_reason_to_leave_the_graph(
    monkeypatch, where, once
):
    """What differs in one noise alone is rounding, if it is no loss."""
    losses = {}
    for disturbed in (False, True):
        if disturbed:
            disturbed_graph(monkeypatch, where, lambda n: n == 4 or (n > 4 and not once))
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = CompiledSVI(
            *linear_program(), pyro.optim.SGD({"lr": 0.0}), Trace_ELBO(), engine="graph"
        )
        if disturbed and not (once and where == 2):
            with pytest.warns(UserWarning, match="At step 4 .* disagree about the"):
                losses[disturbed] = [float(svi.step(X)) for _ in range(8)]
            assert svi.engines == ["eager"]
        else:
            losses[disturbed] = [float(svi.step(X)) for _ in range(8)]
            assert svi.engines == ["graph"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)  # of the same noise


@pytest.mark.filterwarnings("error")
def test_a_gradient_that_is_no_number_is_no_disagreement():
    def model(x):
        root = pyro.param("root", torch.zeros(3)).square().sqrt()
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", torch.zeros(3)) + root
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    svi = CompiledSVI(
        model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="graph"
    )
    with pytest.raises(NonFiniteError, match="The gradient of 'root' is not finite") as raised:
        svi.step(X)
    assert svi.engines == ["graph"]
    assert "no learning rate is to blame" in str(raised.value)


def test_a_branch_on_a_value_is_run_in_python_with_one_warning():
    program = Counting("a branch")
    svi = CompiledSVI(
        program.model, program.guide, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO(), engine="graph"
    )
    with pytest.warns(UserWarning, match="cannot be captured.*value of a tensor") as caught:
        *losses, _ = losses_of(svi, [((X,), {})] * 6 + [((X[:5],), {})])
    assert len(caught) == 1
    stock = entry_like_stock(Counting("a branch"))
    assert losses == pytest.approx([stock.step(X) for _ in range(6)], rel=1e-5)


def test_parameters_that_come_later_are_trained_in_python():
    def model(x):
        loc = pyro.param("loc", torch.zeros(3))
        if loc.sum() > 0.2:
            loc = loc + pyro.param("late", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    svi = CompiledSVI(model, lambda x: None, pyro.optim.SGD({"lr": 0.01}), Trace_ELBO())
    with pytest.warns(UserWarning, match="cannot be captured"):
        losses_of(svi, [((X,), {})] * 5)
    assert pyro.param("late").abs().sum() > 0


def snapshot(program):
    state = {name: value.clone() for name, value in program.state_dict().items()}
    return state, torch.get_rng_state(), list(pyro.get_param_store())


@pytest.mark.parametrize("back_end", ["eager", "graph", COMPILED, "auto"])
def test_making_ready_leaves_no_trace(back_end):
    program = entry("convolutional").guide.__self__
    x = entry("convolutional").args[0]
    pyro.clear_param_store()
    optimizer = torch.optim.Adam(program.parameters())
    estimate = svi_module.estimate_with(Trace_ELBO(), program.model, program.guide)
    stepper = Stepper(estimate, optimizer, owners=[program], engine=back_end)
    with pyrovae.handlers.unregistered():
        before = snapshot(program)
        stepper.prepare(x)
        after = snapshot(program)
    assert_close(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert all(name.startswith("convolutional$$$") for name in after[2])
    assert not optimizer.state
    assert all(p.grad is None for p in program.parameters())


@COMPILED_OR_GRAPH
def test_checking_a_step_leaves_no_trace(back_end):
    # Buffers move once per step, and noise goes on as it would, at the steps that are checked.
    found = {}
    for name in ("eager", back_end):
        program = entry("convolutional")
        svi = CompiledSVI(
            program.model, program.guide, pyro.optim.SGD({"lr": 1e-3}), program.loss, engine=name
        )
        pyro.set_rng_seed(3)
        losses = [float(svi.step(*program.args)) for _ in range(9)]
        module = program.guide.__self__
        found[name] = (losses, dict(module.named_buffers()), torch.get_rng_state())
    losses, buffers, generator = found["eager"]
    assert found[back_end][0] == pytest.approx(losses, rel=1e-4)
    assert buffers["encoder.1.num_batches_tracked"] == 9
    assert_close(found[back_end][1], buffers)
    assert torch.equal(found[back_end][2], generator)


def test_auto_takes_a_back_end_that_works():
    svi = CompiledSVI(*linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="auto")
    svi.step(X)
    assert svi.engines[0] in ("graph", "inductor")  # in Python it takes many times as long


def test_a_long_training_is_compiled_in_the_end(monkeypatch):
    monkeypatch.setattr(planner_module, "COMPILE_AFTER", 5)
    monkeypatch.setattr(planner_module, "default_engine", lambda device: "inductor")
    compiled = []

    def compile_graph(graph, inputs):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(backends_module, "compile_graph", compile_graph)
    svi = CompiledSVI(*linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    engines = []
    for _ in range(7):
        svi.step(X)
        engines += svi.engines
    assert engines == ["graph"] * 5 + ["inductor"] * 2
    assert len(compiled) == 1


def test_what_cannot_be_compiled_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(planner_module, "COMPILE_AFTER", 3)
    monkeypatch.setattr(planner_module, "default_engine", lambda device: "inductor")
    tried = []

    def fail(*_):
        tried.append(None)
        raise capture_module.CaptureError("no C++ compiler")

    monkeypatch.setattr(backends_module, "compile_graph", fail)
    svi = CompiledSVI(*linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        losses_of(svi, [((X,), {})] * 12)
    assert len(tried) == 1
    assert svi.engines == ["graph"]


def test_without_a_compiler_the_graph_is_run_as_it_is(monkeypatch):
    def fail(*_):
        raise capture_module.CaptureError("no C++ compiler")

    monkeypatch.setattr(backends_module, "compile_graph", fail)
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="inductor"
    )
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        svi.step(X)
    assert svi.engines == ["graph"]

    monkeypatch.setattr(backends_module, "has_compiler", lambda: False)
    assert backends_module.default_engine(torch.device("cpu")) == "graph"


@pytest.mark.parametrize(
    ("limit", "engine", "told"),
    [("MOST_CAPTURED", "eager", "run in Python"), ("MOST_COMPILED", "graph", "as it is")],
)
def test_a_pass_of_very_many_operations_is_not_waited_for(monkeypatch, limit, engine, told):
    monkeypatch.setattr(backends_module, "compile_graph", lambda *_: pytest.fail("compiled"))
    if engine == "eager":
        monkeypatch.setattr(backends_module, "capture", lambda *_: pytest.fail("captured"))
    monkeypatch.setattr(backends_module, limit, 20)
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="inductor"
    )
    with pytest.warns(UserWarning, match=f"makes [0-9]+ operations.* {told}"):
        svi.step(X)
    assert svi.engines == [engine]


def test_a_plan_knows_how_many_operations_a_pass_makes():
    class Deep(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.depth, self.loc = depth, nn.Parameter(torch.zeros(3))

        def model(self, x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            for _ in range(self.depth):
                z = z.cos()
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))

    def operations(depth):
        program = Deep(depth)
        optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
        svi = CompiledSVI(program.model, program.guide, optimizer, Trace_ELBO(), engine="graph")
        svi.step(X)
        (plan,) = (plan for plans in svi._stepper._planner._plans.values() for plan in plans)
        return plan.operations

    # A cosine is one operation, and three more as the pass goes backward: sin, neg and mul.
    assert operations(30) - operations(10) == 20 * 4


# ── NaN ──


@pytest.mark.parametrize("back_end", ["eager", "graph"])
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_step_that_is_not_finite_changes_nothing(back_end):
    program = Switched()
    program.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(program.parameters(), lr=0.1)
    svi = CompiledSVI(program.model, program.guide, optimizer, Trace_ELBO(), engine=back_end)
    svi.step(X)
    bad = X.clone()
    bad[4, 1] = math.inf
    svi.step(X)
    before = snapshot(program)
    exp_avg = [state["exp_avg"].clone() for state in optimizer.state.values()]
    with pytest.raises(NonFiniteError, match=r"step 2: .*site 'x'"):
        svi.step(bad)
    assert_close(snapshot(program)[0], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert_close([state["exp_avg"] for state in optimizer.state.values()], exp_avg)
    assert math.isfinite(svi.step(X))

    with torch.no_grad():
        program.net[0].bias[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"parameter 'net\.0\.bias'"):
        svi.step(X)


def late(program, optimizer, every):
    estimate = svi_module.estimate_with(Trace_ELBO(), program.model, program.guide)
    return Stepper(
        estimate,
        optimizer,
        owners=[program],
        engine="graph",
        find_cause=lambda args, kwargs, parameters: guard_module.find_cause(
            program.model, program.guide, args, kwargs, parameters
        ),
        check_every=every,
    )


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_first_step_that_is_not_finite_changes_nothing():
    program = Switched()
    program.net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    svi = unregistered_step(program, torch.optim.Adam(program.parameters()))
    before = snapshot(program)
    with pytest.raises(NonFiniteError):
        svi.step(X * math.nan)
    assert_close(snapshot(program)[0], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_what_is_masked_is_not_blamed():
    def model(x, seen):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=seen):
                pyro.sample("hidden", dist.Normal(loc, 1.0, validate_args=False), obs=x)
            pyro.sample("bad", dist.Normal(loc, 1.0, validate_args=False), obs=x * math.inf)

    x = torch.tensor([1.0, math.nan])
    found = guard_module.find_cause(
        model, lambda *_: None, (x, torch.tensor([True, False])), {}, {}
    )
    assert "'bad'" in found.cause


def until_asked(step):
    for _ in range(8):
        step(X)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_step_that_is_asked_about_late_has_changed_nothing(make):
    # What a GPU does, which would have to be waited for: from the bad step on all is frozen.
    torch.manual_seed(0)
    program = Switched()
    program.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = make(program.parameters(), lr=0.01)
    step = late(program, optimizer, every=8)
    bad = X.clone()
    bad[4, 1] = math.inf
    for _ in range(11):
        step(X)
    before, state = snapshot(program), copy.deepcopy(optimizer.state_dict())
    assert not torch.isfinite(step(bad).loss)
    step(X)
    assert_close(snapshot(program)[0], before[0])
    with pytest.raises(NonFiniteError, match="site 'x'") as caught:
        until_asked(step)
    assert 1 <= caught.value.steps_ago <= 7
    assert_close(snapshot(program)[0], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert_close(optimizer.state_dict(), state)
    assert torch.isfinite(step(X).loss)

    for _ in range(2):
        step(bad)
    with pytest.raises(NonFiniteError) as caught:
        step.check()
    assert caught.value.steps_ago == 1
    step.check()


def test_steps_that_are_asked_about_late_are_the_same_steps():
    found = {}
    for every in (1, 8):
        program = entry("convolutional").guide.__self__
        step = late(program, torch.optim.Adam(program.parameters(), lr=0.01), every)
        torch.manual_seed(0)
        losses = [float(step(binary(6, 1, 8, 8)).loss) for _ in range(20)]
        found[every] = (losses, program.state_dict())
    assert found[1][0] == found[8][0]
    assert_close(found[1][1], found[8][1])


def test_an_optimizer_that_cannot_be_frozen_is_asked_about_at_once():
    program = Switched()
    program.net = nn.Sequential(nn.Linear(3, 3))
    step = late(program, torch.optim.RMSprop(program.parameters(), lr=0.01), every=8)
    step(X)
    before = snapshot(program)
    with pytest.raises(NonFiniteError) as caught:
        step(X * math.inf)
    assert caught.value.steps_ago == 0
    assert_close(snapshot(program)[0], before[0])


# ── Memory ──


def a_hierarchy(back_end):
    """A program that is a module, and its steps."""
    program = entry("hierarchical").guide.__self__
    optimizer = torch.optim.Adam(program.parameters())
    return program, CompiledSVI(
        program.model, program.guide, optimizer, Trace_ELBO(), engine=back_end
    )


def test_a_program_that_is_dropped_dies():
    watched = []
    for back_end in ("eager", "graph"):
        program, svi = a_hierarchy(back_end)
        for _ in range(3):
            svi.step(binary(10, 6))
        watched += [weakref.ref(program), weakref.ref(svi)]
        del program, svi
    gc.collect()
    assert [reference() for reference in watched] == [None] * 4


@pytest.mark.parametrize("back_end", ["eager", "graph"])
def test_the_weights_of_a_program_that_is_dropped_are_freed_at_once(back_end):
    """Not when Python next collects cycles, by when others lie beside them."""
    program, svi = a_hierarchy(back_end)
    watched = [weakref.ref(parameter) for parameter in program.parameters()]
    gc.disable()
    try:
        svi.step(binary(10, 6))
        del program, svi
        assert [reference() for reference in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_arguments_are_not_kept():
    svi = CompiledSVI(
        *linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), engine="graph"
    )
    x = X.clone()
    watched = weakref.ref(x)
    svi.step(x)
    del x
    gc.collect()
    assert watched() is None


def test_what_is_compiled_in_the_end_is_checked_at_once(monkeypatch):
    def double(graph, _):
        return lambda *x: [2 * value for value in graph(*x)]

    monkeypatch.setattr(planner_module, "COMPILE_AFTER", 5)
    monkeypatch.setattr(planner_module, "default_engine", lambda device: "inductor")
    monkeypatch.setattr(backends_module, "compile_graph", double)
    svi = CompiledSVI(*linear_program(), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses_of(svi, [((X,), {})] * 5)
    with pytest.warns(UserWarning, match="disagree about the loss"):
        svi.step(X)
    assert svi.engines == ["eager"]


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("ask", ["check", "evaluate_loss"])
def test_a_late_verdict_can_be_asked_for(ask):
    program = Registering()
    svi = unregistered_step(program, torch.optim.SGD(program.parameters(), lr=0.1))
    svi._stepper._check_every = 8
    svi.step(X)
    svi.step(X * math.inf)
    with pytest.raises(NonFiniteError):
        getattr(svi, ask)(*([X] if ask == "evaluate_loss" else []))
    svi.check()


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_batches_that_wait_for_a_verdict_do_not_fill_the_device(monkeypatch):
    monkeypatch.setattr(sentinel_module, "MOST_BYTES", 3 * X.nbytes)
    program = Switched()
    program.net = nn.Linear(3, 3)
    step = late(program, torch.optim.Adam(program.parameters(), lr=0.01), every=64)
    for x in (X, X * math.inf, X, X):
        step(x)
    with pytest.raises(NonFiniteError) as caught:
        step(X)
    assert caught.value.steps_ago == 3, "the fourth batch that waits is more than may be kept"

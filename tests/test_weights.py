"""Weights of a run in a program: in their own type, and where it has yet to make its own."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_for_tests import binary, same, small_vae, weights
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import Examples
from pyrovae.errors import InputError
from pyrovae.evaluation import log_evidence
from pyrovae.programs import dtype_of

ROWS = 60


class Mean(nn.Module):
    """Its guide, of Pyro's, has no parameter before it is first run."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.guide = AutoNormal(self.model)

    def model(self, x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        with pyro.plate("data", ROWS, subsample=x):
            pyro.sample("x", dist.Normal(mean, self.scale.exp()).to_event(1), obs=x)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.LazyLinear(2)
        self.decode = nn.Linear(2, 6)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


def trained(program, path, **options):
    return pyrovae.fit(
        program, binary(ROWS), epochs=1, batch_size=ROWS, progress=False, run_dir=path, **options
    )


@pytest.mark.parametrize("make", [Mean, Lazy])
def test_parameters_that_a_first_run_makes_are_given_back(make, tmp_path):
    run = trained(make(), tmp_path / "run")
    loaded = pyrovae.load(tmp_path / "run", program=make(), data=binary(9))
    assert same(weights(loaded.program), weights(run.program))
    run.save_pretrained(tmp_path / "given")
    again = pyrovae.from_pretrained(tmp_path / "given", program=make())
    assert same(weights(again.program), weights(run.program))


@pytest.mark.parametrize("make", [Mean, Lazy])
def test_a_program_starts_from_parameters_it_has_yet_to_make(make, tmp_path):
    run = trained(make(), tmp_path / "run")
    program = make()
    assert pyrovae.start_from(program, tmp_path / "run").left == []
    assert same(weights(program), weights(run.program))


def test_one_that_cannot_be_run_on_zeros_is_to_be_run_before(tmp_path):
    class Positive(Mean):
        def model(self, x):
            if not x.any():
                raise ValueError("there is nothing in it")
            super().model(x)

    trained(Positive(), tmp_path / "run")
    with pytest.raises(InputError, match=r"nothing in it\)\. Run it on some examples before"):
        pyrovae.load(tmp_path / "run", program=Positive())
    program = Positive()
    program.guide(binary(ROWS))
    pyrovae.load(tmp_path / "run", program=program)


def test_a_program_of_doubles_is_given_back_as_one(tmp_path):
    run = trained(small_vae().double(), tmp_path / "run")
    run.save_pretrained(tmp_path / "given")
    for given in (
        pyrovae.load(tmp_path / "run", data=binary(9).double()),
        pyrovae.from_pretrained(tmp_path / "given"),
    ):
        assert dtype_of(given.program) == torch.float64
        assert same(weights(given.program), weights(run.program))
        assert given.sample(2).x.shape == (1, 2, 6)
        found = given.on(binary(9).numpy()).evaluate(num_samples=3)
        assert torch.equal(found.elbo, run.on(binary(9)).evaluate(num_samples=3).elbo)


def test_a_run_of_doubles_does_not_go_on_in_floats(tmp_path):
    trained(small_vae().double(), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"training\.dtype is 'float32', and was 'float64'"):
        trained(small_vae(), tmp_path / "run", resume=True)


def test_tensors_of_several_types_keep_them(tmp_path):
    def make():
        vae = small_vae()
        vae.register_buffer("fine", torch.zeros(2, dtype=torch.float64))
        return vae

    program = make()
    program.fine.fill_(1 / 3)
    trained(program, tmp_path / "run")
    loaded = pyrovae.load(tmp_path / "run", program=make()).program
    assert loaded.fine.dtype == torch.float64
    assert torch.equal(loaded.fine, program.fine)


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.float().numpy(),
        lambda x: Examples(x.float()),
        lambda x: Examples(x.byte()),
        lambda x: TensorDataset(x.float()),
        lambda x: pyrovae.load_data(x),
        lambda x: Examples(TensorDataset(x.float(), torch.arange(len(x))), num_workers=0),
    ],
)
def test_data_of_any_type_come_in_that_of_the_program(given, tmp_path):
    program = small_vae().double()
    run = pyrovae.fit(program, given(binary(ROWS)), epochs=1, progress=False)
    assert run.metrics[0]["loss"] > 0
    expected = pyrovae.evaluate(program, binary(ROWS).double(), num_samples=3)
    found = pyrovae.evaluate(program, given(binary(ROWS)), num_samples=3)
    assert len(found.elbo) in (6, ROWS)
    assert torch.equal(found.elbo, expected.elbo) or len(found.elbo) == 6
    single, x = small_vae(), binary(ROWS)
    expected = pyrovae.evaluate(single, x, num_samples=3)
    assert torch.equal(
        pyrovae.evaluate(single, Examples(x.double()), num_samples=3).elbo, expected.elbo
    )


def test_a_scalar_outside_the_support_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(torch.ones(())), obs=x)

    program = SimpleNamespace(model=model, guide=lambda x: None)
    with pytest.raises(InputError, match=r"example 2 \(-1\)"):
        pyrovae.evaluate(program, torch.tensor([1.0, 2.0, -1.0]), num_samples=2)


def test_a_program_of_scalars_is_passed_on(tmp_path):
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Exponential(self.scale.exp()), obs=x)

        def guide(self, x):
            pass

    run = pyrovae.fit(Scalar(), torch.ones(20), epochs=1, progress=False)
    run.save_pretrained(tmp_path / "given")
    given = pyrovae.from_pretrained(tmp_path / "given", program=Scalar())
    assert same(weights(given.program), weights(run.program))


def test_a_program_without_parameters_is_measured():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x)

    program, x = SimpleNamespace(model=model, guide=lambda x: None), binary(7)
    expected = dist.Normal(torch.zeros(6), 1.0).to_event(1).log_prob(x).double()
    torch.testing.assert_close(pyrovae.evaluate(program, x, num_samples=3).elbo, expected)
    torch.testing.assert_close(log_evidence(program, x, num_samples=3), expected)


def test_parameters_are_found_behind_methods_and_handlers():
    vae = small_vae()
    program = SimpleNamespace(model=pyro.poutine.scale(vae.model, 1.0), guide=vae.guide)
    before = weights(vae)
    pyrovae.fit(program, binary(ROWS), epochs=1, progress=False)
    assert not same(weights(vae), before)

"""On a GPU, or where there is none on a stand-in: programs, training, and what is waited for."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pretend_gpu import PretendedGPU
from program_table import TABLE, check_alike, entry, second_step
from programs_for_tests import binary, small_vae
from pyro.infer import SVI
from torch import nn

import pyrovae
from pyrovae import Batch, CompiledSVI
from pyrovae.evaluation import log_evidence
from pyrovae.inspection import inspect_program
from pyrovae.programs import evaluating
from pyrovae.terms import sum_terms


@pytest.fixture
def on_the_gpu(gpu):
    """A GPU, where all tensors are made."""
    torch.set_default_device("cuda:0")
    yield gpu
    torch.set_default_device(None)


@pytest.fixture
def counting(gpu):
    """A GPU that says how often it has been waited for."""
    if not isinstance(gpu, PretendedGPU):
        pytest.skip("a GPU does not count")
    return gpu


# ── The stand-in is no kinder than a GPU ─────────────────────────────────────────────────────


def test_values_of_two_devices_do_not_meet(gpu):
    here, there = torch.ones(3, device="cuda"), torch.ones(3)
    for meet in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: there[torch.zeros(1, dtype=torch.int64, device="cuda")],
        lambda: nn.Linear(3, 2)(here),
        lambda: torch.stack([here.sum(), there.sum()]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            meet()
    assert (here + there.sum()).is_cuda
    assert not here.cpu().is_cuda
    with pytest.raises(TypeError, match="numpy"):
        here.numpy()


def test_values_stay_where_their_operations_leave_them(gpu):
    x = torch.randn(4, 3, device="cuda", requires_grad=True)
    (gradient,) = torch.autograd.grad(x[[0, 2]].logsumexp(-1).sum(), x)
    layer = nn.Linear(3, 2).cuda()
    made = (gradient, x.new_zeros(2), torch.zeros_like(x), x[1:].T, layer(x), x.detach().double())
    assert all(tensor.is_cuda for tensor in made)
    assert layer.weight.device == torch.device("cuda", 0)
    assert not x.new_zeros(2, device="cpu").is_cuda


def test_each_device_has_noise_of_its_own(gpu):
    torch.manual_seed(0)
    first = torch.randn(3)
    torch.manual_seed(0)
    torch.randn(3, device="cuda")
    assert torch.equal(torch.randn(3), first)


def test_what_waits_is_found(gpu):
    x = torch.randn(5, device="cuda")
    for wait in (
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: x[[0, 2]],
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: torch.ones(3).to("cuda"),
        lambda: torch.tensor(1.0, device="cuda"),
        lambda: bool(x.sum() > 0),
    ):
        with pytest.raises((AssertionError, RuntimeError)), gpu.never_waits():
            wait()
    with gpu.never_waits():
        x.add_(torch.ones(5, device="cuda")).exp().sum()
        torch.ones(3).to("cuda", non_blocking=True)


# ── Steps ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TABLE)
def test_a_recorded_step_is_that_of_pyro(name, on_the_gpu):
    made = []

    def make(*args):
        made.append(CompiledSVI(*args, engine="cuda-graph"))
        return made[-1]

    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        torch.set_default_dtype(dtype)
        try:
            expected, found = second_step(name, SVI), second_step(name, make)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(gradient.is_cuda for gradient in expected.gradients.values())
        check_alike(found, expected, tolerance)
        assert made[-1].engines == ["cuda-graph"]


@pytest.mark.parametrize("name", TABLE)
def test_a_step_waits_for_nothing(name, on_the_gpu):
    pyro.clear_param_store()
    program = entry(name)
    optimizer = pyro.optim.Adam({"lr": 0.01})
    svi = CompiledSVI(program.model, program.guide, optimizer, program.loss, engine="graph")
    for _ in range(4):  # three of them are compared with Python
        svi.step(*program.args)
    with on_the_gpu.never_waits():
        losses = [svi.step(*program.args) for _ in range(3)]
    assert svi.engines == ["graph"]
    assert len(set(map(float, losses))) > 1


def test_a_vae_is_recorded_where_new_tensors_are_made_on_the_cpu(gpu):
    """Such as the rows of its plate, which Pyro counts."""
    vae, x = small_vae().cuda(), binary(64).cuda()
    svi = CompiledSVI(
        vae.model, vae.guide, pyro.optim.Adam({}), pyro.infer.Trace_ELBO(), engine="cuda-graph"
    )
    svi.step(x)
    assert svi.engines == ["cuda-graph"]


# ── Training, and what comes after it ────────────────────────────────────────────────────────


DATA = {
    "in memory": lambda: binary(640),
    "binarised again in every epoch": lambda: pyrovae.Examples(
        (255 * (0.1 + 0.8 * binary(640))).byte(), preprocessing=pyrovae.data.Binarize("dynamic")
    ),
    "standardised": lambda: pyrovae.Examples(
        binary(640), preprocessing=pyrovae.data.Standardize.of(binary(640))
    ),
}


@pytest.mark.parametrize("kind", DATA)
def test_training_waits_for_no_batch(kind, counting):
    counts = []
    for batch_size in (64, 16):
        counting.waits.clear()
        pyrovae.fit(
            small_vae(decoder=pyrovae.GaussianDecoder),
            DATA[kind](),
            epochs=2,
            batch_size=batch_size,
            engine="graph",
            device="cuda",
            progress=False,
        )
        counts.append(len([wait for wait in counting.waits if "faithfulness" not in wait]))
    # Twenty steps, and eighty.
    assert counts[1] - counts[0] < 20


def test_the_elbo_of_many_batches_is_waited_for_once(counting):
    vae, x = small_vae().cuda(), binary(40).cuda()
    batches = list(map(Batch, x.split(10)))
    structure = inspect_program(vae, batches[0])
    with evaluating(vae):
        counting.waits.clear()
        totals = sum_terms(vae, batches, structure)
    assert totals[-1] == 40
    assert len([wait for wait in counting.waits if "terms" in wait]) == 1


def test_a_trained_program_takes_examples_from_the_cpu(gpu):
    """Training leaves it on the GPU, and who asks it for something need not know."""
    x = binary(64)
    run = pyrovae.fit(small_vae(), x, epochs=2, device="cuda", progress=False)
    program, batch = run.program, Batch(x[:5])
    z = {"z": torch.zeros(4, 2)}
    for found in (
        pyrovae.sample(program, batch, 3),
        pyrovae.decode(program, z, batch),
        pyrovae.reconstruct(program, batch),
        pyrovae.interpolate(program, batch, Batch(x[5:10]), steps=3),
        pyrovae.traverse(program, batch, steps=3),
        pyrovae.manifold(program, batch, side=3),
    ):
        assert found.x.is_cuda
    assert log_evidence(program, x[:3], num_samples=10).isfinite().all()
    evaluation = pyrovae.evaluate(program, x, num_samples=10)
    assert not evaluation.log_evidence.is_cuda


def test_missing_entries_of_examples_on_the_cpu_are_imputed(gpu):
    x = binary(64)
    x[::3, 1] = torch.nan
    vae = pyrovae.VAE(
        pyrovae.StandardNormal(2),
        pyrovae.NanMaskedDecoder(pyrovae.BernoulliDecoder(pyrovae.MLP((2,), (6,), hidden=(8,)))),
        pyrovae.GaussianEncoder(pyrovae.NanMaskedInput(pyrovae.MLP((12,), (4,), hidden=(8,)))),
    ).cuda()
    found = pyrovae.impute(vae, Batch(x), count=2, num_samples=5)
    assert found.x.is_cuda
    assert found.x.isfinite().all()


@pytest.mark.parametrize(
    "prior",
    [
        # Its draws lie on the CPU, or are those of the guide and meet it in its density alone.
        lambda: dist.Normal(torch.zeros(6), 1.0).to_event(1),
        lambda: dist.Normal(0.0, 1.0).expand([6]).mask(torch.ones(6) > 0).to_event(1),
    ],
)
def test_a_program_of_two_devices_is_refused_with_the_remedy(prior, gpu):
    class OnTheCpu(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(6))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior())
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))

    with pytest.raises(pyrovae.InputError, match=r"device=x\.device"):
        pyrovae.fit(OnTheCpu(), binary(), device="cuda", progress=False)

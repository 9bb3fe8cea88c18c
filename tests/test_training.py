"""fit: what it trains, what it leaves alone, and what it does when things go wrong."""

import copy
import json
import math
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_for_tests import binary, same, small_vae, weights
from pyro.infer import (
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from recorder import stand_in
from torch import nn
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import loop, training
from pyrovae.errors import InputError, NonFiniteError
from pyrovae.inspection import inspect_program
from pyrovae.preparation import check_bound
from pyrovae.progress import Progress
from pyrovae.schedules import constant, cosine, linear
from pyrovae.svi.precision import in_precision

SGD = partial(torch.optim.SGD, lr=0.05)
quick = partial(pyrovae.fit, epochs=2, batch_size=50, progress=False)


# ── It learns what it should ──


def test_a_linear_vae_reaches_the_maximum_likelihood_of_probabilistic_pca():
    # Tipping & Bishop (1999): the maximum likelihood of x ~ N(mu, W W' + s^2 I) is closed.
    torch.manual_seed(0)
    size, dims, latents = 2000, 6, 2
    mixing = torch.linalg.qr(torch.randn(dims, dims))[0] * torch.tensor([2.0, 1.2, 0, 0, 0, 0])
    x = torch.randn(size, dims) @ mixing.T + 0.5 * torch.randn(size, dims) + torch.randn(dims)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = eigenvalues[latents:].mean()
    best = -0.5 * (
        eigenvalues[:latents].log().sum()
        + (dims - latents) * noise.log()
        + dims * (1 + math.log(2 * math.pi))
    )

    vae = pyrovae.VAE(
        prior=pyrovae.StandardNormal(latents),
        decoder=pyrovae.GaussianDecoder(
            pyrovae.MLP((latents,), (dims,), hidden=()), learn_scale=True
        ),
        encoder=pyrovae.GaussianEncoder(pyrovae.MLP((dims,), (2 * latents,), hidden=())),
    )
    run = quick(
        vae,
        x,
        bound=TraceMeanField_ELBO(),
        epochs=120,
        batch_size=100,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        lr_schedule=cosine(1.0, 0.0, 120 * 20),
    )
    found = run.evaluate(x, num_samples=200)

    assert found.elbo.mean().item() == pytest.approx(best.item(), abs=0.05)
    assert found.log_evidence.mean().item() == pytest.approx(best.item(), abs=0.05)
    assert found.active_units == latents


def test_two_programs_in_one_process_both_learn():
    x = binary()
    first, second = small_vae(seed=1), small_vae(seed=2)
    for vae in (first, second, copy.deepcopy(first)):
        before = weights(vae)
        run = quick(vae, x, valid=x, epochs=20, optimizer=partial(torch.optim.Adam, lr=1e-2))
        assert run.metrics[-1]["valid_elbo"] > run.metrics[0]["valid_elbo"] + 0.3
        assert all(
            not torch.equal(before[name], value) for name, value in vae.state_dict().items()
        )


def test_the_step_is_that_of_the_bound_per_example():
    x, vae = binary(40), small_vae()
    twin = copy.deepcopy(vae)
    quick(vae, x, optimizer=SGD, epochs=1, batch_size=40)

    order = next(pyrovae.Examples(x).shuffled(40, seed=0, epoch=1))
    loop.seed_generators(0, "step", 0)
    loss = Trace_ELBO().differentiable_loss(twin.model, twin.guide, order.x) / 40
    loss.backward()
    for name, parameter in twin.named_parameters():
        expected = parameter - 0.05 * parameter.grad
        torch.testing.assert_close(dict(vae.named_parameters())[name], expected, msg=name)


def test_a_subsampled_plate_reports_nats_per_example_too():
    class Subsampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0).expand([2]).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
                pyro.sample("z", dist.Normal(self.loc, 1.0).expand([2]).to_event(1))

    run = quick(Subsampled(), torch.zeros(200, 2), epochs=1)
    expected = -run.metrics[0]["train_elbo"]
    assert run.metrics[0]["loss"] == pytest.approx(expected, rel=0.2)


def test_kl_warmup_weighs_the_loss_and_not_what_is_reported():
    x = binary()
    warm = quick(small_vae(), x, valid=x, kl_warmup=4, epochs=1, batch_size=300)
    cold = quick(small_vae(), x, valid=x, epochs=1, batch_size=300)
    assert warm.metrics[0]["kl_weight"] == 0.0
    assert warm.metrics[0]["loss"] < cold.metrics[0]["loss"]
    both = warm.metrics[0]["log_likelihood"] - warm.metrics[0]["kl"]
    assert warm.metrics[0]["valid_elbo"] == pytest.approx(both, abs=1e-4)


def test_beta_enters_the_loss_and_not_what_is_reported():
    x = binary()
    losses, bounds = [], []
    for beta in (0.0, 1.0, 8.0):
        still = partial(torch.optim.SGD, lr=0.0)
        run = quick(small_vae(beta=beta), x, optimizer=still, epochs=1)
        losses.append(run.metrics[0]["loss"])
        bounds.append(run.evaluate(x, num_samples=50).elbo.mean().item())
    assert losses[0] < losses[1] < losses[2]
    assert bounds[0] == pytest.approx(bounds[1]) == pytest.approx(bounds[2])


def test_schedules():
    assert [linear(0, 1, 0)(t) for t in (0, 1)] == [1, 1]
    assert linear(1.0, 3.0, 4)(1) == 1.5
    assert cosine(1.0, 0.0, 10)(5) == pytest.approx(0.5)
    assert constant(0.3)(99) == 0.3


def test_a_schedule_scales_the_learning_rate():
    run = quick(small_vae(), binary(), lr_schedule=linear(1.0, 0.0, 10), epochs=3, batch_size=100)
    assert [r["lr"] for r in run.metrics] == pytest.approx([0.8e-3, 0.5e-3, 0.2e-3])


def test_a_loader_brings_the_size_of_its_batches():
    items = torch.utils.data.TensorDataset(binary(150))

    def size(loaded, batch_size=None):
        loader = torch.utils.data.DataLoader(items, batch_size=loaded)
        run = pyrovae.fit(small_vae(), loader, epochs=1, batch_size=batch_size, progress=False)
        return run.config["training"]["batch_size"]

    assert size(30) == 30
    assert size(None) == 128
    assert size(30, 40) == 40


def test_clipping_bounds_the_step():
    x, vae = binary(50), small_vae()
    before = weights(vae)
    run = quick(vae, x, optimizer=partial(torch.optim.SGD, lr=1.0), clip_norm=1e-3, epochs=1)
    moved = sum((p - before[n]).square().sum() for n, p in vae.named_parameters()).sqrt()
    assert run.metrics[0]["grad_norm"] > 1e-2
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_early_stopping_keeps_the_best_weights(monkeypatch):
    elbos = iter([-5.0, -3.0, -4.0, -4.5, -6.0, -7.0])
    seen = []

    def bounds(self, program, *_):
        seen.append(weights(program))
        return {"valid_elbo": next(elbos)}

    monkeypatch.setattr("pyrovae.monitoring.Monitor.measure", bounds)
    vae = small_vae()
    run = quick(vae, binary(), valid=binary(), epochs=6, patience=3)
    assert len(run.metrics) == 5
    assert same(weights(vae), seen[1])
    assert not same(seen[1], seen[4])


def test_patience_starts_after_the_warm_up(monkeypatch):
    elbos = iter([-1.0, -2.0, -6.0, -5.0, -4.0, -4.5, -4.6, -4.7, -4.8])
    monkeypatch.setattr(
        "pyrovae.monitoring.Monitor.measure", lambda *_: {"valid_elbo": next(elbos)}
    )
    run = quick(small_vae(), binary(), valid=binary(), epochs=9, kl_warmup=3, patience=2)
    assert len(run.metrics) == 7
    assert run.config["best_epoch"] == 5


def test_the_training_bound_is_not_that_of_the_first_rows_alone():
    x = torch.cat([torch.zeros(300, 6), torch.ones(300, 6)])
    vae = small_vae()
    with torch.no_grad():
        vae.decoder.net.layers[-1].bias.fill_(2.0)  # ones are likely, zeros are not
    run = quick(vae, x, valid=binary(100), optimizer=partial(torch.optim.SGD, lr=0.0))
    both = run.evaluate(x, num_samples=20).elbo
    halves = both[:300].mean().item(), both[300:].mean().item()
    assert min(halves) + 2 < run.metrics[0]["train_elbo"] < max(halves) - 2


def test_labels_reach_a_program_that_asks_for_them():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2, 6))

        def model(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.logits[y]).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))

    y = torch.arange(200) % 2
    x = y[:, None].expand(-1, 6).float()
    data = pyrovae.Examples(x, y)
    program = Conditional()
    run = quick(program, data, epochs=30, optimizer=partial(torch.optim.Adam, lr=0.1))
    assert run.metrics[-1]["train_elbo"] > -0.2
    assert (program.logits[1] > 3).all()
    assert (program.logits[0] < -3).all()
    with pytest.raises(InputError, match="labels"):
        quick(Conditional(), x)


def test_no_data_are_refused():
    with pytest.raises(InputError, match="train data are a NoneType"):
        quick(small_vae(), None)


@pytest.mark.parametrize("of", [np.float32, np.float64, torch.tensor])
def test_numbers_may_be_numpys_or_tensors(of, tmp_path):
    """As a `GridSearchCV` gives them; what is recorded is plain."""
    whole = torch.tensor if of is torch.tensor else np.int64
    x = binary()
    plain = {"epochs": 2, "batch_size": 50, "seed": 3, "patience": 2, "steps_per_replay": 1}
    given = {name: whole(value) for name, value in plain.items()}
    real = {"clip_norm": 0.5, "kl_warmup": 1.0}
    run, again = (
        pyrovae.fit(
            small_vae(),
            x,
            valid=x,
            **numbers,
            lr_schedule=lambda step, of=of: of(0.5),
            optimizer=partial(torch.optim.Adam, lr=rate),
            run_dir=tmp_path / name,
            progress=False,
        )
        for name, numbers, rate in (
            ("plain", plain | real, float(np.float32(1e-3))),
            ("given", given | {k: of(v) for k, v in real.items()}, np.float32(1e-3)),
        )
    )
    assert same(weights(run.program), weights(again.program))
    assert run.config["training"] == again.config["training"]
    found = again.evaluate(num_samples=whole(3), limit=whole(20), seed=whole(1))
    expected = run.evaluate(num_samples=3, limit=20, seed=1)
    assert torch.equal(found.elbo, expected.elbo)
    assert torch.equal(again.sample(whole(2)).x, run.sample(2).x)


def test_a_part_of_numpys_numbers_is_built_again(tmp_path):
    vae = small_vae()
    vae.prior = pyrovae.GaussianMixture(np.int64(2), components=np.int64(3), spread=np.float32(2))
    run = pyrovae.fit(vae, binary(), epochs=1, progress=False, run_dir=tmp_path / "run")
    loaded = pyrovae.load(tmp_path / "run")
    assert same(weights(loaded.program), weights(run.program))


@pytest.mark.parametrize("kind", ["array", "tensor", "bytes", "dataset"])
def test_data_from_python_come_in_any_container(kind):
    x = binary()
    given = {
        "array": x.numpy(),
        "tensor": x,
        "bytes": x.byte(),
        "dataset": TensorDataset(x, torch.arange(len(x))),
    }[kind]
    run = quick(small_vae(), given, epochs=1)
    reference = quick(small_vae(), x, epochs=1)
    assert run.metrics[0]["loss"] == pytest.approx(reference.metrics[0]["loss"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_examples_train_to_the_same_bits_as_those_in_memory(num_workers):
    x = binary(120)
    held, streamed = small_vae(), small_vae()
    quick(held, x, valid=x)
    examples = pyrovae.Examples(TensorDataset(x, torch.zeros(120)), num_workers=num_workers)
    run = quick(streamed, examples, valid=examples)
    assert same(weights(held), weights(streamed))
    assert run.evaluate(num_samples=5).num_examples == 120


# ── It is repeatable and leaves no trace ──


def test_equal_seeds_give_equal_bits_and_others_do_not():
    x = binary()
    first, again, other = small_vae(), small_vae(), small_vae()
    quick(first, x, seed=3)
    torch.rand(7)
    quick(again, x, seed=3)
    quick(other, x, seed=4)
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_the_callers_generators_and_store_are_left_alone():
    pyro.param("mine", torch.tensor(2.0))
    vae = small_vae()
    before = torch.get_rng_state()
    quick(vae, binary(), valid=binary()).evaluate(binary(), num_samples=5)
    assert torch.equal(before, torch.get_rng_state())
    assert list(pyro.get_param_store()) == ["mine"]


def test_the_store_is_not_consulted():
    vae = small_vae()
    vae.model(binary(5))
    store = pyro.get_param_store()
    for name in list(store):
        store[name] = torch.full_like(store[name], 9.0)
    run = quick(vae, binary(), epochs=1)
    assert run.metrics[0]["loss"] < 10


def test_nothing_is_written_without_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick(small_vae(), binary(), valid=binary()).evaluate(binary(), num_samples=5)
    assert list(tmp_path.iterdir()) == []


# ── It refuses before the first step ──


def grey(count=100):
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(0))


def nan_in(row):
    x = binary()
    x[row, 2] = math.nan
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (grey(), "--binarize.*continuous-bernoulli"),
        (torch.cat([binary(250), grey(1), binary(9)]), "example 250"),
        (binary() * 255, "0 to 255"),
        (nan_in(123), "example 123"),
        (binary(0), "empty"),
        (np.full((20, 6), np.inf), "infinite"),
    ],
)
def test_data_outside_the_support_are_refused_with_nothing_written(x, words, tmp_path):
    vae = small_vae()
    before = weights(vae)
    with pytest.raises(InputError, match=words):
        quick(vae, x, run_dir=tmp_path / "run")
    assert same(before, weights(vae))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"kl_warmup": -1}, "kl_warmup"),
        ({"kl_warmup": math.nan}, "kl_warmup is nan.*finite"),
        ({"kl_warmup": math.inf}, "kl_warmup is inf.*finite"),
        ({"clip_norm": math.nan}, "clip_norm is nan.*finite"),
        ({"patience": 3}, "validation"),
        ({"bound": TraceGraph_ELBO()}, "differentiable_loss"),
        ({"device": "no-such-device"}, "--device cpu"),
        ({"epochs": 1.5}, "epochs is 1.5. Give a whole"),
        ({"batch_size": 2.5}, "batch_size is 2.5. Give a whole"),
        ({"batch_size": True}, "batch_size is True. Give a whole"),
        ({"seed": 1.5}, "seed is 1.5. Give a whole number.$"),
        ({"seed": 2**64}, "of more than 64 bits"),
        ({"lr_schedule": 1.0}, "lr_schedule 1.0 is no function.*cosine"),
        ({"bound": pyrovae.IWAE}, r"the class IWAE, .* Give IWAE\("),
        ({"bound": TraceGraph_ELBO}, r"the class TraceGraph_ELBO, .* Give"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, r"SGD.*partial\("),
        ({"optimizer": pyro.optim.Adam({"lr": 0.1})}, r"PyroOptim.*partial\("),
        ({"clip_norm": "x"}, "clip_norm is 'x'. Give a finite number"),
        ({"kl_warmup": [1]}, r"kl_warmup is \[1\]. Give a finite number"),
        ({"lr_schedule": lambda step: "x"}, "lr_schedule gives 'x' at step 0.*cosine"),
        ({"lr_schedule": lambda step: -1.0}, "lr_schedule gives -1.0 at step 0"),
        ({"lr_schedule": lambda: 1.0}, "lr_schedule cannot be called with a step"),
        ({"on_epoch": 3}, "on_epoch is 3, and no function"),
        ({"config": 3}, "config is 3"),
        ({"config": {"a": {"b": object()}}}, "config cannot be written .*not JSON"),
        ({"run_dir": 3}, "run_dir is 3"),
        ({"on_epoch": lambda: None}, "on_epoch cannot be called with a run"),
        ({"optimizer": partial(torch.optim.Adam, lr="x")}, "optimizer cannot be made"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS asks for the loss several times"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        quick(small_vae(), binary(), **options)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split_of_another_shape_that_the_program_does_not_take_is_refused(split, tmp_path):
    given = {split: torch.zeros(5, 4)}
    with pytest.raises(InputError, match=rf"{split} data are of shape \(4,\) .* of \(6,\)"):
        quick(small_vae(), binary(), run_dir=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


DISCRETE = "MeanField_ELBO needs draws .* latent 'z' are discrete.*VIMCO"


@pytest.mark.parametrize(
    ("prior", "encoder", "bound", "words"),
    [
        (pyrovae.BernoulliPrior, pyrovae.BernoulliEncoder, pyrovae.bounds.IWAE(2), "VIMCO"),
        (pyrovae.BernoulliPrior, pyrovae.BernoulliEncoder, TraceMeanField_ELBO(), DISCRETE),
        (pyrovae.BernoulliPrior, pyrovae.BernoulliEncoder, JitTraceMeanField_ELBO(), DISCRETE),
        (
            pyrovae.StandardNormal,
            pyrovae.GaussianEncoder,
            TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True),
            "infinite losses by design.*DReG",
        ),
        (
            lambda dim: pyrovae.GaussianMixture(dim, components=2),
            pyrovae.GaussianEncoder,
            pyrovae.bounds.ELBO(kl=pyrovae.bounds.FreeBits()),
            "per_dim=False",
        ),
    ],
    ids=[
        "discrete draws",
        "discrete draws and Pyro's closed KL",
        "discrete draws and its twin that is traced",
        "losses that are infinite",
        "a KL that is no sum",
    ],
)
def test_a_bound_that_cannot_be_had_is_refused_with_nothing_written(
    prior, encoder, bound, words, tmp_path
):
    vae, x = small_vae(), binary()
    vae.prior, size = prior(2), encoder.net_shape(2)
    vae.encoder = encoder(pyrovae.MLP((6,), size, hidden=(4,)))
    vae.train()
    generator = torch.get_rng_state()
    with pytest.raises(InputError, match=words):
        quick(vae, x, bound=bound, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in vae.modules())


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_pyros_closed_kl_is_refused_where_the_model_draws_alone(tmp_path):
    class HalfGuided(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                u = pyro.sample("u", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(u, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x, 1.0))

    quick(HalfGuided(), torch.randn(20), bound=Trace_ELBO())
    with pytest.raises(InputError, match="'u' is drawn by the model alone"):
        quick(HalfGuided(), torch.randn(20), bound=TraceMeanField_ELBO(), run_dir=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_bound_is_tried_without_a_trace():
    class Spied(pyrovae.bounds.ELBO):
        def _estimate(self, draws):
            sizes.append(len(draws[0].log_weight[0]))
            return super()._estimate(draws)

    sizes, weighed = [], []
    for bound in (Spied(), pyrovae.bounds.ELBO()):
        vae = small_vae()
        quick(vae, binary(), bound=bound)
        weighed.append(weights(vae))
        assert not pyro.get_param_store().keys()
    assert sizes[0] == 3, "and not a batch"
    assert same(*weighed)

    vae = small_vae()
    vae.encoder.net = nn.Sequential(nn.BatchNorm1d(6), vae.encoder.net)
    before, few = weights(vae), pyrovae.Examples(binary()).head(3)
    generator = torch.get_rng_state()
    check_bound(vae, inspect_program(vae, few), Trace_ELBO(), few)
    assert same(before, weights(vae))
    assert torch.equal(torch.get_rng_state(), generator)
    assert not pyro.get_param_store().keys()


def test_a_parameter_that_no_module_holds_is_refused_by_name():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(6))

        def model(self, x):
            scale = pyro.param("loose_scale", torch.ones(6))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, scale).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))

    with pytest.raises(InputError, match="loose_scale"):
        quick(Loose(), binary())


@pytest.mark.parametrize("program", [object(), nn.Linear(2, 2)])
def test_what_is_no_program_is_refused(program):
    with pytest.raises(InputError, match="model and guide"):
        quick(program, binary())


def test_a_frozen_program_is_refused():
    with pytest.raises(InputError, match="no parameter to train"):
        quick(small_vae().requires_grad_(False), binary())


def test_a_program_without_gradients_is_refused():
    vae = small_vae()
    vae.model = torch.no_grad()(vae.model)
    vae.guide = torch.no_grad()(vae.guide)
    with pytest.raises(InputError, match="no parameter to train"):
        quick(vae, binary())


def test_an_existing_directory_is_not_overwritten(tmp_path):
    (tmp_path / "precious").write_text("1")
    with pytest.raises(InputError, match="exists already"):
        quick(small_vae(), binary(), run_dir=tmp_path)
    assert (tmp_path / "precious").read_text() == "1"


# ── It stops before NaN reaches a weight ──


class Explodes(nn.Module):
    """A program whose likelihood, or gradient, goes bad at the n-th call of its model."""

    def __init__(self, at, where):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(6))
        self.register_buffer("zero", torch.zeros(6))
        self.at, self.where = at, where

    def model(self, x):
        loc = self.loc
        if self.training:
            self.at -= 1
        if self.at <= 0 and self.where == "likelihood":
            loc = loc + math.nan
        if self.at <= 0 and self.where == "gradient":
            # sqrt(0) is 0, and its derivative infinite.
            loc = loc + (self.loc * 0).sqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.zero, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.zero, 1.0).to_event(1))


@pytest.mark.parametrize(("where", "words"), [("likelihood", "site 'x'"), ("gradient", "'loc'")])
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_nan_stops_training_before_the_step(where, words, tmp_path):
    # The run that prepares the first step is one more.
    program = Explodes(at=10, where=where)
    before = {}

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            before["weights"] = weights(program)

    with pytest.raises(NonFiniteError, match=rf"epoch 2, batch 2 \(step 8\).*{words}"):
        quick(
            program,
            binary(),
            optimizer=partial(Recording, lr=0.1),
            run_dir=tmp_path / "run",
        )
    assert same(before["weights"], weights(program))
    saved = pyrovae.load(tmp_path / "run", program=Explodes(0, ""))
    assert same(before["weights"], weights(saved.program))


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_buffers_are_as_they_were_before_a_step_that_failed():
    vae = small_vae()
    vae.decoder.net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6))
    vae.decoder.net.out_shape = (6,)
    x = binary(50)
    run = quick(vae, x, epochs=1)
    with torch.no_grad():
        vae.decoder.net[0].bias[0] = math.nan
    before = weights(vae)
    with pytest.raises(NonFiniteError, match=r"parameter 'decoder\.net\.0\.bias'"):
        quick(run.program, x, epochs=1)
    for name, value in weights(vae).items():
        torch.testing.assert_close(value, before[name], equal_nan=True)


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_single_row_that_is_left_over_is_not_normalised(engine):
    vae = small_vae()
    vae.decoder.net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6))
    vae.decoder.net.out_shape = (6,)
    before = weights(vae)
    for rows, batch_size in ((41, 20), (10, 1)):
        with pytest.raises(InputError, match=rf"single row.*batch-size for {rows} rows"):
            quick(vae, binary(rows), batch_size=batch_size, engine=engine, epochs=1)
    assert same(before, weights(vae))
    quick(vae, binary(42), batch_size=20, engine=engine, epochs=1)


def test_an_interrupt_saves_what_there_is(tmp_path):
    class Interrupted(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            Interrupted.steps += 1
            if Interrupted.steps == 9:
                signal.raise_signal(signal.SIGINT)
            super().step(closure)

    vae = small_vae()
    with pytest.raises(KeyboardInterrupt):
        quick(vae, binary(), optimizer=partial(Interrupted, lr=0.1), run_dir=tmp_path / "run")
    saved = pyrovae.load(tmp_path / "run")
    assert same(weights(vae), weights(saved.program))
    assert len(saved.metrics) == 1


def test_a_disk_that_fills_is_one_sentence_and_leaves_the_metrics(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyrovae.checkpoint._write_synced", full)
    with pytest.raises(pyrovae.CheckpointError, match=r"No space left on device.*--run-dir"):
        quick(small_vae(), binary(), run_dir=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


@pytest.mark.usefixtures("gpu")
def test_the_gpu_trains_to_the_same_bound():
    x = binary(2000)
    cpu = quick(small_vae(), x, epochs=10, device="cpu").evaluate(num_samples=100)
    gpu = quick(small_vae(), x, epochs=10, device="cuda").evaluate(num_samples=100)
    assert gpu.elbo.mean().item() == pytest.approx(cpu.elbo.mean().item(), abs=0.1)


# ── Back ends ──


def fitted(engine, *, seed=0, **options):
    torch.manual_seed(seed)
    # A bias before a batch norm has no gradient but rounding, which Adam would blow up.
    first = nn.Linear(6, 16, bias=False)
    vae = pyrovae.VAE(
        prior=pyrovae.StandardNormal(2),
        decoder=pyrovae.BernoulliDecoder(pyrovae.MLP((2,), (6,), hidden=(16,))),
        encoder=pyrovae.GaussianEncoder(
            nn.Sequential(first, nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, 4))
        ),
    )
    grey = (255 * (0.1 + 0.8 * binary(130))).byte()
    data = pyrovae.Examples(grey, preprocessing=pyrovae.data.Binarize("dynamic"))
    options = {"epochs": 3, "kl_warmup": 2, "clip_norm": 3.0, **options}
    run = quick(vae, data, valid=data, engine=engine, **options)
    return run, weights(vae)


@pytest.mark.parametrize("engine", ["graph", "inductor", "cuda-graph"])
def test_every_back_end_trains_alike(engine, monkeypatch):
    if engine == "cuda-graph":
        stand_in(monkeypatch)
    # Batches of 50, 50 and 30, redrawn pixels, a schedule of the KL from 0, clipping, a buffer.
    reference, expected = fitted("eager")
    run, found = fitted(engine)
    assert run.config["engine"]["name"] == engine
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    for ours, theirs in zip(run.metrics, reference.metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["kl_weight"] == theirs["kl_weight"]


@pytest.mark.parametrize("engine", ["eager", "graph", "inductor"])
def test_a_back_end_gives_the_same_bits_again(engine):
    assert same(fitted(engine)[1], fitted(engine)[1])


def test_only_the_whole_batch_is_compiled():
    steppers = []

    class Watched(training.Stepper):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            steppers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Stepper", Watched)
        fitted("inductor")
        fitted(None)
        fitted("inductor", batch_size=65)
    assert [stepper.engines for stepper in steppers] == [
        ["inductor", "graph"],
        ["eager"],
        ["inductor"],
    ]


def test_the_back_end_is_what_so_many_steps_are_worth(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(training, "default_engine", lambda device: "compiled")
    assert training.engine_for(499, cpu) == "eager"
    assert training.engine_for(4999, cpu) == "graph"
    assert training.engine_for(5000, cpu) == "compiled"


def test_the_back_end_is_recorded_before_the_first_step(tmp_path):
    class Stop(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted("graph", run_dir=tmp_path / "run", optimizer=partial(Stop, lr=0.1))
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["engine"]
    assert recorded == {
        "name": "graph",
        "options": {},
        "precision": "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


@pytest.mark.parametrize("option", [{"engine": "fast"}, {"precision": "float8"}])
def test_an_unknown_back_end_or_precision_is_refused(option):
    with pytest.raises(InputError, match=next(iter(option.values()))):
        quick(small_vae(), binary(), **option)


def test_bfloat16_networks_train_to_the_same_bound():
    x = binary(400)
    bounds = []
    for precision in ("float32", "bf16"):
        run = quick(
            small_vae(),
            x,
            epochs=40,
            optimizer=partial(torch.optim.Adam, lr=1e-2),
            precision=precision,
            engine="graph",
        )
        assert run.config["engine"]["precision"] == precision
        bounds.append(run.evaluate(x, num_samples=100).elbo.mean().item())
    assert bounds[0] != bounds[1]
    assert bounds[1] == pytest.approx(bounds[0], rel=2e-3)


def test_tf32_is_refused_off_a_gpu_before_the_first_step(tmp_path):
    vae = small_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(InputError, match="tf32 is arithmetic of a GPU"):
        quick(vae, binary(), precision="tf32", run_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    assert same(before, vae.state_dict())
    svi = pyrovae.CompiledSVI(
        vae.model, vae.guide, pyro.optim.Adam({}), Trace_ELBO(), precision="tf32"
    )
    with pytest.raises(InputError, match="tf32 is arithmetic of a GPU"):
        svi.step(binary())
    assert same(before, vae.state_dict())


def test_tf32_is_for_the_steps_alone(tmp_path):
    """In a process of its own, whose settings nobody has set yet."""
    code = """
from contextlib import suppress
import pyro, pyrovae, torch
from pyro.infer import Trace_ELBO
from pyrovae.svi import stepper
from pyrovae.svi.precision import arithmetic

def settings():
    newer = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    found = [place.fp32_precision for place in newer]
    with suppress(RuntimeError):  # where the newer says otherwise
        found.append(torch.get_float32_matmul_precision())
        found.append(torch.backends.cuda.matmul.allow_tf32)
    return found

seen, before = set(), settings()
stepper.check_device = lambda precision, gpus: None  # as on a GPU
def model(x):
    seen.add((torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()))
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("x", pyro.distributions.Normal(loc, 1.0), obs=x)
svi = pyrovae.CompiledSVI(
    model, lambda x: None, pyro.optim.Adam({}), Trace_ELBO(), engine="graph", precision="tf32"
)
for _ in range(3):
    svi.step(torch.ones(()))
assert svi.engines == ["graph"] and seen == {("tf32", "high")}, seen
with suppress(TypeError):
    svi.step()
assert settings() == before, (before, settings())

set_older = torch.set_float32_matmul_precision
set_newer = lambda value: setattr(torch.backends.cuda.matmul, "fp32_precision", value)
for change, value in [
    (set_older, "high"), (set_older, "highest"), (set_newer, "tf32"), (set_newer, "ieee"),
    (lambda value: setattr(torch.backends.cuda.matmul, "allow_tf32", value), True),
]:
    change(value)
    before = settings()
    with suppress(KeyError), arithmetic("tf32"):
        assert settings() == ["tf32", "tf32", "high", True]
        raise KeyError
    assert settings()[: len(before)] == before, (value, before, settings())
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.gpu
@pytest.mark.on_a_real_gpu
def test_a_gpu_trains_in_tf32():
    losses = {}
    for precision in ("float32", "tf32"):
        vae = small_vae((64,)).cuda()
        svi = pyrovae.CompiledSVI(
            vae.model, vae.guide, pyro.optim.Adam({}), Trace_ELBO(), precision=precision
        )
        torch.manual_seed(0)
        losses[precision] = float(svi.step(binary(width=64).cuda()))
    assert losses["tf32"] != losses["float32"]
    assert losses["tf32"] == pytest.approx(losses["float32"], rel=1e-2)


def test_probabilities_stay_in_float32_where_networks_do_not():
    seen = set()

    class Spy(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            out = self.net(x)
            seen.add(out.dtype)
            seen.update(p.dtype for p in self.parameters())
            return out

    vae = small_vae()
    vae.encoder.net, vae.decoder.net = Spy(vae.encoder.net), Spy(vae.decoder.net)
    vae.decoder.net.out_shape = (6,)
    run = quick(vae, binary(), precision="bf16", epochs=1)
    assert seen == {torch.float32}
    assert run.metrics != quick(small_vae(), binary(), epochs=1).metrics


@pytest.mark.parametrize("layer", ["Conv1d", "Conv2d", "ConvTranspose2d", "Conv3d"])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_a_bias_of_a_bfloat16_layer_goes_where_it_belongs(layer, batch):
    dims = int(layer[-2])
    torch.manual_seed(0)
    module = getattr(nn, layer)(3, 3, 1)
    nn.init.zeros_(module.weight)
    x = torch.randn(*batch, 3, *[3] * dims)
    torch.testing.assert_close(in_precision("bf16", module)(x), module(x))


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_the_cause_of_a_nan_is_found_on_the_pixels_that_were_drawn():
    class Broken(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.left = net, 20
            self.out_shape = net.out_shape

        def forward(self, z):
            self.left -= self.training
            return self.net(z) * (math.nan if self.left < 0 else 1.0)

    vae = small_vae()
    vae.decoder.net = Broken(vae.decoder.net)
    grey = pyrovae.Examples(
        (200 * binary(130)).byte(), preprocessing=pyrovae.data.Binarize("dynamic")
    )
    with pytest.raises(NonFiniteError, match="log-probability of site 'x'"):
        quick(vae, grey, epochs=20)


@pytest.mark.parametrize(("rate", "words"), [(12345.6, "12,346"), (0.1679, "0.17")])
def test_the_line_of_an_epoch_has_its_speed(rate, words, capsys):
    record = {"epoch": 2, "train_elbo": -206.123, "kl": 0.71, "examples_per_second": rate}
    with Progress(10, 1, shown=True) as progress:
        progress.epoch(record)
    expected = f"epoch   2/10: train ELBO -206.12, KL 0.71 ({words} examples/s)\n"
    assert capsys.readouterr().out == expected

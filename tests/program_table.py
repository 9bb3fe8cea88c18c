"""Programs of every kind that `CompiledSVI` is for, each with an estimator and arguments.

An entry makes its program anew, in torch's default dtype, from seed 0.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyrovae


class Entry(NamedTuple):
    """What `SVI` takes, and the arguments of a step."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Any
    args: tuple[Any, ...]


def binary(*shape):
    return (torch.rand(*shape) < 0.4).to(torch.get_default_dtype())


def vae(prior=None, *, width=6, latent_dim=3):
    return pyrovae.VAE(
        prior=prior or pyrovae.StandardNormal(latent_dim),
        decoder=pyrovae.BernoulliDecoder(pyrovae.MLP((latent_dim,), (width,), hidden=(8,))),
        encoder=pyrovae.GaussianEncoder(pyrovae.MLP((width,), (2 * latent_dim,), hidden=(8,))),
    )


def plain(loss):
    program = vae()
    return Entry(program.model, program.guide, loss, (binary(10, 6),))


def mixture_prior(loss):
    program = vae(pyrovae.GaussianMixture(3, components=4))
    return Entry(program.model, program.guide, loss, (binary(10, 6),))


class FlowPrior(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.flow = transforms.affine_coupling(dim, hidden_dims=[8])
        self.dim = dim

    def forward(self):
        base = dist.Normal(torch.zeros(self.dim), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.flow])


def flow_prior(loss):
    program = vae(FlowPrior(3))
    return Entry(program.model, program.guide, loss, (binary(10, 6),))


class Conditional(nn.Module):
    """p(z) p(x | z, y): the label is an argument, by keyword."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6 + 2, 4), nn.Linear(2 + 2, 6)

    def model(self, x, y):
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            logits = self.decoder(torch.cat([z, y], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x, y):
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def conditional(loss):
    program = Conditional()
    y = torch.eye(2)[torch.arange(10) % 2]
    return Entry(program.model, program.guide, loss, (binary(10, 6), y))


class Hierarchical(nn.Module):
    """p(z2) p(z1 | z2) p(x | z1) with a top-down guide."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.out = nn.Linear(6, 6), nn.Linear(2, 6), nn.Linear(3, 6)
        self.top = nn.Linear(6, 4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc, log_scale = self.down(z2).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(z1)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            hidden = self.up(x)
            loc, log_scale = self.top(hidden).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = (hidden + self.down(z2)).chunk(2, -1)
            pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))


def hierarchical(loss):
    program = Hierarchical()

    def model(x):
        pyro.module("hierarchical", program)
        program.model(x)

    return Entry(model, program.guide, loss, (binary(10, 6),))


def lazy_parameters(loss):
    """Parameters that the first run creates, one of them constrained, one random."""

    def model(x):
        loc = pyro.param("loc", lambda: torch.ones(3))
        scale = pyro.param("scale", lambda: torch.ones(3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", lambda: 0.1 * torch.ones(3, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 0.5).to_event(1))

    return Entry(model, guide, loss, (torch.randn(10, 3),))


def masks_and_scales(loss):
    """A plate with a mask, another scale at every site, and a weight that is a tensor."""
    weight = torch.tensor(0.3)

    def model(x, seen):
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", 50, subsample_size=len(x)), poutine.mask(mask=seen):
            with poutine.scale(scale=weight):
                z = pyro.sample("z", dist.Normal(0.0, 2.0))
            with poutine.scale(scale=2.5):
                pyro.sample("x", dist.StudentT(4.0, z, scale), obs=x)

    def guide(x, seen):
        slope = pyro.param("slope", torch.ones(()))
        with pyro.plate("data", 50, subsample_size=len(x)), poutine.mask(mask=seen):
            with poutine.scale(scale=weight):
                pyro.sample("z", dist.Normal(slope * x, 0.7))

    return Entry(model, guide, loss, (torch.randn(10), torch.arange(10) % 3 > 0))


def global_latents(loss):
    """Logistic regression with a plate that is subsampled by given rows, and an autoguide."""
    x, y = torch.randn(40, 3), binary(40)

    def model(rows):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, 3.0))
        with pyro.plate("data", 40, subsample=rows) as chosen:
            logits = (x[chosen] * weight).sum(-1) + bias
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y[chosen])

    return Entry(model, AutoNormal(model), loss, (torch.arange(0, 40, 3),))


class Shift(nn.Module):
    """A VAE whose means are shifted, all alike: a latent outside the plate of its examples."""

    def __init__(self):
        super().__init__()
        self.vae = vae()
        self.loc, self.log_scale = (nn.Parameter(-torch.ones(6)) for _ in range(2))

    def model(self, x):
        shift = pyro.sample("shift", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        with pyro.plate("data", 50, subsample=x):
            z = pyro.sample("z", self.vae.prior())
            logits = self.vae.decoder(z).base_dist.logits + shift
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("shift", self)
        pyro.sample("shift", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
        with pyro.plate("data", 50, subsample=x):
            pyro.sample("z", self.vae.encoder(x))


def shared_shift(loss):
    program = Shift()
    return Entry(program.model, program.guide, loss, (binary(10, 6),))


def correlated_guide(loss):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return Entry(model, AutoMultivariateNormal(model), loss, (torch.randn(10, 3) + 2,))


def score_function(loss):
    """A Bernoulli latent without enumeration: its gradient comes from the score."""

    def model(x):
        p = pyro.param("p", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=slope * x))

    return Entry(model, guide, loss, (torch.randn(10) + 1,))


def gamma_latent(loss):
    """Noise by rejection."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        shape = pyro.param("shape", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(shape + x, 2.0))

    return Entry(model, guide, loss, (torch.arange(10).to(torch.get_default_dtype()),))


def enumerated_in_the_guide(loss):
    """The classes of a mixture, summed over in the guide."""
    model, _, _, args = mixture_by_enumeration(loss)

    @config_enumerate
    def guide(x):
        pyro.param("loc", torch.tensor([-1.0, 0.0, 2.0]))
        logits = pyro.param("logits", torch.zeros(len(x), 3))
        with pyro.plate("data", len(x)):
            pyro.sample("class", dist.Categorical(logits=logits))

    return Entry(model, guide, loss, args)


def one_after_the_other(loss):
    """Two Bernoulli latents, enumerated one value at a time, and a third by its score."""

    def model(x):
        p = pyro.param(
            "p", torch.tensor([0.4, 0.3, 0.6]), constraint=dist.constraints.unit_interval
        )
        kinds = [pyro.sample(f"z{n}", dist.Bernoulli(p[n])) for n in range(3)]
        loc = kinds[0] + 2 * kinds[1] - kinds[2]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        q = pyro.param("q", torch.tensor([0.1, -0.5, 0.3]))
        for n in range(3):
            infer = {"enumerate": "sequential"} if n < 2 else {}
            pyro.sample(f"z{n}", dist.Bernoulli(logits=q[n]), infer=infer)

    return Entry(model, guide, loss, (torch.randn(10),))


def one_after_the_other_in_a_plate(loss):
    """What stands outside the plate must not count once for every value inside."""

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        p = pyro.param("p", torch.tensor(0.4), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(loc + z, 1.0), obs=x)

    def guide(x):
        q = pyro.param("q", torch.tensor([0.1, -0.5]))
        pyro.sample("loc", dist.Normal(q[0], 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=q[1]), infer={"enumerate": "sequential"})

    return Entry(model, guide, loss, (torch.randn(10),))


def scaled_mixture(loss):
    model, guide, _, args = mixture_by_enumeration(loss)
    scale = torch.tensor(0.3)
    return Entry(poutine.scale(model, scale), poutine.scale(guide, scale), loss, args)


def impossible_class(loss):
    """A class whose probability is exactly zero, and whose cost is therefore infinite."""
    model, _, _, args = mixture_by_enumeration(loss)

    @config_enumerate
    def guide(x):
        logits = pyro.param("q", torch.tensor([0.3, 0.7]))
        logits = torch.cat([logits, torch.tensor([-math.inf])])
        with pyro.plate("data", 100, subsample_size=len(x)):
            pyro.sample("class", dist.Categorical(logits=logits, validate_args=False))

    return Entry(model, guide, loss, args)


def mixture_by_enumeration(loss):
    """The classes of a mixture, summed over in the model."""

    @config_enumerate
    def model(x):
        share = pyro.param("share", torch.ones(3) / 3, constraint=dist.constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 2.0]))
        with pyro.plate("data", 100, subsample_size=len(x)):
            kind = pyro.sample("class", dist.Categorical(share))
            pyro.sample("x", dist.Normal(loc[kind], 1.0), obs=x)

    def guide(x):
        pass

    return Entry(model, guide, loss, (torch.randn(10),))


class Convolutional(nn.Module):
    """Convolutions, batch normalisation and dropout, in training mode."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(4 * 4 * 4, 4),
        )
        self.decoder = nn.Sequential(
            nn.Linear(2, 4 * 4 * 4),
            nn.Unflatten(-1, (4, 4, 4)),
            nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1),
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("convolutional", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def convolutional(loss):
    program = Convolutional()
    return Entry(program.model, program.guide, loss, (binary(6, 1, 8, 8),))


class Bayesian(PyroModule):
    """Weights as sites, and a constrained parameter of a PyroModule."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        # What is expanded goes on validating, as it was made with validation on.
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, x, y):
        loc = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, self.scale), obs=y)


def bayesian_regression(loss):
    model = Bayesian()
    return Entry(model, AutoNormal(model), loss, (torch.randn(12, 3), torch.randn(12)))


def vectorized(number=5):
    return Trace_ELBO(num_particles=number, vectorize_particles=True, max_plate_nesting=1)


TABLE = {
    "plain": lambda: plain(Trace_ELBO()),
    "plain, mean field": lambda: plain(TraceMeanField_ELBO()),
    "plain, 3 particles": lambda: plain(Trace_ELBO(num_particles=3)),
    "plain, 5 vectorised particles": lambda: plain(vectorized()),
    "plain, importance weighted": lambda: plain(RenyiELBO(num_particles=4)),
    "plain, Renyi 0.5, vectorised": lambda: plain(
        RenyiELBO(0.5, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    ),
    "mixture prior": lambda: mixture_prior(Trace_ELBO()),
    "flow prior": lambda: flow_prior(Trace_ELBO()),
    "conditional": lambda: conditional(Trace_ELBO()),
    "hierarchical": lambda: hierarchical(TraceMeanField_ELBO()),
    "lazy parameters": lambda: lazy_parameters(Trace_ELBO()),
    "masks and scales": lambda: masks_and_scales(Trace_ELBO()),
    "masks and scales, mean field": lambda: masks_and_scales(TraceMeanField_ELBO()),
    "global latents": lambda: global_latents(Trace_ELBO()),
    "correlated guide": lambda: correlated_guide(Trace_ELBO(num_particles=2)),
    "score function": lambda: score_function(Trace_ELBO()),
    "score function, vectorised": lambda: score_function(vectorized()),
    "score function, Renyi": lambda: score_function(RenyiELBO(0.3, num_particles=3)),
    "gamma latent": lambda: gamma_latent(Trace_ELBO()),
    "enumerated in the guide": lambda: enumerated_in_the_guide(
        TraceEnum_ELBO(max_plate_nesting=1)
    ),
    "enumerated in the model": lambda: mixture_by_enumeration(TraceEnum_ELBO(max_plate_nesting=1)),
    "enumerated, a scale that is a tensor": lambda: scaled_mixture(
        TraceEnum_ELBO(max_plate_nesting=1)
    ),
    "enumerated, 2 particles": lambda: one_after_the_other(
        TraceEnum_ELBO(max_plate_nesting=1, num_particles=2)
    ),
    "enumerated in a plate": lambda: one_after_the_other_in_a_plate(
        TraceEnum_ELBO(max_plate_nesting=1)
    ),
    "an impossible class": lambda: impossible_class(TraceEnum_ELBO(max_plate_nesting=1)),
    "score function under TraceEnum": lambda: score_function(
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    ),
    "convolutional": lambda: convolutional(Trace_ELBO()),
    "Bayesian regression": lambda: bayesian_regression(Trace_ELBO()),
    # Our bounds, which stock SVI takes too.
    "ELBO": lambda: plain(pyrovae.ELBO()),
    "ELBO, free bits": lambda: plain(pyrovae.ELBO(kl=pyrovae.FreeBits(0.2))),
    "ELBO, free bits of whole sites": lambda: hierarchical(
        pyrovae.ELBO(kl=pyrovae.FreeBits(0.2, per_dim=False))
    ),
    "ELBO, capacity": lambda: hierarchical(pyrovae.ELBO(kl=pyrovae.Capacity(2.0))),
    "ELBO, balanced KL": lambda: hierarchical(pyrovae.ELBO(kl=pyrovae.BalancedKL())),
    "ELBO of a mixture prior": lambda: mixture_prior(pyrovae.ELBO(num_particles=3)),
    "ELBO of masks and scales": lambda: masks_and_scales(pyrovae.ELBO()),
    "ELBO of global latents": lambda: global_latents(pyrovae.ELBO(3, exact_kl=True)),
    "ELBO, a latent that all share": lambda: shared_shift(pyrovae.ELBO(3)),
    "IWAE, a latent that all share": lambda: shared_shift(pyrovae.IWAE(3)),
    "DReG, a latent that all share": lambda: shared_shift(pyrovae.DReG(3)),
    "IWAE": lambda: hierarchical(pyrovae.IWAE(5)),
    "DReG": lambda: flow_prior(pyrovae.DReG(5)),
    "sticking the landing": lambda: flow_prior(pyrovae.StickingTheLanding()),
    "VIMCO": lambda: score_function(pyrovae.VIMCO(5)),
    "wake-sleep": lambda: hierarchical(pyrovae.ReweightedWakeSleep(5, sleep=0.5)),
    "total correlation": lambda: plain(pyrovae.TotalCorrelation()),
    "MMD": lambda: plain(pyrovae.MMD()),
    "MMD to a mixture, whose draws have no path": lambda: mixture_prior(pyrovae.MMD()),
}


def entry(name):
    """The entry of a name, from seed 0."""
    torch.manual_seed(0)
    return TABLE[name]()


# ── A step of it ─────────────────────────────────────────────────────────────────────────────


class Step(NamedTuple):
    """Loss and gradients of a step, and the generators of either device after it."""

    loss: float
    gradients: dict[str, torch.Tensor]
    noise: list[torch.Tensor]


class Recorder(torch.optim.Optimizer):
    """Keeps the gradients that it is given, and changes nothing."""

    def __init__(self, params, found):
        super().__init__(params, {})
        self.found = found

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            # Our modules register under a number of their own.
            name = pyro.get_param_store().param_name(parameter).split("$$$")[-1]
            if parameter.grad is not None:
                self.found[name] = parameter.grad.clone()


def second_step(name, make):
    """A second step from seed 1.

    The first one may draw for its own purposes: to guess a nesting, or to make a parameter.
    """
    pyro.clear_param_store()
    program, found = entry(name), {}
    optimizer = pyro.optim.PyroOptim(Recorder, {"found": found})
    svi = make(program.model, program.guide, optimizer, program.loss)
    svi.step(*program.args)
    pyro.set_rng_seed(1)
    loss = float(svi.step(*program.args))
    of_gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return Step(loss, dict(found), [torch.get_rng_state(), *of_gpu])


def check_alike(found, expected, tolerance):
    """Refuses a step that is another one."""
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    assert found.gradients.keys() == expected.gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.gradients.values())
    for key, gradient in expected.gradients.items():
        error = (found.gradients[key] - gradient).abs().max().item()
        assert error <= tolerance * max(gradient.abs().max().item(), 1e-3 * largest), key
    assert all(map(torch.equal, found.noise, expected.noise))

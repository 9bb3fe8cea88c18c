"""Programs that are no VAEs, as their users write them, on synthetic data.

Each is built by a function of `small`, whether for a smoke test, and comes with the estimator
and the learning rate that suit it. Parameters are created by the first run, in the parameter
store of that moment.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn


class Program(NamedTuple):
    """What `SVI` takes, and the arguments of a step."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Any
    args: tuple[Any, ...]
    rate: float = 0.01


def logistic_regression(small):
    """Bayesian logistic regression; the plate takes 256 new rows of 20,000 at every step."""
    count, size = (100, 10) if small else (20_000, 256)
    x = torch.randn(count, 30)
    y = torch.bernoulli((x @ torch.randn(30)).sigmoid())

    def model():
        weight = pyro.sample("weight", dist.Normal(torch.zeros(30), 1.0).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, 3.0))
        with pyro.plate("data", count, subsample_size=size) as rows:
            pyro.sample("y", dist.Bernoulli(logits=x[rows] @ weight + bias), obs=y[rows])

    return Program(model, AutoNormal(model), Trace_ELBO(), ())


def gaussian_mixture(small):
    """A mixture of 8 Gaussians in the plane, the classes summed over; a MAP estimate of the rest.

    It is Pyro's tutorial of Gaussian mixtures, in two dimensions.
    """
    count, classes = (20 if small else 2000), 8
    x = 3 * torch.randn(classes, 2)[torch.randint(classes, (count,))] + torch.randn(count, 2)

    @config_enumerate
    def model(x):
        share = pyro.sample("share", dist.Dirichlet(torch.full((classes,), 0.5)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("classes", classes):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(share))
            pyro.sample("x", dist.Normal(loc[kind], scale).to_event(1), obs=x)

    guide = AutoDelta(poutine.block(model, expose=["share", "scale", "loc"]))
    return Program(model, guide, TraceEnum_ELBO(max_plate_nesting=1), (x,))


# ── ProdLDA ──────────────────────────────────────────────────────────────────────────────────


class TopicEncoder(nn.Module):
    def __init__(self, words, topics, hidden, dropout):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.first, self.second = nn.Linear(words, hidden), nn.Linear(hidden, hidden)
        self.loc, self.log_var = nn.Linear(hidden, topics), nn.Linear(hidden, topics)
        self.loc_norm = nn.BatchNorm1d(topics, affine=False)
        self.log_var_norm = nn.BatchNorm1d(topics, affine=False)

    def forward(self, documents):
        hidden = F.softplus(self.second(F.softplus(self.first(documents))))
        hidden = self.dropout(hidden)
        log_var = self.log_var_norm(self.log_var(hidden))
        return self.loc_norm(self.loc(hidden)), (0.5 * log_var).exp()


class TopicDecoder(nn.Module):
    def __init__(self, words, topics, dropout):
        super().__init__()
        self.beta = nn.Linear(topics, words, bias=False)
        self.norm = nn.BatchNorm1d(words, affine=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, shares):
        return F.softmax(self.norm(self.beta(self.dropout(shares))), dim=1)


class ProdLDA(nn.Module):
    """The neural topic model of Pyro's tutorial; the longest document's length is an argument."""

    def __init__(self, words, topics, hidden, dropout=0.2):
        super().__init__()
        self.topics = topics
        self.encoder = TopicEncoder(words, topics, hidden, dropout)
        self.decoder = TopicDecoder(words, topics, dropout)

    def model(self, documents, longest):
        pyro.module("decoder", self.decoder)
        with pyro.plate("documents", len(documents)):
            zero = documents.new_zeros(len(documents), self.topics)
            log_share = pyro.sample(
                "log_share", dist.Normal(zero, torch.ones_like(zero)).to_event(1)
            )
            words = self.decoder(F.softmax(log_share, -1))
            pyro.sample("words", dist.Multinomial(longest, words), obs=documents)

    def guide(self, documents, longest):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", len(documents)):
            loc, scale = self.encoder(documents)
            pyro.sample("log_share", dist.Normal(loc, scale).to_event(1))


def prodlda(small):
    """A batch of 32 documents over 5,000 words, 20 topics, batch normalisation and dropout."""
    batch, words, topics, hidden = (4, 30, 3, 8) if small else (32, 5000, 20, 100)
    shares = dist.Dirichlet(torch.full((words,), 0.05)).sample((batch,))
    documents = dist.Multinomial(100, shares).sample()
    program = ProdLDA(words, topics, hidden)
    longest = int(documents.sum(-1).max())
    return Program(program.model, program.guide, Trace_ELBO(), (documents, longest), 1e-3)


# ── Hierarchies ──────────────────────────────────────────────────────────────────────────────


def eight_schools(small):
    """The eight schools of Rubin (1981), not centred."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(loc + scale * offset, sigma), obs=y)

    return Program(model, AutoNormal(model), Trace_ELBO(), (y,))


def radon(small, make_guide):
    """Like radon in Minnesota: 919 houses in 85 counties, an intercept and a slope for each."""
    houses, counties = (20, 4) if small else (919, 85)
    county, floor = torch.randint(counties, (houses,)), torch.bernoulli(torch.full((houses,), 0.2))
    level = 1.4 + 0.3 * torch.randn(counties)
    y = level[county] - 0.7 * floor + 0.7 * torch.randn(houses)

    def model(county, floor, y):
        mean_a, mean_b = (pyro.sample(f"mean_{n}", dist.Normal(0.0, 5.0)) for n in "ab")
        scale_a, scale_b = (pyro.sample(f"scale_{n}", dist.HalfCauchy(1.0)) for n in "ab")
        with pyro.plate("counties", counties):
            a = pyro.sample("a", dist.Normal(mean_a, scale_a))
            b = pyro.sample("b", dist.Normal(mean_b, scale_b))
        noise = pyro.sample("noise", dist.HalfCauchy(1.0))
        with pyro.plate("houses", houses):
            pyro.sample("y", dist.Normal(a[county] + b[county] * floor, noise), obs=y)

    return Program(model, make_guide(model), Trace_ELBO(), (county, floor, y))


PROGRAMS = {
    "logistic regression, subsampled, AutoNormal": logistic_regression,
    "Gaussian mixture, TraceEnum_ELBO, AutoDelta": gaussian_mixture,
    "ProdLDA": prodlda,
    "eight schools, AutoNormal": eight_schools,
    "radon, AutoNormal": lambda small: radon(small, AutoNormal),
    "radon, AutoMultivariateNormal": lambda small: radon(small, AutoMultivariateNormal),
}

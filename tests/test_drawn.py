"""Priors whose networks have weights that were drawn, scored when the draws are gone."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64
from pyro.distributions import transforms
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import nn
from torch.func import functional_call

from pyrovae.errors import InputError
from pyrovae.priors import (
    AutoregressiveGaussianPrior,
    FlowPrior,
    RealNVPPrior,
    SplineFlowPrior,
)
from pyrovae.svi import CompiledSVI

D = 3
COUPLINGS = {
    "RealNVP": lambda: RealNVPPrior(D, layers=2, hidden=4),
    "spline": lambda: SplineFlowPrior(D, layers=2, bins=3, hidden=4),
}
PRIORS = COUPLINGS | {
    "stack": lambda: FlowPrior(D, [transforms.affine_coupling(D, [4]), transforms.permute(D)]),
    "autoregressive": lambda: AutoregressiveGaussianPrior(D, hidden=(4,)),
}


@pytest.fixture(autouse=True)
def double_precision():
    with float64():
        yield


def made(name):
    """A prior of these weights, whatever was drawn before."""
    torch.manual_seed(0)
    prior = PRIORS[name]()
    for weight in prior.parameters():
        nn.init.normal_(weight, std=0.5)
    return prior


def bayesian(prior):
    """The prior, with every weight a site of its own near what it was."""
    to_pyro_module_(prior)
    for module in prior.modules():
        for key, weight in list(module.named_parameters(recurse=False)):
            near = dist.Normal(weight.detach(), 0.3).to_event(weight.dim())
            setattr(module, key, PyroSample(near))
    return prior


def weights_of(trace):
    return {name: site["value"] for name, site in trace.nodes.items() if "." in name}


@pytest.mark.parametrize("name", COUPLINGS)
def test_weights_of_each_particle_act_as_in_a_loop(name):
    prior, z = made(name), torch.randn(5, D)
    drawn = {k: w + 0.3 * torch.randn(4, 1, *w.shape) for k, w in prior.named_parameters()}
    together = functional_call(prior, drawn, ())
    assert together.batch_shape == (4, 1)

    found = together.log_prob(z)
    torch.manual_seed(1)
    values = together.expand((4, 5)).rsample()
    for k in range(4):
        alone = functional_call(prior, {n: w[k, 0] for n, w in drawn.items()}, ())
        assert alone.batch_shape == ()
        torch.testing.assert_close(found[k], alone.log_prob(z))
        torch.manual_seed(1)
        again = alone.expand((4, 5)).rsample()
        torch.testing.assert_close(values[k], again[k])
    assert len(found.detach().unique(dim=0)) == 4


@pytest.mark.parametrize("draw", ["sample", "rsample"])
@pytest.mark.parametrize("name", PRIORS)
def test_draws_are_by_the_weights_that_the_prior_was_made_with(name, draw):
    prior = made(name)
    drawn = {key: w + 0.3 * torch.randn_like(w) for key, w in prior.named_parameters()}
    density = functional_call(prior, drawn, ())
    own = dict(prior.named_parameters())
    torch.manual_seed(1)
    found = getattr(density, draw)((6,))
    assert dict(prior.named_parameters()) == own, "and the prior has its own again"

    prior.load_state_dict(prior.state_dict() | drawn)
    torch.manual_seed(1)
    torch.testing.assert_close(found, prior().sample((6,)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PRIORS)
def test_a_bayesian_prior_is_scored_by_its_draws(name):
    """Pyro scores z after the model, when the sites of the weights are drawn no more."""
    prior, z = bayesian(made(name)), torch.randn(5, D)

    def model():
        density = prior()
        with pyro.plate("data", 5, dim=-1):
            return pyro.sample("z", density, obs=z)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    weights = weights_of(trace)
    assert len(weights) == len(list(made(name).named_parameters()))
    expected = functional_call(made(name), weights, ()).log_prob(z)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_bayesian_prior_in_a_plate_of_particles_is_scored_by_its_draws(name):
    prior, z = bayesian(made(name)), torch.randn(5, D)

    def model():
        with pyro.plate("particles", 4, dim=-2):
            density = prior()
            with pyro.plate("data", 5, dim=-1):
                return pyro.sample("z", density, obs=z)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    expected = functional_call(made(name), weights_of(trace), ()).log_prob(z)
    assert expected.shape == (4, 5)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_bayesian_prior_is_trained_as_by_pyro(engine):
    """The guide's draws of the weights are those by which z is scored in every back end."""
    x = torch.randn(5, D)

    def losses(make, **options):
        pyro.clear_param_store()
        prior = bayesian(made("RealNVP"))

        def model():
            density = prior()
            with pyro.plate("data", 5, dim=-1):
                z = pyro.sample("z", density)
                pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

        guide = AutoNormal(model)
        guide()  # begins at draws of the model
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
        torch.manual_seed(2)
        return torch.tensor([float(svi.step()) for _ in range(4)])

    torch.testing.assert_close(losses(CompiledSVI, engine=engine), losses(SVI))


@pytest.mark.parametrize("name", PRIORS)
def test_one_value_is_scored_anew_by_other_weights(name):
    """Pyro's transforms know a value that they have mapped by its object."""
    prior, z = made(name), torch.randn(5, D)
    draws = [
        {key: w + 0.3 * torch.randn_like(w) for key, w in prior.named_parameters()}
        for _ in range(2)
    ]
    own = prior().log_prob(z)
    found = [functional_call(prior, drawn, ()).log_prob(z) for drawn in draws]
    torch.testing.assert_close(prior().log_prob(z), own)
    for drawn, scored in zip(draws, found, strict=True):
        expected = functional_call(made(name), drawn, ()).log_prob(z.clone())
        torch.testing.assert_close(scored, expected)
        assert not torch.allclose(scored, own)


def test_a_masked_network_has_one_draw_of_its_weights():
    prior = made("autoregressive")
    drawn = {key: w.expand(4, 1, *w.shape) for key, w in prior.named_parameters()}
    with pytest.raises(InputError, match=r"drawn \(4, 1\) at a time.*take RealNVPPrior"):
        functional_call(prior, drawn, ())

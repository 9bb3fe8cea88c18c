"""What is learnt from any program's traces, whoever wrote it and however."""

import copy
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LATENT_DIM, SCALE, X_DIM, linear_gaussian
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyrovae import evaluation, fit
from pyrovae.data import Batch, Examples
from pyrovae.decoders import (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    DiscretizedLogisticMixtureDecoder,
    GaussianDecoder,
    MultinomialDecoder,
    NegativeBinomialDecoder,
    PixelwiseGaussianDecoder,
    TabularDecoder,
)
from pyrovae.encoders import (
    BernoulliEncoder,
    BetaEncoder,
    GaussianEncoder,
    PowerSphericalEncoder,
    RelaxedBernoulliEncoder,
    RelaxedCategoricalEncoder,
)
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate
from pyrovae.inspection import check_parameters, inspect_program
from pyrovae.models import VAE, Autoencoder
from pyrovae.networks import MLP
from pyrovae.priors import (
    BernoulliPrior,
    RelaxedBernoulliPrior,
    SphericalUniformPrior,
    StandardNormal,
)
from pyrovae.programs import (
    as_module,
    data_frame,
    evaluating,
    labels,
    observation_site,
    sample_sites,
    takes_labels,
    trace_pair,
)
from pyrovae.supports import check_support
from pyrovae.terms import draw_terms


def small_vae(decoder=GaussianDecoder):
    return VAE(
        StandardNormal(2), decoder(MLP((2,), (5,))), GaussianEncoder(MLP((5,), (4,), hidden=(3,)))
    )


class Hierarchy(nn.Module):
    """z2 -> z1 -> x, written by hand."""

    def __init__(self):
        super().__init__()
        self.prior_1, self.decode = nn.Linear(2, 3), nn.Linear(3, 5)
        self.encode_2, self.encode_1 = nn.Linear(5, 2), nn.Linear(7, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.prior_1(z2), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z1), 0.3).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(self.encode_2(x), 0.6).to_event(1))
            both = torch.cat([x.expand(*z2.shape[:-1], 5), z2], dim=-1)
            pyro.sample("z1", dist.Normal(self.encode_1(both), 0.4).to_event(1))


class Labelled(nn.Module):
    """Its prior stands apart for every label."""

    def __init__(self):
        super().__init__()
        self.vae = small_vae()
        self.seen = []

    def model(self, x, y):
        self.seen.append(y)
        with pyro.plate("data", len(x)):
            prior = dist.Normal(y.float()[:, None].expand(-1, 2), 1).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", self.vae.decoder(z), obs=x)

    def guide(self, x):
        self.vae.guide(x)


def functions_over(net, **changes):
    """A program of two functions and the modules that they use."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", net.prior())
            pyro.sample("x", net.decoder(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", net.encoder(x))

    return SimpleNamespace(**{"model": model, "guide": guide, "net": net, **changes})


@pytest.fixture
def x():
    return torch.randn(7, 5)


def structure_of(program, x, y=None):
    return inspect_program(program, Batch(x, y))


# ── Structure ────────────────────────────────────────────────────────────────────────────────


def test_the_structure_of_a_vae(x):
    found = structure_of(small_vae(), x)
    assert (found.latents, found.global_latents, found.observed) == (("z",), (), ("x",))
    assert (found.full_size, found.depth, found.vectorizes) == (None, 1, True)


def test_the_structure_of_a_hierarchy_is_in_the_guides_order(x):
    found = structure_of(Hierarchy(), x)
    assert (found.latents, found.observed, found.vectorizes) == (("z2", "z1"), ("x",), True)


def test_the_terms_of_a_hierarchy_are_those_of_its_sites_one_by_one(x):
    program, batch = Hierarchy(), Batch(x)
    structure = inspect_program(program, batch)
    pyro.set_rng_seed(1)
    with evaluating(program):
        found = draw_terms(program, batch, 4, structure)
    pyro.set_rng_seed(1)
    with evaluating(program):
        particles = pyro.plate("particles", 4, dim=-2)
        model_trace, guide_trace = trace_pair(program, batch, within=particles)
    z2, z1 = (guide_trace.nodes[name]["value"] for name in ("z2", "z1"))

    def normal(value, loc, scale):
        return dist.Normal(loc, scale).log_prob(value).sum(-1)

    prior = normal(z2, 0.0, 1.0) + normal(z1, program.prior_1(z2), 0.5)
    both = torch.cat([x.expand(4, 7, 5), z2], dim=-1)
    guide = normal(z2, program.encode_2(x), 0.6) + normal(z1, program.encode_1(both), 0.4)
    torch.testing.assert_close(found.log_prior, prior)
    torch.testing.assert_close(found.log_posterior, guide)
    torch.testing.assert_close(found.log_likelihood, normal(x, program.decode(z1), 0.3))
    assert {n: k.shape for n, k in found.kl_per_dim.items()} == {"z2": (7, 2), "z1": (7, 3)}
    assert model_trace.nodes["x"]["value"] is x


def test_a_subsampled_plate_is_known_by_its_full_size_and_evaluates_alike():
    case = linear_gaussian(5)
    vae = case.vae

    def model(x):
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.decoder(z), obs=x)

    def guide(x):
        with pyro.plate("data", 1000, subsample=torch.arange(len(x))):
            pyro.sample("z", vae.encoder(x))

    program = functions_over(vae, model=model, guide=guide)
    found = structure_of(program, case.x[:3])
    assert (found.full_size, found.depth, found.vectorizes) == (1000, 1, True)
    result = evaluate(program, case.examples, num_samples=3)
    torch.testing.assert_close(result.log_evidence, case.log_evidence)


def test_an_inner_plate_adds_to_the_depth(x):
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            with pyro.plate("features", 5, dim=-1):
                pyro.sample("x", dist.Normal(vae.decoder.net(z[..., 0, :]), 1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            q = vae.encoder(x).base_dist
            pyro.sample("z", dist.Normal(q.loc[:, None], q.scale[:, None]).to_event(1))

    assert structure_of(functions_over(vae, model=model, guide=guide), x).depth == 2


def test_a_program_of_functions_is_a_program(x):
    vae = small_vae()
    program = functions_over(vae)
    assert structure_of(program, x) == structure_of(vae, x)
    assert {id(p) for p in as_module(program).parameters()} == {id(p) for p in vae.parameters()}
    one, other = (evaluate(p, x, num_samples=3) for p in (program, vae))
    assert torch.equal(one.elbo, other.elbo)


def test_a_latent_that_the_guide_leaves_to_the_model_cancels():
    case = linear_gaussian(4)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("unused", dist.Normal(torch.zeros(2), 1).to_event(1))
            z = pyro.sample("z", case.vae.prior())
            pyro.sample("x", case.vae.decoder(z), obs=x)

    program = functions_over(case.vae, model=model)
    found = evaluate(program, case.examples, num_samples=3)
    torch.testing.assert_close(found.log_evidence, case.log_evidence)


# ── Programs that do not take particles on the left ──────────────────────────────────────────


class Reshaping(nn.Module):
    """A linear layer that takes matrices alone, as many published networks do."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.reshape(-1, x.shape[-1]))


def test_a_program_that_does_not_vectorise_gives_the_same_numbers():
    case = linear_gaussian(4)
    encoder, decoder = case.vae.encoder, case.vae.decoder
    encoder.net, decoder.net = Reshaping(encoder.net), Reshaping(decoder.net)
    structure = structure_of(case.vae, case.x)
    assert not structure.vectorizes

    found = evaluate(case.vae, case.examples, num_samples=5)
    torch.testing.assert_close(found.log_evidence, case.log_evidence)
    torch.testing.assert_close(found.elbo, case.log_evidence)
    torch.testing.assert_close(found.kl_per_dim["z"], case.kl_per_dim.mean(0))
    torch.testing.assert_close(found.latent_means["z"], case.loc)


def test_the_loop_draws_its_particles_independently():
    case = linear_gaussian(4)
    case.vae.decoder.net = Reshaping(case.vae.decoder.net)
    structure = structure_of(case.vae, case.x)
    with evaluating(case.vae):
        terms = draw_terms(case.vae, Batch(case.x), 5, structure)
    assert terms.log_likelihood.shape == (5, 4)
    assert len(terms.log_likelihood[:, 0].unique()) == 5


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────


def test_a_global_latent_is_found_by_name(x):
    vae = small_vae()

    def with_weight(function):
        def wrapped(x):
            pyro.sample("weight", dist.Normal(0.0, 1.0))
            function(x)

        return wrapped

    program = functions_over(vae, model=with_weight(vae.model), guide=with_weight(vae.guide))
    structure = structure_of(program, x)
    assert structure.global_latents == ("weight",)
    assert structure.latents == ("z",)


def test_what_is_no_program_is_refused():
    for thing in (nn.Linear(2, 2), SimpleNamespace(model=3, guide=print), "vae"):
        with pytest.raises(InputError, match="no methods model and guide"):
            as_module(thing)


def test_a_model_that_observes_nothing_is_refused(x):
    vae = small_vae()
    blind = functions_over(vae, model=poutine.uncondition(vae.model))
    with pytest.raises(InputError, match="observes nothing"):
        structure_of(blind, x)


def test_a_latent_of_no_number_is_refused(x):
    vae = small_vae()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 0), 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 0), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(5), 1.0).to_event(1), obs=x)

    empty = functions_over(vae, model=model, guide=guide)
    with pytest.raises(InputError, match=r"latent 'z' has the shape \(0,\), and no value"):
        structure_of(empty, x)


def test_an_observation_outside_the_plate_is_refused(x):
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
        pyro.sample("x", dist.Normal(vae.decoder.net(z), 1).to_event(2), obs=x)

    with pytest.raises(InputError, match=r"'x' is outside the plate 'data'"):
        structure_of(functions_over(vae, model=model), x)


def test_a_latent_of_the_guide_that_the_model_lacks_is_refused(x):
    vae = small_vae()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("zed", vae.encoder(x))

    with pytest.raises(InputError, match=r"guide samples 'zed'"):
        structure_of(functions_over(vae, guide=guide), x)


def test_an_auxiliary_latent_of_the_guide_is_allowed(x):
    vae = small_vae()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.encoder(x))
            noise = dist.Normal(torch.zeros(2), 1).to_event(1)
            pyro.sample("noise", noise, infer={"is_auxiliary": True})

    assert structure_of(functions_over(vae, guide=guide), x).latents == ("z", "noise")


@pytest.mark.parametrize(
    ("decoder", "family"),
    [(BernoulliDecoder, "Bernoulli"), (ContinuousBernoulliDecoder, "ContinuousBernoulli")],
)
def test_data_outside_the_support_are_refused_with_example_and_remedy(decoder, family):
    x = torch.zeros(12, 5)
    x[8, 2] = 7.0
    vae = small_vae(decoder)
    batches = list(Examples(x).in_order(5))
    with pytest.raises(InputError) as caught:
        check_support(vae, batches)
    message = str(caught.value)
    assert f"its {family} likelihood, first in example 8, column 2 (7)." in message
    assert "from 0 to 7" in message
    with pytest.raises(InputError, match="first in example 8"):
        evaluate(vae, x, num_samples=2)


@pytest.mark.parametrize(
    ("likelihood", "value", "remedy"),
    [
        (dist.Bernoulli(0.5), 0.3, "--binarize dynamic"),
        (dist.ContinuousBernoulli(0.5), 7.0, "Scale or dequantise"),
        (dist.Categorical(torch.ones(4)), 7.0, "levels, classes or symbols for all of them: 8"),
        (dist.Categorical(torch.ones(4)), 7.0, "--decoder.classes or --decoder.symbols 8"),
        (dist.Categorical(torch.ones(4)), 0.3, "preprocessing=AsIs"),
        (dist.Categorical(torch.ones(4)), -1.0, "preprocessing=AsIs"),
        (dist.Poisson(1.0), 0.3, "preprocessing=AsIs"),
    ],
)
def test_what_is_outside_a_support_has_a_remedy_of_its_own(likelihood, value, remedy):
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.prior())
            pyro.sample("x", likelihood.expand([5]).to_event(1), obs=x)

    x = torch.zeros(3, 5)
    x[1, 2] = value
    with pytest.raises(InputError, match=f"column 2 .*{remedy}"):
        structure_of(functions_over(vae, model=model), x)


def test_grey_pixels_are_refused_by_a_bernoulli_before_anything_is_trained():
    with pytest.raises(InputError, match=r"Bernoulli.*--binarize"):
        structure_of(small_vae(BernoulliDecoder), torch.full((4, 5), 0.5))


def test_data_inside_the_support_pass():
    check_support(small_vae(BernoulliDecoder), [Batch(torch.ones(3, 5)), Batch(torch.zeros(3, 5))])


@pytest.mark.parametrize(
    ("prior", "encoder", "families"),
    [
        (BernoulliPrior, RelaxedBernoulliEncoder, "RelaxedBernoulli.*Bernoulli"),
        (RelaxedBernoulliPrior, BernoulliEncoder, "Bernoulli.*RelaxedBernoulli"),
        (SphericalUniformPrior, BernoulliEncoder, "Bernoulli.*SphericalUniform"),
    ],
)
def test_a_guide_that_draws_outside_the_prior_is_refused_before_anything_is_trained(
    x, prior, encoder, families
):
    decoder = GaussianDecoder(MLP((2,), (5,)))
    vae = VAE(prior(2), decoder, encoder(MLP((5,), (2,))))
    partner = (
        "PowerSpherical" if prior is SphericalUniformPrior else prior.__name__[: -len("Prior")]
    )
    words = rf"guide's {families} gives no .*over the prior's values, such as {partner}Encoder"
    with pytest.raises(InputError, match=words):
        structure_of(vae, x)


def test_a_guide_that_draws_nan_is_refused_by_example(x):
    vae = small_vae()

    def guide(x):
        bad = torch.where(torch.arange(len(x)) == 3, torch.nan, 0.0)[:, None]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(vae.encoder(x).mean + bad, 1.0).to_event(1))

    program = functions_over(vae, guide=guide)
    words = r"draws NaN for the latent 'z' of example 8, which has no missing.*divides by zero"
    with pytest.raises(InputError, match=words):
        check_support(program, [Batch(torch.zeros(3, 5)), Batch(torch.zeros(2, 5)), Batch(x[:6])])


def test_a_guide_that_draws_nan_outside_the_plate_is_refused():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).expand([5]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def broken(x):
        pyro.sample("w", dist.Delta(torch.tensor(torch.nan), validate_args=False))

    vae = small_vae()
    check_support(functions_over(vae, model=model, guide=guide), [Batch(torch.zeros(3, 5))])
    with pytest.raises(InputError, match=r"draws NaN for the latent 'w'\."):
        check_support(functions_over(vae, model=model, guide=broken), [Batch(torch.zeros(3, 5))])


class OfEachExample(nn.Module):
    """Its guide has parameters for the examples that it is first run on."""

    def __init__(self, rows=None):
        super().__init__()
        self.net, self.rows = nn.Linear(2, 5), rows
        self.guide = AutoNormal(self.model)

    def model(self, x):
        with pyro.plate("data", self.rows or len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("rows", [None, 7])
@pytest.mark.parametrize("has_run", [False, True])
def test_a_guide_of_pyros_for_each_example_is_refused(rows, has_run, x):
    program = OfEachExample(rows)
    if has_run:
        program.guide(x)
    with pytest.raises(InputError, match=r"AutoNormal has parameters for each .*as an encoder"):
        fit(program, x, epochs=1, batch_size=7, progress=False)


class InPart(nn.Module):
    """Its plates are of so many, of which each run takes some at random."""

    def __init__(self, examples=None, pixels=None):
        super().__init__()
        self.examples, self.pixels = examples, pixels
        self.loc = nn.Parameter(torch.zeros(5))

    def model(self, x):
        with pyro.plate("data", len(x), subsample_size=self.examples, dim=-2) as rows:
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("pixels", 5, subsample_size=self.pixels, dim=-1) as columns:
                pyro.sample("x", dist.Normal(self.loc[columns], 1.0), obs=x[rows][:, columns])

    def guide(self, x):
        with pyro.plate("data", len(x), subsample_size=self.examples, dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"examples": 2}, r"'data' of the guide takes 2 of 3 examples at random.*batch_size"),
        ({"examples": 50}, r"'data' of the guide takes 50 of 3 examples at random"),
        ({"pixels": 2}, r"'pixels' of the model takes 2 of its 5 at random.*CompiledSVI"),
    ],
)
def test_plates_that_take_a_part_are_refused(sizes, said, x):
    with pytest.raises(InputError, match=said):
        fit(InPart(**sizes), x, epochs=1, progress=False)
    with pytest.raises(InputError, match=said):
        evaluate(InPart(**sizes), x, num_samples=2)
    evaluate(InPart(pixels=5), x, num_samples=2)


class Wordless(dist.Normal):
    @property
    def support(self):
        raise NotImplementedError


def test_a_prior_that_names_no_support_refuses_nothing(x):
    vae = small_vae()
    vae.prior.forward = lambda: Wordless(torch.zeros(2), 1.0).to_event(1)
    assert structure_of(vae, x).latents == ("z",)


def test_a_guide_may_draw_less_than_the_prior_does(x):
    decoder = GaussianDecoder(MLP((2,), (5,)))
    vae = VAE(StandardNormal(2), decoder, BetaEncoder(MLP((5,), (4,))))
    assert structure_of(vae, x).latents == ("z",)


def test_a_parameter_that_no_module_holds_is_refused_by_name(x):
    vae = small_vae()

    def model(x):
        pyro.param("stray", torch.zeros(1))
        vae.model(x)

    check_parameters(vae, Batch(x))
    check_parameters(functions_over(vae), Batch(x))
    with pytest.raises(InputError, match="'stray'"):
        check_parameters(functions_over(vae, model=model), Batch(x))


def test_a_constrained_parameter_of_a_module_is_held(x):
    class Constrained(PyroModule):
        def __init__(self):
            super().__init__()
            self.vae = small_vae()
            self.scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), self.scale).to_event(1))
                pyro.sample("x", self.vae.decoder(z), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.vae.encoder(x))

    check_parameters(Constrained(), Batch(x))


# ── Our errors, inside Pyro's handlers ───────────────────────────────────────────────────────


def test_an_error_raised_inside_a_program_reaches_the_user_as_it_is(x):
    def model(x):
        raise InputError("The cause.", "The remedy.")

    with pytest.raises(InputError, match=r"The cause\. The remedy\."):
        structure_of(functions_over(small_vae(), model=model), x)


def test_a_store_that_holds_other_weights_is_refused_under_stock_svi(x):
    vae = small_vae()
    vae.model(x)
    name = next(iter(pyro.get_param_store()))
    pyro.clear_param_store()
    pyro.param(name, torch.zeros(400, 2))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    with pytest.raises(InputError, match="already holds another tensor"):
        svi.step(x)


# ── Labels ───────────────────────────────────────────────────────────────────────────────────


def test_labels_go_where_a_signature_has_them(x):
    program, y = Labelled(), torch.arange(7)
    evaluate(program, Examples(x, y), num_samples=2)
    assert all(torch.equal(seen, y[: len(seen)]) for seen in program.seen)
    assert program.seen
    assert labels(program.guide, Batch(x, y)) == {}


class ByLabel(nn.Module):
    """A model which is itself the module: what its forward pass asks for."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x, y):
        self.seen.append(y)
        shift = pyro.sample("shift", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 7, subsample=x):
            pyro.sample(
                "x", dist.Normal(shift[y][:, None].expand(-1, 5), self.scale).to_event(1), obs=x
            )


class OfAll(EasyGuide):
    def guide(self, x, y):
        pyro.sample("shift", dist.Normal(y.float().mean() * torch.ones(3), 1.0).to_event(1))


@pytest.mark.parametrize(
    "guide",
    [
        AutoNormal,
        lambda model: AutoNormal(poutine.block(model, hide=["none"])),
        OfAll,
        lambda model: AutoLaplaceApproximation(model),
    ],
)
def test_labels_go_to_modules_by_their_forward_pass(guide, x):
    model, y = ByLabel(), torch.arange(7) % 3
    program = SimpleNamespace(model=model, guide=guide(model))
    run = fit(program, Examples(x, y), epochs=2, batch_size=7, progress=False)
    assert run.metrics[1]["loss"] < run.metrics[0]["loss"] + 1.0
    assert model.seen
    assert all(seen is not None for seen in model.seen)


def test_labels_go_through_handlers(x):
    program, y = Labelled(), torch.arange(7)
    handled = SimpleNamespace(
        model=poutine.scale(poutine.mask(program.model, mask=True), 2.0),
        guide=partial(program.guide),
    )
    evaluate(handled, Examples(x, y), num_samples=2)
    assert program.seen
    assert all(torch.equal(seen, y[: len(seen)]) for seen in program.seen)


def test_a_copy_of_a_guide_of_pyros_needs_no_labels(x):
    """It has lost its model, and gives what it has."""
    model, y = ByLabel(), torch.arange(7) % 3
    guide = AutoNormal(model)
    guide(x, y)
    copied = copy.deepcopy(guide)
    assert not takes_labels(copied)
    assert {"shift"} <= sample_sites(poutine.trace(copied).get_trace()).keys()


def test_missing_labels_are_refused_where_they_are_needed(x):
    with pytest.raises(InputError, match="needs labels y"):
        structure_of(Labelled(), x)
    assert labels(lambda x, y=None: None, Batch(x)) == {"y": None}


def test_evaluation_keeps_the_labels(x):
    y = torch.arange(7)
    assert torch.equal(evaluate(small_vae(), Examples(x, y), num_samples=2).labels, y)
    assert evaluate(small_vae(), x, num_samples=2).labels is None


# ── Which site is the observation ────────────────────────────────────────────────────────────


def two_observations(first, second):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample(first, dist.Normal(torch.zeros(5), 1).to_event(1), obs=x)
            pyro.sample(second, dist.Normal(torch.zeros(len(x)), 1), obs=x[:, 0])

    return model


def test_the_observation_is_x_or_the_only_one(x):
    trace = poutine.trace(two_observations("label", "x")).get_trace(x)
    assert observation_site(trace)["name"] == "x"
    assert data_frame(observation_site(trace)).size == 7

    trace = poutine.trace(two_observations("image", "label")).get_trace(x)
    assert observation_site(trace, given=["label"])["name"] == "image"
    with pytest.raises(InputError, match=r"\['image', 'label'\]"):
        observation_site(trace)


def test_the_observation_is_found_where_it_was_drawn(x):
    trace = poutine.trace(poutine.uncondition(small_vae().model)).get_trace(x)
    assert observation_site(trace)["name"] == "x"


# ── Leaving no trace ─────────────────────────────────────────────────────────────────────────


def flags(program):
    return [module.training for module in program.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_leaves_no_trace(x, fails):
    vae = small_vae()
    vae.decoder.eval()
    before, enabled = flags(vae), pyro.settings.get("validate_poutine")
    pyro.param("kept", torch.ones(1))
    try:
        with evaluating(vae):
            assert not any(flags(vae))
            assert not torch.is_grad_enabled()
            vae.model(x)
            pyro.param("inside", torch.ones(1))
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert flags(vae) == before == [True, True, *before[2:]]
    assert torch.is_grad_enabled()
    assert list(pyro.get_param_store()) == ["kept"]
    assert pyro.settings.get("validate_poutine") == enabled


def test_dropout_is_off_in_an_evaluation(x):
    vae = small_vae()
    vae.encoder.net = nn.Sequential(nn.Dropout(0.5), vae.encoder.net)
    found = evaluate(vae, x[:1].expand(6, 5), num_samples=2).latent_means["z"]
    assert (found == found[0]).all()


def test_inspecting_and_evaluating_leave_the_generator_alone(x):
    vae = small_vae()
    before = torch.get_rng_state()
    structure_of(vae, x)
    check_support(vae, [Batch(x)])
    evaluate(vae, x, num_samples=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_evaluation_is_a_function_of_its_seed(x):
    vae = small_vae()
    one, two, three = (evaluate(vae, x, num_samples=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.elbo, two.elbo)
    assert not torch.equal(one.elbo, three.elbo)


def test_the_chunk_is_bounded_by_what_is_decoded_at_a_time(monkeypatch, x):
    sizes = []

    class Counting(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.out_shape = net, net.out_shape

        def forward(self, z):
            sizes.append(z[..., 0].numel())
            return self.net(z)

    vae = small_vae()
    vae.decoder.net = Counting(vae.decoder.net)
    monkeypatch.setitem(evaluation.CHUNK, "cpu", 21 * 5)
    assert evaluate(vae, x, num_samples=10).num_samples == 10
    assert max(sizes) == 21


def test_shapes_here_are_told_apart():
    assert len({X_DIM, LATENT_DIM, 5, 2}) == 4
    assert SCALE != 1


# ── What only numbers show ───────────────────────────────────────────────────────────────────


def test_a_network_that_mixes_examples_under_particles_is_run_one_by_one(x):
    vae = small_vae()
    vae.decoder.net = nn.Sequential(nn.Linear(2, 5), nn.Softmax(dim=1))
    vae.decoder.net.out_shape = (5,)
    structure = structure_of(vae, x)
    assert not structure.vectorizes
    alone = -Trace_ELBO(num_particles=400).loss(vae.model, vae.guide, x) / len(x)
    found = evaluate(vae, x, num_samples=400).elbo.mean().item()
    assert found == pytest.approx(alone, abs=0.2)


def test_a_tensor_that_a_run_makes_to_differentiate_by_is_no_parameter(x):
    vae = small_vae()

    def guide(x):
        with pyro.plate("data", len(x)), torch.enable_grad():
            given = x.clone().requires_grad_()
            q = vae.encoder(given)
            (slope,) = torch.autograd.grad(q.mean.sum(), given, create_graph=True)
            loc = q.mean + 0.1 * slope.sum(-1, keepdim=True)
            pyro.sample("z", dist.Normal(loc, q.stddev).to_event(1))

    program = functions_over(vae, guide=guide)
    check_parameters(program, Batch(x))
    run = fit(program, x, epochs=1, progress=False)
    assert evaluate(run.program, x, num_samples=2).elbo.isfinite().all()


@pytest.mark.parametrize("kind", ["parameter", "module"])
def test_what_a_program_uses_but_does_not_hold_is_refused(x, kind):
    vae = small_vae()
    stray = nn.Parameter(torch.zeros(5)) if kind == "parameter" else nn.Linear(5, 5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            logits = vae.decoder.net(z)
            logits = logits + stray if kind == "parameter" else stray(logits)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    with pytest.raises(InputError, match="not its own"):
        check_parameters(functions_over(vae, model=model), Batch(x))


def test_a_parameter_beside_the_modules_is_held_too():
    program = SimpleNamespace(model=print, guide=print, scale=nn.Parameter(torch.zeros(3)))
    assert [p.shape for p in as_module(program).parameters()] == [(3,)]


def test_the_kl_of_every_dimension_adds_up_when_the_guide_runs_against_the_model(x):
    nets = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 5), "q": nn.Linear(5, 3)})
    nets["r"] = nn.Linear(3, 2)

    def normal(loc):
        return dist.Normal(loc, 0.5).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", normal(nets["a"](z2)))
            pyro.sample("x", normal(nets["b"](z1)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(nets["q"](x)))
            pyro.sample("z2", normal(nets["r"](z1)))

    program = SimpleNamespace(model=model, guide=guide, nets=nets)
    found = evaluate(program, x, num_samples=2000)
    total = sum(kl.sum().item() for kl in found.kl_per_dim.values())
    assert total == pytest.approx(found.kl.mean().item(), rel=1e-3)


def test_a_deterministic_site_is_no_observation(x):
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.deterministic("twice", 2 * z)
            pyro.sample("obs", vae.decoder(z), obs=x)

    assert structure_of(functions_over(vae, model=model), x).observed == ("obs",)


def test_the_kl_of_every_dimension_leaves_out_what_is_masked(x):
    vae = small_vae()
    seen = torch.arange(len(x)) < 3

    def masked(function):
        def run(x):
            with poutine.mask(mask=seen[: len(x)]):
                function(x)

        return run

    program = functions_over(vae, model=masked(vae.model), guide=masked(vae.guide))
    found = evaluate(program, x, num_samples=4000)
    assert found.kl_per_dim["z"].sum().item() == pytest.approx(found.kl.mean().item(), rel=0.1)


def test_a_factor_of_the_guide_is_of_its_density(x):
    vae = small_vae()

    def guide(x):
        pyro.factor("of_all", torch.tensor(0.5), has_rsample=True)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.encoder(x))
            pyro.factor("f", 0.1 * z.sum(-1) + 2.0, has_rsample=True)

    program = functions_over(vae, guide=guide)
    theirs = Trace_ELBO(4000, vectorize_particles=True, max_plate_nesting=1)
    # They have the factor of all examples in it, which is of none of them.
    expected = 0.5 - theirs.loss(program.model, program.guide, x)
    found = evaluate(program, x, num_samples=4000)
    assert found.elbo.sum().item() == pytest.approx(expected, abs=0.5)
    assert draw_terms(program, Batch(x), 1, structure_of(program, x)).global_kl.item() == 0.5


def test_an_auxiliary_site_is_no_latent_dimension(x):
    vae = small_vae()

    def guide(x):
        with pyro.plate("data", len(x)):
            q = vae.encoder(x)
            u = pyro.sample("u", q, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, event_dim=1))

    found = evaluate(functions_over(vae, guide=guide), x, num_samples=3)
    assert list(found.latent_means) == ["z"]
    assert found.latent_dims == 2


@pytest.mark.parametrize(("names", "expected"), [(("x",), 1.0), (("x", "other"), None)])
def test_two_observations_have_no_bits_per_dimension(x, names, expected):
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.prior())
            for name in names:
                coins = dist.Bernoulli(logits=torch.zeros_like(x)).to_event(1)
                pyro.sample(name, coins, obs=(x > 0).float())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.prior())

    found = evaluate(functions_over(vae, model=model, guide=guide), x, num_samples=3)
    assert found.bits_per_dim == (expected and pytest.approx(expected, abs=1e-6))


@pytest.mark.parametrize(
    ("prior", "decoder", "encoder", "words"),
    [
        (3, 2, 2, r"shape \(3,\) in the model and \(2,\) in the guide"),
        (3, 3, 2, r"shape \(3,\) in the model and \(2,\) in the guide"),
        (2, 3, 2, "what the decoder takes"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_first_step(prior, decoder, encoder, words):
    program = VAE(
        StandardNormal(prior),
        GaussianDecoder(MLP((decoder,), (4,), hidden=())),
        GaussianEncoder(MLP((4,), (2 * encoder,), hidden=())),
    )
    with pytest.raises(InputError, match=words) as refusal:
        inspect_program(program, Batch(torch.zeros(5, 4)))
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="Make its networks for x of this shape"):
        inspect_program(program, Batch(torch.zeros(5, 6)))


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (torch.float32, r"as by program.to\(torch.float32\), or x to its own"),
        (torch.int64, r"or let the networks take x.float\(\)"),
    ],
)
def test_numbers_of_another_type_than_the_parameters_are_refused_by_their_name(kind, remedy):
    program = small_vae().double()
    with pytest.raises(InputError, match=remedy):
        inspect_program(program, Batch(torch.zeros(5, 5, dtype=kind)))


# ── Likelihoods of another shape than x ──────────────────────────────────────────────────────


def to(*shape):
    return MLP((2,), shape, hidden=())


class OfEvents(nn.Module):
    """A decoder whose author says which dimensions are one event."""

    def __init__(self, shape, events):
        super().__init__()
        self.net, self.events = to(*shape), events

    def forward(self, z):
        return dist.Normal(self.net(z), 1.0).to_event(self.events)


@pytest.mark.parametrize(
    ("decoder", "x_shape", "remedy"),
    [
        (lambda: GaussianDecoder(to(1)), (5,), r"shape \(5,\)\.$"),
        (lambda: GaussianDecoder(to(1)), (), r"shape \(\)\.$"),
        (lambda: OfEvents((1,), 0), (5,), r"\.to_event\(1\)\.$"),
        (lambda: PixelwiseGaussianDecoder(to(2)), (5,), r"shape \(5,\)\.$"),
        (lambda: NegativeBinomialDecoder(to(1), (1,)), (5,), r"shape \(5,\)\.$"),
        (lambda: BernoulliDecoder(to(1, 8, 1)), (1, 8, 8), r"shape \(1, 8, 8\)\.$"),
        (lambda: TabularDecoder(to(3), columns=(0, 0, 0)), (5,), r"shape \(5,\)\.$"),
        (lambda: TabularDecoder(to(6), columns=6 * (0,)), (5,), r"shape \(5,\)\.$"),
        (lambda: MultinomialDecoder(to(1)), (5,), r"shape \(5,\)\.$"),
        (lambda: DiscretizedLogisticMixtureDecoder(to(30), (1,)), (5,), r"shape \(5,\)\.$"),
        (lambda: DiscretizedLogisticMixtureDecoder(to(31), (5,)), (5,), r"made for x of this"),
        (lambda: OfEvents((1, 8, 8), 2), (1, 8, 8), r"\.to_event\(3\)\.$"),
        (lambda: OfEvents((3, 8, 8), 2), (3, 8, 8), r"\.to_event\(3\)\.$"),
        (lambda: OfEvents((4, 8, 8), 2), (4, 8, 8), r"\.to_event\(\);.* out_shape\.$"),
    ],
)
def test_a_likelihood_of_another_shape_than_x_is_refused(decoder, x_shape, remedy):
    vae = VAE(StandardNormal(2), decoder(), nn.Identity())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.prior())

    with pytest.raises(InputError, match=remedy) as refusal:
        structure_of(functions_over(vae, guide=guide), torch.zeros(7, *x_shape))
    assert "\n" not in str(refusal.value)


def test_a_likelihood_that_repeats_itself_outside_of_plates_is_refused(x):
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.prior())
            pyro.sample("x", dist.Normal(torch.zeros(4, 1, 5), 1.0).to_event(1), obs=x)

    with pytest.raises(InputError, match=r"\(4, 3\), of which its plates have .* \[-1\] alone"):
        structure_of(functions_over(vae, model=model), x)


def observe_numbers(x):
    pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=x[:, 0])


def observe_a_part_and_all(x):
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x[:, :2])
    pyro.sample("y", dist.Bernoulli(0.5), obs=(x[:, 0] > 0).float())
    pyro.sample("square", dist.Normal(torch.zeros(5, 5), 1.0).to_event(2), obs=x.diag_embed())


def observe_in_plates(x):
    with pyro.plate("features", 5, dim=-2):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.T)


def observe_thrice(x):
    with pyro.plate("raters", 3, dim=-2):
        pyro.sample("x", dist.Normal(torch.zeros(5), 1.0).to_event(1), obs=x)


def observe_what_is_there(x):
    with poutine.mask(mask=torch.arange(len(x)) < 2):
        pyro.sample("x", dist.Normal(torch.zeros(5), 1.0).to_event(1), obs=x)


def observe_all_but_some(x):
    seen = torch.arange(len(x)) < 2
    fn = dist.Normal(torch.zeros(5), 1.0).to_event(1)
    pyro.sample("x", fn, obs=x, obs_mask=seen)


def observe_with_a_factor(x):
    observe_what_is_there(x)
    pyro.factor("bonus", torch.zeros(len(x)))


def observe_steps(x):
    stay, seen = torch.eye(2) + 0.1, dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    pyro.sample("x", dist.DiscreteHMM(torch.zeros(2), stay.log(), seen), obs=x)


@pytest.mark.parametrize(
    "observe",
    [
        observe_numbers,
        observe_a_part_and_all,
        observe_in_plates,
        observe_thrice,
        observe_what_is_there,
        observe_all_but_some,
        observe_with_a_factor,
        observe_steps,
    ],
)
def test_an_unusual_observation_that_fits_is_taken(x, observe):
    vae = small_vae()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.prior())
            observe(x)

    program = functions_over(vae, model=model)
    assert structure_of(program, x).latents == ("z",)
    check_parameters(program, Batch(x))


# ── Parts that are none ──────────────────────────────────────────────────────────────────────


class Returning(nn.Module):
    """A part whose author returns whatever this function does."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


TORCHS = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"prior": lambda: torch.zeros(2)}, r"model samples 'z' from a Tensor.*return one, such"),
        (
            {"prior": lambda: TORCHS},
            r"model samples 'z' from a Independent of torch\.dist.*, and not",
        ),
        ({"prior": lambda: dist.Normal}, r"model samples 'z' from the class Normal, and not"),
        ({"decoder": lambda z: None}, r"model samples 'x' from a NoneType, and not"),
        ({"decoder": lambda z: z.sum(-1)}, r"model samples 'x' from a Tensor, and not"),
        ({"encoder": lambda x: (x[:, :2], 1.0)}, r"guide samples 'z' from a tuple, and not"),
        ({"prior": lambda y: None}, r"missing 1 required .*: 'y'.* the prior nothing"),
        ({"decoder": lambda: None}, r"takes 0 positional arguments.*the decoder z"),
        ({"encoder": lambda x, y: None}, r"guide .*missing 1 required .*: 'y'.*the encoder x"),
    ],
)
def test_a_part_that_gives_no_distribution_is_refused(x, parts, words):
    vae = small_vae()
    for name, function in parts.items():
        setattr(vae, name, Returning(function))
    with pytest.raises(InputError, match=words) as refusal:
        structure_of(vae, x)
    assert "\n" not in str(refusal.value)


def test_a_likelihood_of_torchs_can_be_observed(x):
    vae = small_vae()
    normal = torch.distributions.Normal
    vae.decoder = Returning(lambda z: torch.distributions.Independent(normal(x[:3], 1.0), 1))
    assert structure_of(vae, x).observed == ("x",)


def test_an_error_inside_a_part_keeps_its_traceback(x):
    for error in (KeyError("colour"), TypeError("unsupported operand"), AttributeError("width")):

        def fails(z, error=error):
            raise error

        vae = small_vae()
        vae.decoder = Returning(fails)
        with pytest.raises(type(error)) as caught:
            structure_of(vae, x)
        assert caught.value is error


def test_a_class_is_no_part_and_no_program(x):
    decoder, encoder = GaussianDecoder(to(5)), GaussianEncoder(MLP((5,), (4,)))
    with pytest.raises(InputError, match=r"prior is the class StandardNormal.*StandardNormal\("):
        VAE(StandardNormal, decoder, encoder)
    with pytest.raises(InputError, match="encoder is a NoneType"):
        VAE(StandardNormal(2), decoder, None)
    with pytest.raises(InputError, match="decoder is the class MLP"):
        Autoencoder(2, MLP, encoder)
    with pytest.raises(InputError, match="VAE is a class, and no program"):
        structure_of(VAE, x)


RELAXED_CODE = partial(RelaxedCategoricalEncoder, classes=3)


@pytest.mark.parametrize(
    ("prior", "encoder", "size"),
    [
        (StandardNormal, BernoulliEncoder, 3),
        (StandardNormal, PowerSphericalEncoder, 4),
        (StandardNormal, RELAXED_CODE, 3),
        (BernoulliPrior, GaussianEncoder, 6),
        (SphericalUniformPrior, GaussianEncoder, 6),
        (RelaxedBernoulliPrior, RELAXED_CODE, 3),
    ],
)
def test_a_mass_over_a_density_is_no_ratio_of_probabilities(prior, encoder, size):
    net, decoder = MLP((4,), (size,), hidden=()), GaussianDecoder(MLP((3,), (4,), hidden=()))
    program = VAE(prior(3), decoder, encoder(net))
    with pytest.raises(InputError, match="draws values of 'z'"):
        check_support(program, [Batch(torch.randn(50, 4))])

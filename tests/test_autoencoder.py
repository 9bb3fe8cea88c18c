"""The plain autoencoder, and other programs whose draws have no density to be weighed by."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import float64
from programs_for_tests import binary, same, small_vae, weights
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import constraints
from torch.nn.functional import softplus

import pyrovae
from pyrovae import bounds
from pyrovae.data import Batch
from pyrovae.distributions import ImproperUniform
from pyrovae.errors import InputError
from pyrovae.inspection import inspect_program
from pyrovae.models import Autoencoder
from pyrovae.programs import evaluating
from pyrovae.terms import draw_terms


def autoencoder(latent_dim=2):
    vae = small_vae(latent_dim=latent_dim)
    return Autoencoder(latent_dim, vae.decoder, vae.encoder)


class OwnGuide(pyrovae.VAE):
    """A VAE whose guide is another function of the encoder's distribution."""

    def __init__(self, draw, prior=None):
        vae = small_vae()
        super().__init__(prior or vae.prior, vae.decoder, vae.encoder)
        self.draw = draw

    def guide(self, x):
        with pyro.plate("data", len(x)):
            self.draw(self.encoder(x))


def without_noise(prior=None):
    return OwnGuide(lambda q: pyro.sample("z", dist.Delta(q.mean, event_dim=1)), prior)


def log_likelihood(program, x):
    """log p(x | z) of each row at the encoder's mean, by the networks alone."""
    loc, _ = program.encoder.net(x).chunk(2, dim=-1)
    return -softplus((1 - 2 * x) * program.decoder.net(loc)).flatten(1).sum(1)


# ── Its loss ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "bound",
    [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(3), bounds.ELBO(), bounds.ELBO(3)],
    ids=lambda bound: f"{type(bound).__module__}-{bound.num_particles}",
)
def test_its_loss_is_that_of_the_likelihood_alone(bound):
    with float64():
        program, x = autoencoder(), binary(7).double()
    expected = -log_likelihood(program, x).sum()
    parameters = list(program.parameters())
    found = bound.differentiable_loss(program.model, program.guide, x)

    assert found.item() == pytest.approx(expected.item(), rel=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_it_has_no_kl():
    program, x = autoencoder(), binary(7)
    structure = inspect_program(program, Batch(x))
    with evaluating(program):
        terms = draw_terms(program, Batch(x), 3, structure)
        expected = log_likelihood(program, x)
    assert structure.vectorizes
    torch.testing.assert_close(terms.log_likelihood, expected.expand(3, 7))
    assert not terms.log_prior.any()
    assert not terms.log_posterior.any()
    assert terms.kl_per_dim == {}


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_compiled_steps_are_those_of_pyro(engine):
    def losses(make, **options):
        pyro.clear_param_store()
        program, x = autoencoder(), binary(20)
        svi = make(
            program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options
        )
        found = []
        for step in range(5):
            torch.manual_seed(step)
            found.append(float(svi.step(x)))
        return found

    expected = losses(SVI)
    assert losses(pyrovae.CompiledSVI, engine=engine) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]


# ── What it is for ───────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = pyrovae.load_data("digits")
    vae = small_vae(data.x_shape, latent_dim=3)
    program = Autoencoder(3, vae.decoder, vae.encoder)
    path = tmp_path_factory.mktemp("runs") / "autoencoder"
    return pyrovae.fit(program, data, epochs=2, run_dir=path, progress=False)


def test_an_epoch_records_the_likelihood_and_no_bound(trained):
    record, valid = trained.metrics[-1], trained.splits["valid"]
    x = valid.head(len(valid)).x
    expected = log_likelihood(trained.program, x).mean().item()
    assert record["log_likelihood"] == pytest.approx(expected, rel=1e-5)
    assert not {"kl", "train_elbo", "valid_elbo"} & set(record)


def test_it_is_saved_and_loaded(trained):
    again = pyrovae.load(trained.path)
    assert isinstance(again.program, Autoencoder)
    assert same(weights(trained.program), weights(again.program))
    assert json.loads((trained.path / "config.json").read_text())["program"]["latent_dim"] == 3


def test_it_reconstructs_from_its_codes(trained):
    x = trained.measured.head(4).x
    codes = trained.program.encoder(x).mean
    expected = trained.program.decoder(codes).mean
    torch.testing.assert_close(trained.reconstruct(4).x[1], 16 * expected)
    torch.testing.assert_close(trained.interpolate(0, 3).x[0, 0], 16 * expected[0])
    assert trained.traverse().x.shape == (3, 9, 1, 8, 8)
    assert trained.structure.improper == ("z",)


def test_its_report_has_no_evidence_and_no_samples(trained):
    page = trained.report().read_text()
    assert f"{trained.metrics[-1]['log_likelihood']:.2f}" in page
    for words in ("Validation log p(x | z)", "no bound on log p(x)", "Reconstructions"):
        assert words in page
    for words in ("Samples", "ELBO at weight 1", "Evidence", "Active units"):
        assert words not in page
    assert not (trained.path / "evaluation.json").exists()


def test_a_plane_laid_out_by_the_prior_is_not_in_its_report(tmp_path):
    for program, expected in ((autoencoder(), False), (small_vae(), True)):
        path = tmp_path / type(program).__name__
        run = pyrovae.fit(program, binary(), epochs=1, run_dir=path, progress=False)
        assert ("Latent plane" in run.report().read_text()) == expected


def test_early_stopping_keeps_the_weights_of_the_best_likelihood(monkeypatch):
    found = iter([-5.0, -3.0, -4.0, -4.5])
    monkeypatch.setattr(
        "pyrovae.monitoring.Monitor.measure", lambda *_: {"log_likelihood": next(found)}
    )
    run = pyrovae.fit(
        autoencoder(), binary(), valid=binary(), epochs=4, patience=2, progress=False
    )
    assert run.config["best_epoch"] == 2


# ── What is refused ──────────────────────────────────────────────────────────────────────────


def test_it_is_not_evaluated(trained):
    with pytest.raises(InputError, match=r"log p\(x\) is undefined: the prior of the latent 'z'"):
        trained.evaluate(num_samples=10)


def test_it_draws_no_examples(trained):
    with pytest.raises(InputError, match=r"latent 'z' cannot be drawn: its prior is improper\. G"):
        trained.sample(4)
    z = torch.zeros(2, 3)
    drawn = pyrovae.decode(trained.program, {"z": z}, trained.measured.head(1))
    torch.testing.assert_close(drawn.x, trained.program.decoder(z).mean)


@pytest.mark.parametrize(
    ("latent_dim", "encoder", "words"),
    [
        (3, 2, r"shape \(3,\) in the model and \(2,\) in the g"),
        (2, 3, r"shape \(2,\) in the model and \(3,\) in the g"),
    ],
)
def test_parts_that_do_not_fit_are_refused(latent_dim, encoder, words):
    program = Autoencoder(latent_dim, small_vae().decoder, small_vae(latent_dim=encoder).encoder)
    with pytest.raises(InputError, match=words):
        inspect_program(program, Batch(binary()))


def test_a_guide_without_noise_draws_examples_and_is_not_evaluated():
    program, x = without_noise(), binary(7)
    structure = inspect_program(program, Batch(x))
    assert structure.improper == ()
    assert structure.points == ("z",)
    assert pyrovae.sample(program, Batch(x), 5).x.shape == (5, 6)
    with pytest.raises(InputError, match="puts the latent 'z' at a single point"):
        pyrovae.evaluate(program, x, num_samples=2)


def test_a_point_that_passes_on_a_density_is_evaluated():
    def by_another_site(q):
        u = pyro.sample("u", q, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u, event_dim=1))

    def with_its_own(q):
        z = q.rsample()
        pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z), event_dim=1))

    x = binary(7)
    expected = pyrovae.evaluate(small_vae(), x, num_samples=1).elbo
    for draw in (by_another_site, with_its_own):
        found = pyrovae.evaluate(OwnGuide(draw), x, num_samples=1).elbo
        torch.testing.assert_close(found, expected)


# ── The flat density ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "like", [{"dtype": torch.float64}, {"dtype": torch.float32}, {"device": "meta"}], ids=str
)
def test_the_flat_density_is_one_in_the_precision_and_on_the_device_of_its_value(like):
    flat = ImproperUniform(constraints.real_vector, (), (3,)).expand((2, 4))
    value = torch.zeros(4, 3, **like)
    found = flat.log_prob(value)
    assert found.shape == (2, 4)
    assert found.dtype == value.dtype
    assert found.device == value.device
    assert found.is_meta or not found.any()


def test_the_flat_density_of_pyro_is_refused_alike():
    class Flat(torch.nn.Module):
        def forward(self):
            return dist.ImproperUniform(constraints.real_vector, (), (2,))

    program, x = without_noise(Flat()), binary(7)
    assert inspect_program(program, Batch(x)).improper == ("z",)
    with pytest.raises(InputError, match="improper"):
        pyrovae.sample(program, Batch(x), 5)
    with pytest.raises(InputError, match="improper"):
        pyrovae.evaluate(program, x)

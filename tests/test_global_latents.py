"""Latents outside the plate, which all examples share: measured, trained, shown."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LATENT_DIM, SCALE, X_DIM, float64
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from shared_shift import LOC, WIDTH, N, Shifted
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import draws, encoding, evaluation, generation, imputation
from pyrovae.data import Batch
from pyrovae.distributions import NanMasked
from pyrovae.encoding import posterior_means, shared_latents
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate, log_evidence
from pyrovae.inspection import inspect_program
from pyrovae.preparation import PlateSizeWarning
from pyrovae.programs import evaluating
from pyrovae.terms import draw_terms


@pytest.fixture(autouse=True)
def double_precision():
    with float64():
        yield


def agrees(found, expected, error):
    """Whether estimates of examples are those expected, within five standard errors of each."""
    return bool(((found - expected).abs() <= 5 * error + 1e-9).all())


# ── Measuring ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_what_is_measured_is_the_predictive_density_of_the_guides_draws(one_at_a_time):
    program = Shifted(one_at_a_time=one_at_a_time)
    structure = inspect_program(program, Batch(program.x[:3]))
    assert structure.global_latents == ("g",)
    assert structure.latents == ("z",)
    assert structure.vectorizes is not one_at_a_time

    samples = 2000 if one_at_a_time else 50_000
    found = evaluate(program, program.examples, num_samples=samples, limit=6)
    expected = program.predictive(LOC, WIDTH**2)[:6]
    assert agrees(found.log_evidence, expected, found.log_evidence_error)

    bound = program.elbo(LOC, WIDTH**2)[:6]
    torch.testing.assert_close(found.elbo, bound, rtol=0, atol=0.2 if one_at_a_time else 0.05)
    assert (found.elbo < found.log_evidence).all()
    kl = program.case.kl_per_dim[:6].mean(0)
    torch.testing.assert_close(found.kl_per_dim, {"z": kl})
    torch.testing.assert_close(found.latent_means, {"z": program.case.loc[:6]})
    assert found.latent_dims == LATENT_DIM

    prior = dist.Normal(torch.zeros(X_DIM), 1.0)
    exact = torch.distributions.kl_divergence(dist.Normal(program.loc, WIDTH), prior).sum()
    assert found.global_kl == pytest.approx(exact.item(), rel=0.05)
    assert found.summary()["global_kl"] == found.global_kl


def test_of_examples_alone_it_is_the_same():
    program = Shifted()
    found = log_evidence(program, program.x[:3], num_samples=50_000)
    expected = program.predictive(LOC, WIDTH**2)[:3]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_a_latent_that_the_guide_leaves_out_is_drawn_from_its_prior():
    program = Shifted(None, spread=WIDTH)
    assert inspect_program(program, Batch(program.x[:3])).vectorizes
    found = evaluate(program, program.examples, num_samples=50_000, limit=4)
    expected = program.predictive(0.0, WIDTH**2)[:4]
    assert agrees(found.log_evidence, expected, found.log_evidence_error)
    assert found.global_kl is None


@pytest.mark.parametrize("flat", [False, True])
def test_a_point_is_as_good_as_a_posterior_for_what_all_share(flat):
    program = Shifted("point", flat=flat)
    structure = inspect_program(program, Batch(program.x[:3]))
    assert structure.has_bound
    found = evaluate(program, program.examples, num_samples=20_000, limit=4)
    assert agrees(found.log_evidence, program.predictive(LOC, 0.0)[:4], found.log_evidence_error)
    assert found.global_kl is None
    assert "global_kl" not in found.summary()


def test_a_flat_prior_that_the_guide_says_nothing_of_leaves_no_bound():
    program = Shifted(None, flat=True)
    with pytest.raises(InputError, match=r"'g' has an improper prior.*Sample it in the guide"):
        evaluate(program, program.examples, num_samples=2)


def test_compiled_draws_are_the_programs_own(monkeypatch):
    program = Shifted()
    expected = evaluate(program, program.examples, num_samples=4, limit=6)
    monkeypatch.setattr(draws, "OFTEN", 1)
    used = []
    compile_graph = draws.compile_graph
    monkeypatch.setattr(draws, "compile_graph", lambda *a: used.append(a) or compile_graph(*a))
    found = evaluate(program, program.examples, num_samples=4, limit=6)
    assert used
    for name in ("elbo", "log_evidence", "kl"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert found.global_kl == pytest.approx(expected.global_kl)


def test_the_monte_carlo_error_is_that_of_draws_which_examples_share():
    """Examples have the same draws of g: their errors do not cancel."""
    program = Shifted()
    runs = [evaluate(program, program.examples, num_samples=20, seed=s) for s in range(30)]
    spread = torch.stack([run.log_evidence.mean() for run in runs]).std().item()
    told = sum(run.monte_carlo_error for run in runs) / len(runs)
    assert told == pytest.approx(spread, rel=0.35)
    alone = [run.log_evidence_error.square().sum().sqrt().item() / N for run in runs]
    assert sum(alone) / len(alone) < 0.6 * spread, "or this test tells nothing"


def test_memory_is_measured_by_a_single_example(monkeypatch):
    """What a draw has of its own does not grow with the number of examples."""
    program, seen = Shifted(), []
    draw = evaluation.draw_terms
    monkeypatch.setattr(
        evaluation,
        "draw_terms",
        lambda p, batch, *rest: seen.append(batch) or draw(p, batch, *rest),
    )
    evaluate(program, program.examples, num_samples=2)
    assert {len(batch.x) for batch in seen} == {1}


class Pair(Shifted):
    """The shift in two halves, whose guides differ."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        model = poutine.block(self.model, expose=["a", "b"])
        self.of_both = AutoGuideList(model)
        self.of_both.append(AutoNormal(poutine.block(model, expose=["a"])))
        second = AutoDelta if kind == "point" else AutoNormal
        self.of_both.append(second(poutine.block(model, expose=["b"])))

    def model(self, x):
        a = pyro.sample("a", dist.Normal(torch.zeros(X_DIM), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(X_DIM), 1.0).to_event(1))
        with self.plate(x):
            z = pyro.sample("z", self.vae.prior())
            mean = self.vae.decoder(z).mean + a + b
            pyro.sample("x", dist.Normal(mean, SCALE).to_event(1), obs=x)

    def guide(self, x):
        if self.kind == "mixed up":
            h = pyro.sample(
                "h", dist.Normal(self.loc, 1.0).to_event(1), infer={"is_auxiliary": True}
            )
            pyro.sample("a", dist.Normal(h, 0.5).to_event(1))
            pyro.sample("b", dist.Normal(self.loc, 0.5).to_event(1))
        else:
            self.of_both(x)
        with self.plate(x):
            pyro.sample("z", self.vae.encoder(x))


@pytest.mark.parametrize(
    ("kind", "is_known"), [("both", True), ("point", False), ("mixed up", False)]
)
def test_a_kl_of_which_a_part_is_unknown_is_none(kind, is_known):
    program = Pair(kind)
    program.guide(program.x[:3])
    structure = inspect_program(program, Batch(program.x[:3]))
    assert structure.global_latents == ("a", "b")
    assert structure.has_global_kl is is_known
    found = evaluate(program, program.examples, num_samples=2, limit=2)
    assert (found.global_kl is not None) is is_known


# ── Training ─────────────────────────────────────────────────────────────────────────────────


def test_training_finds_the_posterior_of_what_all_share():
    """Every step sees an eighth of the data, and counts its share of the KL."""
    program = Shifted(size=N)
    for parameter in program.vae.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        program.loc.zero_()
    run = pyrovae.fit(
        program,
        program.x,
        valid=program.x[:10],
        epochs=400,
        batch_size=5,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        progress=False,
    )
    precision = 1 + N / SCALE**2
    torch.testing.assert_close(program.loc.detach(), program.shift_of_data, rtol=0, atol=0.03)
    width = program.log_width.detach().exp()
    torch.testing.assert_close(width, torch.full_like(width, precision**-0.5), rtol=0.25, atol=0)

    last = run.metrics[-1]
    posterior = dist.Normal(program.loc, width)
    exact = torch.distributions.kl_divergence(posterior, dist.Normal(0.0, 1.0)).sum().item()
    assert last["global_kl"] == pytest.approx(exact, rel=0.2)
    bound = program.elbo(program.loc, width**2).detach()
    assert last["valid_elbo"] == pytest.approx(bound[:10].mean().item(), rel=0.1, abs=0.5)
    assert last["loss"] == pytest.approx(-bound.mean().item() + exact / N, rel=0.1, abs=0.5)


def test_a_plate_of_the_size_of_a_batch_is_refused():
    words = (
        r"'g' is outside.*of a batch: every batch would count its KL.*\('data', 40, subsample=x\)"
    )
    with pytest.raises(InputError, match=words):
        pyrovae.fit(Shifted(), Shifted().x, epochs=1, batch_size=8, progress=False)


def test_a_plate_of_another_size_is_warned_of():
    program = Shifted(size=N + 1)
    words = r"whose size is 41, and the training data are 40.*\('data', 40, subsample=x\)"
    with pytest.warns(PlateSizeWarning, match=words):
        pyrovae.fit(program, program.x, epochs=1, batch_size=8, progress=False)


# Pyro's own word on a latent that the guide leaves out.
@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("options", [{"guided": None}, {"guided": "point", "flat": True}])
def test_what_the_loss_has_no_term_of_may_stand_outside_any_plate(options):
    program = Shifted(**options)
    run = pyrovae.fit(program, program.x, epochs=1, batch_size=8, progress=False)
    assert math.isfinite(run.metrics[-1]["train_elbo"])


def test_a_whole_batch_is_a_plate_of_the_right_size():
    program = Shifted()
    run = pyrovae.fit(program, program.x, epochs=1, batch_size=N, progress=False)
    assert math.isfinite(run.metrics[-1]["train_elbo"])


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────


class FarAway(Shifted):
    """A shift that the prior gives no chance, and labels that nothing depends on."""

    def __init__(self, guided="normal"):
        super().__init__(guided)
        with torch.no_grad():
            self.loc.fill_(100.0)
        self.of_x = AutoNormal(poutine.block(self.model, expose=["g"]))

    def guide(self, x):
        if self.guided != "auto":
            super().guide(x)
            return
        self.of_x(x)
        with self.plate(x):
            pyro.sample("z", self.vae.encoder(x))


def test_what_is_made_is_made_of_what_the_guide_has_learned():
    program = FarAway()
    few = Batch(program.x[:4])
    b = program.vae.decoder.net.bias.detach() + 100.0

    made = {
        "samples": generation.sample(program, few, 5).x,
        "draws": generation.sample(program, few, 5, draw=True).x,
        "reconstructions": generation.reconstruct(program, few).x,
        "latents": generation.decode(program, {"z": torch.zeros(3, LATENT_DIM)}, few).x,
        "lines": generation.interpolate(program, few, few, steps=2).x.flatten(0, 1),
        "traversals": generation.traverse(program, few, steps=2).x.flatten(0, 1),
    }
    for name, x in made.items():
        assert ((x - b).abs() < 20).all(), name
    torch.testing.assert_close(made["latents"], b.expand(3, -1))
    given = {"z": torch.zeros(3, LATENT_DIM), "g": torch.full((X_DIM,), 7.0)}
    torch.testing.assert_close(generation.decode(program, given, few).x, (b - 93.0).expand(3, -1))


def test_samples_are_by_one_draw_and_reconstructions_by_the_mean():
    program = FarAway()
    few = Batch(program.x[:4])
    with evaluating(program):
        drawn = [shared_latents(program, few, draw_by=seed)["g"] for seed in (0, 1)]
        again = shared_latents(program, few, draw_by=1)["g"]
        means = [shared_latents(program, few)["g"] for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(again, drawn[1])
    assert torch.equal(*means)
    torch.testing.assert_close(means[0], program.loc.detach())
    one, other = (generation.sample(program, few, 200, seed=seed).x.mean(0) for seed in (0, 1))
    assert (one - other).abs().max() > 0.2, "another draw moves all of them"


def test_latents_are_encoded_example_by_example_without_what_all_share():
    program = FarAway()
    assert posterior_means(program, Batch(program.x)).keys() == {"z"}
    found = encoding.encode(program, [Batch(x) for x in program.x.split(15)])
    assert found.means["z"].shape == (N, LATENT_DIM)


def test_an_automatic_guide_has_the_mean_that_it_says():
    program = FarAway("auto")
    program.guide(program.x[:3])  # makes its parameters
    with torch.no_grad():
        program.of_x.locs.g.fill_(50.0)
    with evaluating(program):
        found = shared_latents(program, Batch(program.x[:3]))
    assert found.keys() == {"g"}
    torch.testing.assert_close(found["g"], program.of_x.median()["g"].detach())
    torch.testing.assert_close(found["g"], torch.full((X_DIM,), 50.0))
    scale = program.of_x.scales.g.detach()[0].item()
    assert evaluate(program, program.examples, num_samples=2000, limit=3).global_kl == (
        pytest.approx(X_DIM * ((50.0**2 + scale**2 - 1) / 2 - math.log(scale)), rel=0.01)
    )


def test_the_model_draws_what_the_guide_leaves_out():
    program = FarAway(None)
    x = generation.sample(program, Batch(program.x[:2]), 5).x
    assert (x.abs() < 50).all()


class Inverse(nn.Module):
    """x = z + g, and a guide that knows z exactly where it knows g.

    Args:
        of_g: The guide of g.
    """

    def __init__(self, of_g):
        super().__init__()
        self.of_g = of_g
        self.never = nn.Parameter(torch.zeros(()))

    def model(self, x):
        g = pyro.sample("g", dist.Normal(torch.zeros(3), 1e6).to_event(1))
        assert (g.abs() < 1e4).all(), "a draw of the prior"
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 10.0).to_event(1))
            pyro.sample("x", dist.Normal(z + g + 0 * self.never, 0.1).to_event(1), obs=x)

    def guide(self, x):
        g = self.of_g()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - g, 0.1).to_event(1))


def normal():
    return pyro.sample("g", dist.Normal(torch.ones(3), 3.0).to_event(1))


def heavy():
    return pyro.sample("g", dist.Cauchy(torch.ones(3), 1.0).to_event(1))


def twofold():
    h = pyro.sample("h", dist.Normal(5 * torch.ones(3), 2.0).to_event(1))
    return pyro.sample("g", dist.Normal(h, 1.0).to_event(1))


@pytest.mark.parametrize("of_g", [normal, heavy])
def test_what_is_made_of_an_example_is_of_the_shared_latents_that_it_was_read_by(of_g):
    program, x = Inverse(of_g), torch.randn(5, 3)
    torch.testing.assert_close(generation.reconstruct(program, Batch(x)).x, x)
    line = generation.interpolate(program, Batch(x[:2]), Batch(x[2:4]), steps=2).x
    torch.testing.assert_close(line[:, 0], x[:2])
    torch.testing.assert_close(line[:, 1], x[2:4])


@pytest.mark.parametrize("of_g", [normal, heavy])
def test_a_row_is_decoded_as_it_is_among_others(of_g):
    program, z = Inverse(of_g), torch.randn(5, 3)
    all_rows = generation.decode(program, {"z": z}, Batch(z)).x
    for rows in (1, 2):
        torch.testing.assert_close(
            generation.decode(program, {"z": z[:rows]}, Batch(z)).x, all_rows[:rows]
        )


def test_means_of_a_hierarchy_are_given_the_means_above():
    class Twofold(Inverse):
        def model(self, x):
            pyro.sample("h", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            super().model(x)

    program = Twofold(twofold)
    with evaluating(program):
        found = shared_latents(program, Batch(torch.zeros(2, 3)))
    assert found.keys() == {"h", "g"}
    for value in found.values():
        torch.testing.assert_close(value, 5 * torch.ones(3))


def test_shared_latents_may_be_given_in_any_place():
    program, z, g = Inverse(normal), torch.randn(2, 3), torch.tensor([1.0, 2.0, 4.0])
    few = Batch(torch.zeros(4, 3))
    for latents in ({"g": g, "z": z}, {"z": z, "g": g}):
        torch.testing.assert_close(generation.decode(program, latents, few).x, z + g)
    assert generation.decode(program, {"g": g}, few).x.shape == (4, 3)


class BayesianVAE(pyrovae.VAE):
    """A VAE with a posterior over its decoder's weights, whose means are the decoder's own."""

    def __init__(self, num_data):
        super().__init__(
            pyrovae.RealNVPPrior(2, layers=2, hidden=4),
            pyrovae.BernoulliDecoder(pyrovae.MLP((2,), (1, 3, 3), hidden=(8,))),
            pyrovae.GaussianEncoder(pyrovae.MLP((1, 3, 3), (4,), hidden=(8,))),
        )
        self.num_data = num_data

    def model(self, x):
        weights = {
            name: pyro.sample(f"w.{name}", dist.Normal(0 * w, 1.0).to_event(w.dim()))
            for name, w in self.decoder.named_parameters()
        }
        with pyro.plate("data", self.num_data, subsample=x):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", functional_call(self.decoder, weights, (z,)), obs=x)

    def guide(self, x):
        for name, w in self.decoder.named_parameters():
            pyro.sample(f"w.{name}", dist.Normal(w, 0.1).to_event(w.dim()))
        with pyro.plate("data", self.num_data, subsample=x):
            pyro.sample("z", self.encoder(x))


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_weights_of_a_decoder_are_latents_like_others(engine, tmp_path):
    """Many draws at once are measured as one by one, and the means are those of the decoder."""
    x = (torch.rand(60, 1, 3, 3) < 0.4).double()
    program = BayesianVAE(60)
    run = pyrovae.fit(
        program,
        x,
        epochs=3,
        batch_size=20,
        engine=engine,
        progress=False,
        run_dir=tmp_path / "run",
    )
    assert run.structure.vectorizes
    found = run.evaluate(x, num_samples=2000)
    one_by_one = replace(run.structure, vectorizes=False)
    with evaluating(program), torch.random.fork_rng():
        terms = [draw_terms(program, Batch(x), 1, one_by_one) for _ in range(300)]
    elbo = torch.cat([term.log_weight for term in terms]).mean(0)
    assert elbo.mean().item() == pytest.approx(found.elbo.mean().item(), abs=0.1)
    kls = torch.cat([term.global_kl for term in terms])
    exact = sum(
        ((w.square() + 0.1**2 - 1) / 2 - math.log(0.1)).sum().item()
        for w in program.decoder.parameters()
    )
    assert kls.mean().item() == pytest.approx(exact, rel=0.05)
    assert found.global_kl == pytest.approx(exact, rel=0.05)

    again = pyrovae.load(tmp_path / "run", program=BayesianVAE(60))
    shown = generation.reconstruct(again.program, Batch(x[:2])).x
    means = program.decoder(program.encoder(x[:2]).mean).mean
    torch.testing.assert_close(shown, means.detach())


class Alone(Inverse):
    """No example has a latent of its own."""

    def model(self, x):
        g = pyro.sample("g", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(g, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("g", dist.Normal(self.never + torch.ones(3), 0.1).to_event(1))


def test_a_program_whose_latents_are_all_shared(tmp_path):
    x = torch.randn(20, 3)
    run = pyrovae.fit(
        Alone(normal), x, epochs=1, batch_size=20, progress=False, run_dir=tmp_path / "run"
    )
    found = run.evaluate(x, num_samples=5)
    assert (found.latent_dims, found.collapsed) == (0, False)
    expected = (run.program.never + torch.ones(3)).detach().expand(20, 3)
    torch.testing.assert_close(generation.reconstruct(run.program, Batch(x)).x, expected)
    with pytest.raises(InputError, match="no latent of examples: all are outside"):
        run.traverse()
    run.report()


class Halves(nn.Module):
    """x = (s, s) and a little noise, for a sum s of z, of g and of an h that the guide leaves out.

    What is missing of x is told by the rest of it, and not by g or h alone.
    """

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(1.0))

    def model(self, x):
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        h = pyro.sample("h", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            p = dist.Normal((z + g + h)[..., None].expand(*z.shape, 2), 0.1)
            pyro.sample("x", NanMasked(p).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("g", dist.Normal(self.loc, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 2.0))


def test_what_is_missing_is_drawn_under_one_draw_of_what_all_share():
    program = Halves()
    x = torch.tensor([[0.5, math.nan], [math.nan, math.nan], [-1.0, 2.0], [math.nan, math.nan]])
    found = imputation.impute(program, Batch(x), count=10, num_samples=60, seed=1).x
    assert found.shape == (10, 4, 2)
    assert (found[:, 2] == x[2]).all()
    # A z that was chosen under other draws of g and h would be off by their spread.
    assert (found[:, 0, 1] - 0.5).abs().max() < 1.0
    assert (found[:, 0, 1] - 0.5).abs().mean() < 0.3

    # Of rows of which nothing is seen z is a draw, and what is left of their mean is g + h.
    many = Batch(torch.full((400, 2), math.nan))
    means = imputation.impute(program, many, count=40, num_samples=1, seed=1).x.mean((1, 2))
    assert means.std().item() == pytest.approx(math.hypot(0.5, 1.0), rel=0.3)
    assert means.mean().item() == pytest.approx(1.0, abs=0.6)
    again = imputation.impute(program, many, count=2, num_samples=1, seed=2).x.mean((1, 2))
    assert (again[:, None] - means).abs().min() > 1e-3, "another seed has other draws"


# ── The rest of what there is ────────────────────────────────────────────────────────────────


def test_a_run_is_reported_explored_and_printed(tmp_path, capsys):
    from pyrovae.cli.printing import print_numbers
    from pyrovae.explore.session import Session

    program = Shifted(size=N)
    data = TensorDataset(program.x.reshape(N, X_DIM), torch.arange(N) % 2)
    run = pyrovae.fit(program, data, epochs=2, progress=False, run_dir=tmp_path / "run")
    found = run.evaluate(run.splits["train"], num_samples=10)
    print_numbers(found, run)
    printed = capsys.readouterr().out
    assert f"shared KL {found.global_kl:13.2f} nats in all, of what all examples share" in printed

    session = Session(run)
    assert session.describe()["measured"] is None
    assert [site["name"] for site in session.describe()["sites"]] == ["z"]
    assert len(session.draw(3, 0)["pictures"]) == 3
    page = run.report().read_text()
    assert "Shared KL" in page
    assert f"{run.evaluation.global_kl:.2f}" in page


@pytest.mark.parametrize("given", [(torch.zeros(3, 2), torch.zeros(3)), {"x": 1}, "no"])
def test_what_is_no_array_is_refused(given):
    with pytest.raises(InputError, match=r"train data are a \w+ that is no array.*TensorDataset"):
        pyrovae.fit(Shifted(), given, epochs=1, progress=False)

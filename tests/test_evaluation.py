"""What an evaluation reports, beyond the closed forms of `test_exact.py`."""

import json
import math
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LATENT_DIM, AsGiven, float64, linear_gaussian

from pyrovae import draws, evaluation
from pyrovae.capture import CaptureError
from pyrovae.cli.printing import print_numbers
from pyrovae.data import Binarize, Dequantize, Examples
from pyrovae.decoders import BernoulliDecoder, ContinuousBernoulliDecoder, GaussianDecoder
from pyrovae.encoders import GaussianEncoder
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate, log_evidence, pareto_k
from pyrovae.models import VAE
from pyrovae.networks import MLP
from pyrovae.priors import GaussianMixture, StandardNormal
from pyrovae.terms import draw_terms


def image_vae(decoder):
    shape = (1, 2, 3)
    return VAE(
        StandardNormal(2),
        decoder(MLP((2,), shape, hidden=(4,))),
        GaussianEncoder(MLP(shape, (4,), hidden=(4,))),
    )


@pytest.fixture(scope="module")
def found():
    case = linear_gaussian(13, shift=0.4, stretch=1.3)
    return evaluate(case.vae, case.examples, num_samples=50)


def test_every_number_is_there_for_every_example(found):
    for name in ("elbo", "log_likelihood", "kl", "log_evidence", "log_evidence_error", "pareto_k"):
        assert getattr(found, name).shape == (13,), name
        assert getattr(found, name).dtype == torch.float64, name
        assert getattr(found, name).isfinite().all(), name
    assert found.kl_per_dim["z"].shape == (LATENT_DIM,)
    assert found.latent_means["z"].shape == (13, LATENT_DIM)
    assert (found.num_examples, found.num_samples, found.dims) == (13, 50, 7)
    assert found.seconds > 0


def test_one_large_example_is_drawn_at_once_and_so_nothing_is_worth_compiling(monkeypatch):
    expected = []

    class Counted(evaluation.Draws):
        def __init__(self, program, structure, number):
            expected.append(number)
            super().__init__(program, structure, number)

    monkeypatch.setattr(evaluation, "Draws", Counted)
    vae = VAE(
        StandardNormal(2),
        BernoulliDecoder(MLP((2,), (3, 32, 32), hidden=(2,))),
        GaussianEncoder(MLP((3, 32, 32), (4,), hidden=(2,))),
    )
    evaluate(vae, torch.rand(1, 3, 32, 32).round(), num_samples=500)
    assert expected == [1]


def test_the_summary_is_plain_and_says_the_same(found):
    summary = json.loads(json.dumps(found.summary()))
    for name in ("elbo", "log_likelihood", "kl", "log_evidence"):
        assert summary[name] == pytest.approx(getattr(found, name).mean().item())
    error = found.log_evidence.std().item() / math.sqrt(13)
    assert summary["log_evidence_se"] == pytest.approx(error)
    assert summary["log_evidence_monte_carlo_se"] == found.monte_carlo_error
    assert summary["active_units"] == found.active_units
    assert summary["num_samples"] == 50
    assert summary["num_examples"] == 13
    assert summary["bits_per_dim"] is None


def test_the_summary_counts_the_examples_whose_tail_is_heavy(found):
    object.__setattr__(found, "pareto_k", torch.tensor([0.71, 0.69, -math.inf, -1.0]))
    assert found.summary()["pareto_k_above_0.7"] == 0.25
    object.__setattr__(found, "pareto_k", torch.full((4,), math.nan))
    assert found.summary()["pareto_k_above_0.7"] is None


def test_most_tails_heavy_is_said_in_words_with_what_to_do(found, capsys):
    object.__setattr__(found, "pareto_k", torch.tensor([0.71, 0.72, 0.69]))
    assert "underestimated: for 67% of the examples" in found.warning
    assert "the 50 samples" in found.warning
    assert found.summary()["warning"] == found.warning
    told = {"data": {"x_shape": [1, 2, 2]}}
    run = SimpleNamespace(config=told, measured_split="test", others=None)
    print_numbers(found, run)
    said = capsys.readouterr().out
    assert f"warning: {found.warning}" in " ".join(said.split())
    assert max(map(len, said.partition("warning")[2].splitlines())) < 100

    for tails in ([0.71, 0.69], [0.71, 0.72, math.nan]):
        object.__setattr__(found, "pareto_k", torch.tensor(tails))
        assert found.warning is found.summary()["warning"] is None
        print_numbers(found, run)
        assert "underestimated" not in capsys.readouterr().out


@pytest.mark.parametrize(("scale", "collapsed"), [(0.0, True), (1.0, False)])
def test_a_posterior_that_says_nothing_is_called_collapsed(scale, collapsed):
    vae = VAE(
        StandardNormal(2),
        BernoulliDecoder(MLP((2,), (5,))),
        GaussianEncoder(MLP((5,), (4,), hidden=())),
    )
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(scale)
    assert evaluate(vae, torch.eye(5), num_samples=20).collapsed == collapsed


def test_a_single_example_has_no_standard_error():
    case = linear_gaussian(1)
    summary = evaluate(case.vae, case.examples, num_samples=3).summary()
    assert summary["elbo_se"] is None
    assert summary["elbo"] == pytest.approx(case.log_evidence.item())


def test_a_limit_takes_the_first_examples():
    case = linear_gaussian(13)
    found = evaluate(case.vae, case.examples, num_samples=2, limit=4)
    torch.testing.assert_close(found.elbo, case.log_evidence[:4])
    assert evaluate(case.vae, case.examples, num_samples=2, limit=99).num_examples == 13


def test_the_examples_own_noise_does_not_depend_on_the_batch_size(monkeypatch):
    raw = torch.randint(0, 256, (7, 1, 2, 3), dtype=torch.uint8)
    examples = Examples(raw, preprocessing=Binarize("dynamic"))
    vae = image_vae(BernoulliDecoder)
    means = []
    for batch_size in (7, 3):
        monkeypatch.setitem(evaluation.CHUNK, "cpu", 6 * batch_size)
        means.append(evaluate(vae, examples, num_samples=2).latent_means["z"])
    torch.testing.assert_close(*means)


def test_evaluating_twice_gives_the_same_numbers_whatever_was_drawn_between():
    raw = torch.randint(0, 256, (5, 1, 2, 3), dtype=torch.uint8)
    examples = Examples(raw, preprocessing=Dequantize())
    vae = image_vae(ContinuousBernoulliDecoder)
    one = evaluate(vae, examples, num_samples=3)
    torch.randn(10)
    two = evaluate(vae, examples, num_samples=3)
    assert torch.equal(one.log_evidence, two.log_evidence)


@pytest.mark.parametrize(
    ("decoder", "preprocessing", "has_bits"),
    [
        (BernoulliDecoder, Binarize("threshold"), True),
        (GaussianDecoder, Binarize("threshold"), False),
        (GaussianDecoder, Dequantize(), True),
        (ContinuousBernoulliDecoder, Dequantize(), True),
    ],
)
def test_bits_are_reported_of_discrete_data_alone(decoder, preprocessing, has_bits):
    examples = Examples(torch.randint(0, 256, (4, 1, 2, 3)), preprocessing=preprocessing)
    bits = evaluate(image_vae(decoder), examples, num_samples=2).bits_per_dim
    assert (bits is not None) == has_bits


def test_bits_of_bytes_are_those_of_the_density_and_of_the_cells():
    examples = Examples(torch.randint(0, 256, (4, 1, 2, 3)), preprocessing=Dequantize(256))
    found = evaluate(image_vae(GaussianDecoder), examples, num_samples=2)
    probability = found.log_evidence - 6 * math.log(256)
    assert found.bits_per_dim == pytest.approx(-probability.mean().item() / 6 / math.log(2))


def test_a_prior_without_independent_dimensions_has_no_kl_per_dimension():
    case = linear_gaussian(5)
    with float64():
        mixture = GaussianMixture(LATENT_DIM, components=2)
    vae = VAE(mixture, case.vae.decoder, case.vae.encoder)
    found = evaluate(vae, case.examples, num_samples=5)
    assert found.kl_per_dim == {}
    assert found.latent_means["z"].shape == (5, LATENT_DIM)
    assert found.kl.isfinite().all()


def test_the_exact_posterior_has_no_heavy_tail():
    """All weights are equal but for rounding, in single precision as in double."""
    case = linear_gaussian(40)
    exact = evaluate(case.vae, case.examples, num_samples=200)
    assert exact.summary()["pareto_k_above_0.7"] == 0

    single = Examples(case.x.float(), preprocessing=AsGiven())
    rounded = evaluate(case.vae.float(), single, num_samples=200)
    assert rounded.log_evidence_error.max() < 1e-4
    assert rounded.summary()["pareto_k_above_0.7"] == 0


@pytest.mark.parametrize("spread", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1])
def test_rounding_to_single_precision_makes_no_tail_heavy(spread):
    log_weight = (-700 + spread * torch.randn(1000, 30, dtype=torch.float64)).float()
    assert (pareto_k(log_weight) < 0.7).all()


def test_pareto_k_does_not_depend_on_the_weights_common_factor():
    log_weight = 2 * torch.randn(500, 3, dtype=torch.float64)
    torch.testing.assert_close(pareto_k(log_weight - 5000), pareto_k(log_weight))


def test_equal_weights_have_no_tail():
    assert (pareto_k(torch.zeros(100, 2, dtype=torch.float64)) == -math.inf).all()


def test_more_samples_are_held_for_fewer_examples_at_a_time(monkeypatch):
    case = linear_gaussian(30)
    sizes = []

    def recorded(program, batch, *rest):
        sizes.append(len(batch.x))
        return draw_terms(program, batch, *rest)

    monkeypatch.setattr(evaluation, "WEIGHTS", 100)
    monkeypatch.setattr(draws, "draw_terms", recorded)
    evaluate(case.vae, case.examples, num_samples=25)
    assert max(sizes) == 4


def mixture_vae():
    """Of six pixels, and of a prior to which the KL is sampled."""
    torch.manual_seed(0)
    return VAE(
        prior=GaussianMixture(2, components=3),
        decoder=BernoulliDecoder(MLP((2,), (6,))),
        encoder=GaussianEncoder(MLP((6,), (4,))),
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_draws_that_are_compiled_are_those_of_the_program(monkeypatch, labelled):
    # A last batch of another size.
    vae = mixture_vae()
    if labelled:
        plain, guide = vae.model, vae.guide
        vae.model = lambda x, y: plain(x)
        vae.guide = lambda x, y: guide(x + 0.1 * y[:, None])
    x = (torch.rand(23, 6) < 0.4).float()
    data = Examples(x, torch.arange(23) if labelled else None)
    monkeypatch.setattr(evaluation, "WEIGHTS", 200)
    compiled, found = [], {}
    compile_graph = draws.compile_graph
    monkeypatch.setattr(draws, "compile_graph", lambda *a: compiled.append(a) or compile_graph(*a))
    for often in (10**9, 1):
        monkeypatch.setattr(draws, "OFTEN", often)
        found[often] = evaluate(vae, data, num_samples=20)
    assert len(compiled) == 1
    for name in ("elbo", "log_evidence", "log_likelihood", "kl"):
        ours, theirs = (getattr(found[often], name) for often in (1, 10**9))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)
    assert set(found[1].latent_means) == {"z"}
    torch.testing.assert_close(found[1].latent_means["z"], found[10**9].latent_means["z"])


def test_draws_of_a_prior_that_goes_on_validating_are_compiled(monkeypatch, recwarn):
    kept = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    vae = mixture_vae()
    del vae.prior
    vae.prior = lambda: kept
    monkeypatch.setattr(draws, "OFTEN", 1)
    evaluate(vae, (torch.rand(5, 6) < 0.4).float(), num_samples=20)
    assert not recwarn.list


@pytest.mark.parametrize("measure", [evaluate, log_evidence])
def test_log_p_of_5000_samples_is_compiled(monkeypatch, measure):
    vae = mixture_vae()
    x = (torch.rand(6, 6) < 0.4).float()
    # As for 784 pixels: a few thousand draws at a time, in several pieces.
    monkeypatch.setitem(evaluation.CHUNK, "cpu", 6 * 2500)
    compiled, found = [], {}
    compile_graph = draws.compile_graph
    monkeypatch.setattr(draws, "compile_graph", lambda *a: compiled.append(a) or compile_graph(*a))
    for often in (14, 12):  # pieces of one shape: there are 13, or 2 for each of 6 examples
        monkeypatch.setattr(draws, "OFTEN", often)
        given = measure(vae, x, num_samples=5000)
        found[often] = given if measure is log_evidence else given.log_evidence
        assert len(compiled) == (often == 12)
    torch.testing.assert_close(found[12], found[14], rtol=1e-5, atol=1e-5)


def test_a_program_whose_draws_cannot_be_compiled_is_evaluated_in_python(monkeypatch):
    case = linear_gaussian(30)
    expected = evaluate(case.vae, case.examples, num_samples=25)

    def fail(*_):
        raise CaptureError("a branch")

    monkeypatch.setattr(draws, "OFTEN", 1)
    monkeypatch.setattr(draws, "capture", fail)
    with pytest.warns(UserWarning, match="a branch"):
        found = evaluate(case.vae, case.examples, num_samples=25)
    assert torch.equal(found.log_evidence, expected.log_evidence)

    monkeypatch.undo()
    monkeypatch.setattr(draws, "OFTEN", 1)
    monkeypatch.setattr(
        draws, "compile_graph", lambda graph, _: lambda *x: [2 * v for v in graph(*x)]
    )
    found = evaluate(case.vae, case.examples, num_samples=25)
    assert torch.equal(found.log_evidence, expected.log_evidence)


@pytest.mark.parametrize("measure", [evaluate, log_evidence])
def test_draws_of_a_program_that_reads_its_data_in_python_are_found_out(monkeypatch, measure):
    """What `tolist` gives is a number of the first batch in the compiled draw of all others."""
    case = linear_gaussian(24)
    model = case.vae.model

    def reads(x):
        offset = torch.tensor(x[:, 0].tolist(), dtype=x.dtype) - x[:, 0]
        return model(x + offset[:, None])

    case.vae.model = reads
    monkeypatch.setattr(evaluation, "WEIGHTS", 400)
    monkeypatch.setitem(evaluation.CHUNK, "cpu", 400)
    expected = measure(case.vae, case.examples, num_samples=200)
    monkeypatch.setattr(draws, "OFTEN", 1)
    with pytest.warns(UserWarning, match=r"others for further examples .* \.tolist\(\)"):
        found = measure(case.vae, case.examples, num_samples=200)
    if measure is evaluate:
        found, expected = found.log_evidence, expected.log_evidence
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [{"num_samples": 2.5}, {"limit": 2.5}])
def test_numbers_that_are_not_whole_are_refused(number):
    exact = linear_gaussian()
    with pytest.raises(InputError, match=r"is 2\.5\. Give a whole number"):
        evaluate(exact.vae, exact.x, **number)

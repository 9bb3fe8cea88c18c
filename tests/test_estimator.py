"""The estimator of scikit-learn: its own checks, closed forms, and its use beside others."""

import math
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from linear_gaussian import X_DIM, linear_gaussian
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyrovae
from pyrovae import parts
from pyrovae.data import Standardize
from pyrovae.errors import InputError
from pyrovae.evaluation import evaluate, log_evidence

QUICK = {"latent_dim": 2, "hidden": 8, "epochs": 2, "num_samples": 20, "random_state": 0}


def table(count=60, width=4, *, seed=0):
    """Rows of two clusters, and which of them each is of."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    return rng.normal(size=(count, width)) + 4.0 * y[:, None], y


@parametrize_with_checks([pyrovae.VAETransformer(latent_dim=2, hidden=8, epochs=2)])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


# ── Against closed forms ──


def linear_case(preprocessing=None):
    """An estimator that holds the linear-Gaussian program, and that program."""
    case = linear_gaussian(20, shift=0.2, stretch=1.1)
    x, _ = table(30, X_DIM)
    fitted = pyrovae.VAETransformer(3, epochs=1, num_samples=2000, standardize=False).fit(x)
    fitted.run_.program = case.vae.float()
    if preprocessing is not None:
        fitted.run_.config["data"]["preprocessing"] = parts.to_config(preprocessing)
    return fitted, case


def test_score_samples_is_the_exact_log_density_of_a_linear_program():
    fitted, case = linear_case()
    found = fitted.score_samples(case.x)
    assert found == pytest.approx(case.log_evidence.numpy(), abs=0.1)
    assert fitted.score(case.x) == pytest.approx(found.mean())


def test_it_is_of_the_data_in_their_own_units():
    scale, mean = torch.linspace(0.5, 3.0, X_DIM), torch.arange(float(X_DIM))
    fitted, case = linear_case(Standardize(mean, scale))
    raw = case.x.float() * scale + mean
    exact = case.log_evidence - scale.double().log().sum()
    assert fitted.score_samples(raw.numpy()) == pytest.approx(exact.numpy(), abs=0.1)
    assert fitted.transform(raw.numpy()) == pytest.approx(case.loc.numpy(), abs=1e-4)
    means = case.vae.decoder(case.loc.float()).mean.detach() * scale + mean
    assert fitted.inverse_transform(case.loc.numpy()) == pytest.approx(means.numpy(), abs=1e-4)


def test_samples_have_the_moments_of_a_linear_program():
    fitted, case = linear_case()
    fitted.random_state = 3
    drawn = fitted.sample(20_000)
    W = case.vae.decoder.net.weight.detach().numpy()
    covariance = W @ W.T + 0.09 * np.eye(X_DIM)
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.08)
    assert drawn.mean(0) == pytest.approx(case.vae.decoder.net.bias.detach().numpy(), abs=0.05)


@pytest.mark.parametrize("standardize", [False, True])
def test_training_comes_near_probabilistic_pca(standardize):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(X_DIM, 2)))[0] * [2.0, 1.2]

    def draw(count):
        return rng.normal(size=(count, 2)) @ basis.T + 0.3 * rng.normal(size=(count, X_DIM))

    x, held_out = draw(1000), draw(300)
    scaler = StandardScaler(with_mean=standardize, with_std=standardize).fit(x)
    pca = make_pipeline(scaler, PCA(2)).fit(x)
    exact = pca.score(held_out) - (np.log(scaler.scale_).sum() if standardize else 0.0)
    vae = pyrovae.VAETransformer(
        2, hidden=30, epochs=60, batch_size=100, lr=1e-2, standardize=standardize, random_state=0
    ).fit(x)
    assert vae.score(held_out) == pytest.approx(exact, abs=0.1)
    errors = [
        np.square(m.inverse_transform(m.transform(held_out)) - held_out).mean() for m in (vae, pca)
    ]
    assert errors[0] < 1.2 * errors[1]


def test_its_estimate_agrees_with_an_evaluation_and_does_not_depend_on_neighbours():
    case = linear_gaussian(9, shift=0.4, stretch=1.3)
    alone = log_evidence(case.vae, case.x, num_samples=5000)
    together = evaluate(case.vae, case.x, num_samples=5000)
    difference = (alone - together.log_evidence).abs()
    assert (difference < 5 * math.sqrt(2) * together.log_evidence_error).all()
    assert (difference > 0).all()
    backwards = log_evidence(case.vae, case.x.flip(0), num_samples=5000).flip(0)
    assert torch.equal(alone, backwards)
    assert not torch.equal(alone, log_evidence(case.vae, case.x, num_samples=5000, seed=1))


def test_an_example_is_measured_beside_its_own_label():
    case = linear_gaussian(6)
    model, guide = case.vae.model, case.vae.guide
    case.vae.model = lambda x, y: model(x - y[:, None])
    case.vae.guide = lambda x, y: guide(x - y[:, None])
    y = torch.arange(6)
    labelled = torch.utils.data.TensorDataset(case.x + y[:, None], y)
    found = log_evidence(case.vae, labelled, num_samples=200)
    torch.testing.assert_close(found, case.log_evidence, atol=1e-3, rtol=1e-4)


def test_rows_have_draws_of_their_own():
    """Equal errors of all rows would not fall as the mean is taken over more of them."""
    case = linear_gaussian(400, shift=0.5, stretch=1.4)
    found = log_evidence(case.vae, case.x, num_samples=20)
    errors = found - case.log_evidence
    other = log_evidence(case.vae, case.x, num_samples=20, seed=1) - case.log_evidence
    # The shared part of the errors is what their means over rows have beyond bias.
    assert (errors.mean() - other.mean()).abs() < 4 * errors.std() * math.sqrt(2 / 400)


# ── Beside other estimators ──


def test_it_stands_in_a_pipeline_before_a_classifier():
    x, y = table(200)
    model = make_pipeline(
        StandardScaler(), pyrovae.VAETransformer(**QUICK | {"epochs": 40}), LogisticRegression()
    )
    assert model.fit(x[:150], y[:150]).score(x[150:], y[150:]) > 0.9


def test_a_grid_search_goes_by_its_score():
    x, _ = table(90)
    search = GridSearchCV(
        pyrovae.VAETransformer(**QUICK), {"epochs": [1, 60], "lr": [1e-2]}, cv=2
    ).fit(x)
    assert search.best_params_["epochs"] == 60
    best = max(search.cv_results_["mean_test_score"])
    assert search.best_score_ == best
    assert search.best_estimator_.score(x) == pytest.approx(best, abs=3)


def test_parameters_are_kept_as_given_and_cloned():
    given = {**QUICK, "prior": "gaussian-mixture", "lr": 0.5, "kl_warmup": 3.0, "verbose": False}
    vae = pyrovae.VAETransformer(**given)
    found = clone(vae.set_params(beta=2.0)).get_params()
    assert {name: found[name] for name in given} == given
    assert found["beta"] == 2.0


def test_a_fitted_one_survives_a_file(tmp_path):
    x, _ = table()
    vae = pyrovae.VAETransformer(**QUICK).fit(x)
    again = joblib.load(joblib.dump(vae, tmp_path / "vae")[0])
    for method in ("transform", "score_samples"):
        assert np.array_equal(getattr(vae, method)(x), getattr(again, method)(x))
    # Without the data it was trained on, whatever their number.
    many = pyrovae.VAETransformer(**QUICK).fit(np.tile(x, (50, 1)))
    joblib.dump(many, tmp_path / "many")
    sizes = [(tmp_path / name).stat().st_size for name in ("vae", "many")]
    assert sizes[1] < sizes[0] + 500


def test_the_random_state_decides():
    x, _ = table()
    first, same = (pyrovae.VAETransformer(**QUICK).fit(x) for _ in range(2))
    other = clone(first).set_params(random_state=1).fit(x)
    assert np.array_equal(first.transform(x), same.transform(x))
    assert not np.array_equal(first.transform(x), other.transform(x))
    assert np.array_equal(first.sample(3), same.sample(3))
    seeds = [vae.run_.config["training"]["seed"] for vae in (first, same, other)]
    assert seeds[0] == seeds[1] != seeds[2]
    loose = pyrovae.VAETransformer(**QUICK | {"random_state": np.random.RandomState(0)}).fit(x)
    assert not np.array_equal(loose.sample(3), loose.sample(3))


def test_words_name_the_parts():
    x, _ = table()
    counts = np.random.default_rng(0).poisson(3.0, size=(60, 4))
    for words, data in [
        ({"prior": "gaussian-mixture", "encoder": "iaf", "network": "gated"}, x),
        ({"decoder": "student-t", "prior": "laplace"}, x),
        ({"decoder": "negative-binomial"}, counts),
    ]:
        vae = pyrovae.VAETransformer(**QUICK | words).fit(data)
        assert vae.transform(data).shape == (60, 2)
        assert np.isfinite(vae.score(data))
    assert type(vae.run_.program.decoder) is pyrovae.NegativeBinomialDecoder
    drawn = vae.sample(50)
    assert np.array_equal(drawn, drawn.round())
    assert vae.inverse_transform(vae.transform(counts)).min() > 0


def test_every_option_reaches_training():
    x, _ = table()
    vae = pyrovae.VAETransformer(
        **QUICK | {"epochs": 10, "batch_size": 7, "lr": 0.01, "beta": 3.0}, device="cpu"
    ).fit(x)
    told = vae.run_.config["training"]
    assert (told["epochs"], told["batch_size"], told["optimizer"]["lr"]) == (10, 7, 0.01)
    assert told["kl_warmup"] == 1.0
    assert vae.run_.program.beta == 3.0
    assert len(vae.run_.metrics) == 10
    one = clone(vae).set_params(kl_warmup=0.0, num_samples=1).fit(x)
    assert one.run_.config["training"]["kl_warmup"] == 0.0
    assert one.score(x) < one.set_params(num_samples=500).score(x)


def test_progress_is_shown_if_asked_for(capsys):
    x, _ = table()
    pyrovae.VAETransformer(**QUICK).fit(x)
    assert capsys.readouterr().out == ""
    pyrovae.VAETransformer(**QUICK | {"verbose": True}).fit(x)
    assert "epoch   2/2" in capsys.readouterr().out


def test_columns_have_names():
    x, _ = table()
    vae = pyrovae.VAETransformer(**QUICK).fit(x)
    assert list(vae.get_feature_names_out()) == ["vaetransformer0", "vaetransformer1"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"prior": "gauss"}, "no prior 'gauss'"),
        ({"network": "conv"}, "Convolutions need images"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"decoder": "bernoulli"}, "outside"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said):
    x, _ = table()
    with pytest.raises(InputError, match=said):
        pyrovae.VAETransformer(**QUICK | wrong).fit(x)


def test_what_is_asked_of_it_wrongly_is_refused():
    x, _ = table()
    with pytest.raises(NotFittedError):
        pyrovae.VAETransformer().sample()
    vae = pyrovae.VAETransformer(**QUICK).fit(x)
    with pytest.raises(InputError, match="3 columns"):
        vae.inverse_transform(np.zeros((2, 3)))
    with pytest.raises(InputError, match="n_samples is 0"):
        vae.sample(0)
    with pytest.raises(InputError, match="num_samples is 0"):
        vae.set_params(num_samples=0).score(x)


def test_what_has_no_log_density_is_refused():
    vae = pyrovae.VAETransformer(**QUICK | {"decoder": "bernoulli"}).fit(np.eye(4))
    with pytest.raises(InputError, match="in example 4"):
        vae.score_samples(np.vstack([np.eye(4), [0, 0, 0, 0.5]]))
    plain = pyrovae.Autoencoder(2, vae.run_.program.decoder, vae.run_.program.encoder)
    with pytest.raises(InputError, match="log p\\(x\\) is undefined"):
        log_evidence(plain, torch.eye(4))


def test_the_package_is_imported_without_it():
    code = "import sys, pyrovae, pyrovae.cli; pyrovae.fit; print('sklearn' in sys.modules)"
    root = Path(__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert found.stdout.strip() == "False", found.stderr

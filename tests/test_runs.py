"""Runs: what a directory gives back, and what it refuses."""

import json
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_for_tests import InTwo, binary, same, small_vae, weights
from pyro.distributions.transforms import affine_coupling
from torch import nn
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import run_folder
from pyrovae.data import AsIs
from pyrovae.errors import CheckpointError, InputError
from pyrovae.parts import why_undescribed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "digits"
    data = pyrovae.load_data("digits")
    vae = small_vae(data.x_shape, latent_dim=3)
    return pyrovae.fit(vae, data, epochs=2, run_dir=path, progress=False)


def test_other_data_bring_their_labels():
    """As a program of theirs asks for them."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor([[0.0], [1.0]]).expand(2, 6).clone())

        def model(self, x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc[y], 1.0).to_event(1), obs=x)

        def guide(self, x):
            pass

    x, y = binary(40), torch.arange(40) % 2
    run = pyrovae.fit(Shifted(), TensorDataset(x, y), epochs=1, progress=False)
    expected = pyrovae.evaluate(run.program, TensorDataset(x, 1 - y), num_samples=2)
    found = run.on(TensorDataset(x, 1 - y)).evaluate(num_samples=2)
    assert torch.equal(found.elbo, expected.elbo)
    assert not torch.equal(found.elbo, run.evaluate(TensorDataset(x, y), num_samples=2).elbo)


def test_a_run_loads_with_its_weights_splits_and_numbers(trained):
    again = pyrovae.load(trained.path)
    assert same(weights(trained.program), weights(again.program))
    assert again.metrics == trained.metrics
    assert again.preprocessing == trained.preprocessing
    for name, split in trained.splits.items():
        assert torch.equal(split.head(50).x, again.splits[name].head(50).x)
    numbers = [run.evaluate(num_samples=20, limit=30).summary() for run in (trained, again)]
    for found in numbers:
        found.pop("seconds")
    assert numbers[0] == numbers[1]
    assert json.loads((trained.path / "evaluation.json").read_text())["num_examples"] == 30


def test_a_run_draws_in_the_units_of_the_data(trained):
    for picture in (trained.sample(5), trained.reconstruct(4), trained.traverse(dims=[0, 2])):
        assert picture.x.shape[-3:] == (1, 8, 8)
        finite = picture.x[torch.isfinite(picture.x)]
        assert finite.min() >= 0
        assert 1 < finite.max() <= 16
    assert trained.interpolate(0, 3, steps=6).x.shape == (1, 6, 1, 8, 8)
    assert trained.reconstruct(4).x.shape == (2, 4, 1, 8, 8)


def test_an_interpolation_starts_and_ends_at_the_reconstructions(trained):
    ends = trained.interpolate(0, 3, steps=6).x[0, [0, -1]]
    torch.testing.assert_close(ends, trained.reconstruct(4).x[1, [0, 3]])


def test_equal_seeds_draw_equal_samples(trained):
    assert torch.equal(trained.sample(8, seed=1).x, trained.sample(8, seed=1).x)
    assert not torch.equal(trained.sample(8, seed=1).x, trained.sample(8, seed=2).x)


def test_a_two_dimensional_latent_has_a_plane():
    run = pyrovae.fit(small_vae(), binary(), epochs=1, progress=False)
    assert run.manifold(side=4).x.shape == (4, 4, 6)
    three = pyrovae.fit(small_vae(latent_dim=3), binary(), epochs=1, progress=False)
    with pytest.raises(InputError, match="3 dimensions"):
        three.manifold()


@pytest.mark.parametrize(("first", "last"), [(0, 10_000), (-1, 0)])
def test_examples_that_do_not_exist_are_refused(trained, first, last):
    with pytest.raises(InputError, match="There is no example"):
        trained.interpolate(first, last)


def test_dimensions_and_sites_that_do_not_exist_are_refused(trained):
    with pytest.raises(InputError, match="0 to 2"):
        trained.traverse(dims=[7])
    with pytest.raises(InputError, match="no latent site"):
        trained.traverse(site="y")


def test_other_data_are_given_by_on(trained):
    x = torch.rand(3, *trained.measured.x_shape)
    with pytest.raises(InputError, match=r"this is a Tensor.*run\.on\(data\)\.encode\(\)"):
        trained.encode(x)
    with pytest.raises(InputError, match=r"count is a Tensor.*run\.on\(data\)"):
        trained.reconstruct(x)
    assert len(trained.on(x).encode().means["z"]) == 3


def test_a_report_names_its_numbers_and_how_they_were_made(trained):
    trained.evaluate(num_samples=20, limit=30)
    page = trained.report().read_text()
    assert f"{trained.evaluation.elbo.mean():.2f}" in page
    for words in ("Reconstructions", "Samples", "Latent traversals", "seed 0", "KL per dimension"):
        assert words in page


def test_a_run_without_a_directory_has_no_report():
    run = pyrovae.fit(small_vae(), binary(), epochs=1, progress=False)
    with pytest.raises(InputError, match="run_dir"):
        run.report()


def test_arrays_are_given_again_and_recognised(tmp_path):
    x = binary()
    run = pyrovae.fit(
        small_vae(), pyrovae.load_data(x), epochs=1, run_dir=tmp_path / "run", progress=False
    )
    bare = pyrovae.load(run.path)
    assert bare.sample(3).x.shape[-1] == 6
    with pytest.raises(InputError, match="Give them again"):
        bare.evaluate(num_samples=5)
    again = pyrovae.load(run.path, data=x)
    assert torch.equal(again.splits["test"].head(9).x, run.splits["test"].head(9).x)
    with pytest.raises(InputError, match="not those"):
        pyrovae.load(run.path, data=1 - x)


def test_arrays_that_are_given_again_are_of_the_dtype_of_the_program_as_in_training(tmp_path):
    x = binary().double()
    run = pyrovae.fit(small_vae(), x, epochs=1, run_dir=tmp_path / "run", progress=False)
    expected = pyrovae.evaluate(run.program, x.float(), num_samples=5)
    found = pyrovae.load(run.path, data=x).evaluate(num_samples=5)
    assert torch.equal(found.log_evidence, expected.log_evidence)


def test_the_part_that_no_configuration_names_is_named(tmp_path):
    def program():
        vae = small_vae(latent_dim=2)
        vae.prior = pyrovae.FlowPrior(2, [affine_coupling(2, [4])])
        return vae

    run = pyrovae.fit(program(), binary(), epochs=1, run_dir=tmp_path / "run", progress=False)
    with pytest.raises(InputError, match=r"AffineCoupling is not .* program=") as refused:
        pyrovae.load(run.path)
    assert "VAE" not in refused.value.cause
    again = pyrovae.load(run.path, program=program())
    assert same(weights(again.program), weights(run.program))
    with pytest.raises(InputError, match=r"AffineCoupling is not .* program="):
        pyrovae.from_pretrained(again.save_pretrained(tmp_path / "kept"))
    assert "my.Program" in why_undescribed({"class": "my.Program"}), "as earlier versions record"


def test_a_program_of_ones_own_is_given_again(tmp_path):
    vae = small_vae()
    own = SimpleNamespace(model=vae.model, guide=vae.guide, parts=vae)
    run = pyrovae.fit(own, binary(), epochs=1, run_dir=tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="program="):
        pyrovae.load(run.path)
    other = small_vae(seed=5)
    fresh = SimpleNamespace(model=other.model, guide=other.guide, parts=other)
    pyrovae.load(run.path, program=fresh)
    assert same(weights(vae), weights(other))
    wrong = small_vae(latent_dim=3)
    misfit = SimpleNamespace(model=wrong.model, guide=wrong.guide, parts=wrong)
    with pytest.raises(InputError, match="do not fit"):
        pyrovae.load(run.path, program=misfit)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        pyrovae.load(tmp_path)
    (tmp_path / "config.json").write_text('{"program": {"part": "os.system"}, "data": {}}')
    with pytest.raises((InputError, CheckpointError)):
        pyrovae.load(tmp_path)


def test_a_run_whose_checkpoints_are_gone_says_so(tmp_path):
    run = pyrovae.fit(small_vae(), binary(), epochs=1, run_dir=tmp_path / "r", progress=False)
    for file in (run.path / "checkpoints").rglob("model.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        pyrovae.load(run.path)


@pytest.mark.parametrize("family", ["Categorical", "Cauchy"])
def test_a_likelihood_without_a_mean_is_shown_by_a_draw_and_says_so(family, tmp_path):
    vae = small_vae((4, 3) if family == "Categorical" else (6,))

    def likelihood(eta):
        if family == "Categorical":
            return dist.Categorical(logits=eta).to_event(1)
        return dist.Cauchy(eta, 0.1).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", likelihood(vae.decoder.net(z)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 1.0).to_event(1))

    width = 4 if family == "Categorical" else 6
    encode = nn.Linear(width, 2)
    x = torch.randint(0, 3, (60, width)).float()
    program = SimpleNamespace(model=model, guide=guide, net=vae.decoder, encode=encode)
    run = pyrovae.fit(program, x, epochs=1, run_dir=tmp_path / "r", progress=False)
    picture = run.sample(4)
    assert torch.isfinite(picture.x).all()
    assert torch.isnan(run.sample(13).x).any(), "the blanks of a short last row"
    assert "one draw of x each" in picture.caption
    if family == "Categorical":
        assert set(picture.x.unique().tolist()) <= {0.0, 1.0, 2.0}, "a mean would be no code"
    assert "Training ELBO" in run.report().read_text()


@pytest.mark.parametrize("shape", [(5, 7), (2, 4, 4)])
def test_data_that_are_no_images_are_drawn_too(shape, tmp_path):
    run = pyrovae.fit(
        small_vae(shape),
        torch.randint(0, 2, (60, *shape)).float(),
        epochs=1,
        run_dir=tmp_path / "r",
        progress=False,
    )
    assert run.report().is_file()


class Factor(nn.Module):
    """One number for each example, w z and noise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.weight * z.squeeze(-1), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight * x.unsqueeze(-1) / 3, 0.8).to_event(1))


def test_single_numbers_are_drawn_too(tmp_path):
    x = torch.linspace(-2, 2, 30)
    run = pyrovae.fit(Factor(), x, epochs=1, run_dir=tmp_path / "r", progress=False)
    assert run.sample(8).x.shape == (1, 8)
    assert run.interpolate(steps=3).x.shape == (1, 3)
    assert run.report().is_file()


def test_a_report_is_written_of_examples_with_vectors_of_labels(tmp_path):
    x, y = torch.linspace(-2, 2, 30).unsqueeze(-1), torch.ones(30, 2)
    run = pyrovae.fit(
        small_vae((1,), decoder=pyrovae.GaussianDecoder),
        pyrovae.Examples(x, y),
        epochs=1,
        run_dir=tmp_path / "r",
        progress=False,
    )
    assert run.report().is_file()


def test_a_preprocessing_of_ones_own_is_undone_in_pictures():
    class Doubled(AsIs):
        def invert(self, x):
            return 100 + x

    examples = pyrovae.Examples(binary(), preprocessing=Doubled())
    run = pyrovae.fit(small_vae(), examples, epochs=1, progress=False)
    assert run.sample(4).x.min() >= 100


def test_samples_of_a_conditional_program_are_of_several_labels():
    vae, seen = small_vae(), []

    def model(x, y):
        seen.append(y)
        vae.model(x)

    program = SimpleNamespace(model=model, guide=vae.guide, vae=vae)
    examples = pyrovae.Examples(binary(20), torch.arange(20) % 3)
    run = pyrovae.fit(program, examples, epochs=1, progress=False)
    run.sample(6)
    assert seen[-1].tolist() == [0, 1, 2, 0, 1, 2]


def test_numbers_of_weights_that_are_trained_on_are_taken_away(tmp_path):
    data = pyrovae.load_data("digits")
    told = {"run_dir": tmp_path / "run", "progress": False}
    pyrovae.fit(small_vae(data.x_shape), data, epochs=1, **told).evaluate(num_samples=5)
    assert (tmp_path / "run" / "evaluation.json").exists()
    again = pyrovae.fit(small_vae(data.x_shape), data, epochs=2, resume=True, **told)
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert again._numbers is None


@pytest.mark.parametrize("bad", ["[1]", "3", "{", "null", "\x00"])
def test_records_end_at_a_line_that_is_none(bad, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 1}}\n{bad}\n{{"epoch": 3}}\n')
    assert run_folder.read_lines(tmp_path / "metrics.jsonl") == [{"epoch": 1}]


def test_a_program_whose_site_x_is_a_part_of_x_draws_no_examples(tmp_path):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 5)
    run = pyrovae.fit(
        InTwo(), pyrovae.load_data(x.numpy()), epochs=1, progress=False, run_dir=tmp_path / "run"
    )
    assert run.evaluate(num_samples=5).log_evidence.isfinite().all()
    assert "Reconstructions" not in run.report().read_text()
    for draw in (run.sample, run.reconstruct, run.traverse):
        with pytest.raises(InputError, match=r"'x' observes 1 of the 4 .*observe all of x"):
            draw()

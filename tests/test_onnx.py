"""ONNX files: they compute what the program does, for any number of examples, without it."""

import json
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs_for_tests import binary, same, small_vae, weights
from torch import nn

import pyrovae
from pyrovae import cli, encoding, generation, onnx
from pyrovae.data import Batch
from pyrovae.errors import CheckpointError, InputError
from pyrovae.programs import evaluating, examples_first

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch, without_drawing):
    monkeypatch.chdir(tmp_path)


def session(path):
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def check_parity(run, folder, x):
    """The files against what the rest of the package makes of the same numbers."""
    encoder, decoder = session(folder / "encoder.onnx"), session(folder / "decoder.onnx")
    for count in (1, 2, 17):
        batch = Batch(x[:count])
        mean, *scale = encoder.run(None, {"x": batch.x.numpy()})
        expected = encoding.posterior_means(run.program, batch)["z"]
        assert mean == pytest.approx(expected.numpy(), abs=1e-5)
        z = 2 * torch.randn(expected.shape)
        [found] = decoder.run(None, {"z": z.numpy()})
        shown = generation.decode(run.program, {"z": z}, batch)
        assert shown.shown_by == "mean"
        assert found == pytest.approx(shown.x.numpy(), abs=1e-5)
        for value in scale:
            with evaluating(run.program):
                site = pyro.poutine.trace(run.program.guide).get_trace(batch.x).nodes["z"]
            expected = examples_first(site["fn"].stddev, site)
            assert value == pytest.approx(expected.numpy(), abs=1e-5)
    return [output.name for output in encoder.get_outputs()]


def trained(vae, data):
    return pyrovae.fit(vae, data, epochs=1, progress=False)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_files_compute_what_the_program_does(network):
    data = pyrovae.load_data("digits")
    shape = data.x_shape
    encode, decode = {
        "mlp": (pyrovae.MLP(shape, (6,), hidden=(16,)), pyrovae.MLP((3,), shape, hidden=(16,))),
        "conv": (pyrovae.ConvNet(shape, (6,), hidden=8), pyrovae.DeconvNet((3,), shape)),
    }[network]
    vae = pyrovae.VAE(
        pyrovae.GaussianMixture(3),
        pyrovae.BernoulliDecoder(decode),
        pyrovae.GaussianEncoder(encode),
    )
    run = trained(vae, data)
    before = weights(vae)
    folder = run.export_onnx("files")
    assert same(weights(vae), before)
    assert check_parity(run, folder, data.test.head(20).x) == ["mean", "scale"]
    assert {path.name for path in folder.iterdir()} == {
        "encoder.onnx",
        "decoder.onnx",
        "metadata.json",
    }


def test_a_program_in_a_file_is_exported_by_the_command(capsys):
    cli.main(["new", "mine.py"])
    quick = ["--epochs", "1", "--build.latent-dim", "3", "--build.hidden", "8"]
    cli.main(["train", "mine.py", *quick, "--run-dir", "run"])
    capsys.readouterr()
    cli.main(["export", "run"])
    assert capsys.readouterr().out.strip() == str(Path("run/export"))
    run = pyrovae.load("run")
    assert check_parity(run, Path("run/export"), run.measured.head(20).x) == ["mean", "scale"]
    cli.main(["export", "run", "-o", "elsewhere"])
    assert Path("elsewhere/decoder.onnx").is_file()


def test_a_program_of_plain_pyro_is_exported():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(6, 2), nn.Linear(2, 6)

        def model(self, x):
            with pyro.plate("data", len(x)):
                # A prior that asks for the number of examples in two ways.
                loc = torch.zeros(len(x), 2) + x.new_zeros(x.shape[0], 2)
                z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
                likelihood = dist.Laplace(self.decode(z).tanh(), 0.5).to_event(1)
                pyro.sample("obs", likelihood, obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.StudentT(1.0, self.encode(x)).to_event(1))

    class Finite(Mine):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Laplace(self.encode(x), 0.1).to_event(1))

    run = trained(Finite(), binary())
    assert check_parity(run, run.export_onnx("files"), binary(20)) == ["mean", "scale"]


class WithShift(nn.Module):
    """A shift that all examples share, far from where its prior has it, and z if there is one."""

    def __init__(self, *, has_z=True):
        super().__init__()
        self.has_z = has_z
        self.encode, self.decode = nn.Linear(6, 2), nn.Linear(2, 6)

    def model(self, x):
        mean = pyro.sample("shift", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            if self.has_z:
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                mean = mean + self.decode(z)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("shift", dist.Normal(torch.arange(6.0) + self.decode.bias, 0.1).to_event(1))
        if self.has_z:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encode(x), 0.5).to_event(1))


class Rows(nn.Module):
    """A latent for each of six rows of an example, in a plate round that of the examples."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(6, 6)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("rows", 6, dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(6, len(x)), 1.0))
            pyro.sample("x", dist.Normal(torch.arange(6.0)[:, None] * z, 1.0), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("rows", 6, dim=-2):
            pyro.sample("z", dist.Normal(self.encode(x).T, 0.5))


def test_a_latent_in_a_plate_round_that_of_the_examples_is_exported():
    x = torch.randn(30, 6)
    run = pyrovae.fit(Rows(), x, epochs=1, batch_size=30, progress=False)
    assert check_parity(run, run.export_onnx("files"), x) == ["mean", "scale"]


def test_what_all_examples_share_is_in_the_file():
    x = torch.randn(30, 6)
    run = pyrovae.fit(WithShift(), x, epochs=1, batch_size=30, progress=False)
    assert check_parity(run, run.export_onnx("files"), x) == ["mean", "scale"]


def test_a_program_without_latents_of_examples_is_refused():
    x = torch.randn(30, 6)
    run = pyrovae.fit(WithShift(has_z=False), x, epochs=1, batch_size=30, progress=False)
    refused(run, "latent sites of an example are none")


def test_a_code_without_a_scale_has_its_mean_alone():
    vae = small_vae()
    run = trained(pyrovae.Autoencoder(2, vae.decoder, vae.encoder), binary())
    folder = run.export_onnx("files")
    assert check_parity(run, folder, binary(20))[0] == "mean"


def test_the_metadata_say_what_goes_in_and_comes_out():
    rows = np.random.default_rng(0).normal(5.0, 3.0, size=(100, 4)).astype(np.float32)
    data = pyrovae.load_data(rows)
    vae = pyrovae.VAE(
        pyrovae.StandardNormal(2),
        pyrovae.GaussianDecoder(pyrovae.MLP((2,), (4,), hidden=(8,))),
        pyrovae.GaussianEncoder(pyrovae.MLP((4,), (4,), hidden=(8,))),
    )
    run = trained(vae, data)
    folder = run.export_onnx("files")
    told = json.loads((folder / "metadata.json").read_text())
    assert told["encoder"]["input"] == {"name": "x", "shape": ["batch", 4]}
    assert told["encoder"]["outputs"] == ["mean", "scale"]
    assert told["decoder"]["input"] == {"name": "z", "shape": ["batch", 2]}
    assert told["decoder"]["output"] == {"name": "mean", "shape": ["batch", 4]}
    assert told["program"] == "VAE"
    # Who has the files and this one has all that is needed.
    scaling = told["preprocessing"]
    assert scaling["part"] == "Standardize"
    x = (rows - scaling["mean"]["tensor"]) / scaling["scale"]["tensor"]
    encoder = session(folder / told["encoder"]["file"])
    [mean, _] = encoder.run(None, {"x": x.astype(np.float32)})
    assert mean == pytest.approx(run.on(rows).encode().means["z"].numpy(), abs=1e-4)


def test_a_run_without_its_data_is_exported():
    run = trained(small_vae(), binary())
    again = pyrovae.from_pretrained(run.save_pretrained("kept"))
    assert check_parity(again, again.export_onnx("files"), binary(20)) == ["mean", "scale"]


# ── What is refused ──


def refused(run, said):
    with pytest.raises(InputError, match=said) as error:
        run.export_onnx("files")
    assert error.value.remedy
    assert not Path("files").exists()


def test_what_has_no_mean_is_refused():
    vae = small_vae()
    iaf = pyrovae.IAFEncoder(pyrovae.MLP((6,), pyrovae.IAFEncoder.net_shape(2), hidden=(8,)))
    refused(trained(pyrovae.VAE(vae.prior, vae.decoder, iaf), binary()), "latent 'z'.* no mean")


class Own(nn.Module):
    """A guide by a function of x, and a model with as many latents as asked."""

    def __init__(self, encode, latents=("z",), shape=(6,)):
        super().__init__()
        self.encode, self.latents, self.shape = encode, latents, shape
        self.decode = pyrovae.MLP((2,), shape, hidden=(8,))

    def model(self, x):
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(2), 1.0).to_event(1)
            z = sum(pyro.sample(name, prior) for name in self.latents)
            likelihood = dist.Bernoulli(logits=self.decode(z)).to_event(len(self.shape))
            pyro.sample("x", likelihood, obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            for name in self.latents:
                pyro.sample(name, dist.Normal(self.encode(x), 0.5).to_event(1))


def test_several_latents_are_refused():
    refused(
        trained(Own(nn.Linear(6, 2), ("a", "b")), binary()), "latent sites of an example are a, b"
    )


def test_labels_are_refused():
    class WithLabels(Own):
        def guide(self, x, y=None):
            super().guide(x)

    refused(trained(WithLabels(nn.Linear(6, 2)), binary()), "takes labels")


def test_a_branch_on_a_value_is_refused():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    refused(trained(Own(Branching(6, 2)), binary()), "cannot be exported: its function of x")


def test_a_convolution_of_the_user_s_own_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 2))
    run = trained(Own(net, shape=(1, 8, 8)), pyrovae.load_data("digits"))
    refused(run, "cannot be exported: its function of x.*VAE")


def test_files_that_compute_something_else_are_refused(monkeypatch):
    run = trained(small_vae(), binary())
    file = onnx._file

    def other(module, *rest):
        with torch.no_grad():
            next(module.parameters()).add_(1e-3)
            try:
                return file(module, *rest)
            finally:
                next(module.parameters()).sub_(1e-3)

    monkeypatch.setattr(onnx, "_file", other)
    refused(run, "does not compute what the program does")


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_library_that_is_missing_is_named_with_its_extra(library, monkeypatch):
    run = trained(small_vae(), binary())
    monkeypatch.setitem(sys.modules, library, None)
    refused(run, r"pip install 'pyrovae\[onnx\]'")


def test_a_folder_that_cannot_be_written_is_an_error():
    Path("file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trained(small_vae(), binary()).export_onnx("file/below")

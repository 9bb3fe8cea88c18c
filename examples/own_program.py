"""A model and a guide of one's own, put through training, evaluation, pictures and report.

The prior is a hierarchy, z2 -> z1 -> x, and the likelihood a Student-t: nothing of pyrovae was
told of either.

    python examples/own_program.py [--epochs 60] [--run-dir runs/own] [--smoke-test]
"""

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyrovae

X, H, D1, D2 = 64, 128, 8, 3


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, H), nn.ReLU(), nn.Linear(H, outputs))


torch.manual_seed(0)
nets = nn.ModuleDict(
    {
        "z1_given_z2": mlp(D2, 2 * D1),
        "x_given_z1": mlp(D1, X),
        "q_z1": mlp(X, 2 * D1),
        "q_z2": mlp(D1, 2 * D2),
    }
)
log_scale = nn.ParameterList([torch.zeros(())])


def normal(parameters):
    loc, log_scale = parameters.chunk(2, dim=-1)
    return dist.Normal(loc, nn.functional.softplus(log_scale) + 1e-3).to_event(1)


def model(x):
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(x.new_zeros(D2), 1.0).to_event(1))
        z1 = pyro.sample("z1", normal(nets["z1_given_z2"](z2)))
        loc, scale = nets["x_given_z1"](z1), log_scale[0].exp() + 1e-2
        pyro.sample("x", dist.StudentT(5.0, loc, scale).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", normal(nets["q_z1"](x)))
        pyro.sample("z2", normal(nets["q_z2"](z1)))


def main(epochs, run_dir):
    digits = load_digits()
    data = pyrovae.load_data(digits.data.astype("float32"), digits.target)
    program = SimpleNamespace(model=model, guide=guide, nets=nets, log_scale=log_scale)

    run = pyrovae.fit(program, data, epochs=epochs, run_dir=run_dir)
    found = run.evaluate(num_samples=500)
    print(
        f"ELBO {found.elbo.mean():.2f}, log p(x) {found.log_evidence.mean():.2f} nats per example"
    )
    print(f"active units {found.active_units} of {found.latent_dims}")
    print(run.sample(16).save(Path(run_dir) / "samples.png"))
    print(run.report())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--run-dir", default="runs/own")
    parser.add_argument("--smoke-test", action="store_true", help="two epochs, nothing kept")
    given = parser.parse_args()
    if given.smoke_test:
        with tempfile.TemporaryDirectory() as folder:
            main(2, Path(folder) / "run")
    else:
        main(given.epochs, given.run_dir)

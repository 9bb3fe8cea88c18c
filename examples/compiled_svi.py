"""An existing Pyro script made faster by one import: Bayesian logistic regression, compiled.

python examples/compiled_svi.py [--steps 3000] [--smoke-test]
"""

import argparse
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from sklearn.datasets import load_breast_cancer

from pyrovae import CompiledSVI

BATCH = 64


def load():
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(y, dtype=torch.float32)


def model(x, y, size):
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 3.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight + bias), obs=y)


def main(steps):
    x, y = load()
    for engine in (SVI, CompiledSVI):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        guide = AutoNormal(model)
        svi = engine(model, guide, Adam({"lr": 1e-2}), Trace_ELBO())

        start = time.perf_counter()
        for _ in range(steps):
            rows = torch.randint(len(x), (BATCH,))
            svi.step(x[rows], y[rows], len(x))
        seconds = time.perf_counter() - start

        posterior = guide.median()
        right = ((x @ posterior["weight"] + posterior["bias"] > 0) == (y > 0.5)).float().mean()
        print(
            f"{engine.__name__:<12} {1e3 * seconds / steps:.2f} ms per step, "
            f"{seconds:.1f} s in all, {100 * right:.1f} % of the training set right"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--smoke-test", action="store_true", help="50 steps")
    options = parser.parse_args()
    main(50 if options.smoke_test else options.steps)

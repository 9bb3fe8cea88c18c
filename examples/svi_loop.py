"""A VAE on MNIST with nothing but Pyro's own SVI and Trace_ELBO, and pyrovae's parts.

python examples/svi_loop.py [--data digits] [--epochs 5] [--smoke-test]
"""

import argparse
import time

import pyro
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

import pyrovae


def main(data_name, epochs):
    pyro.set_rng_seed(0)
    data = pyrovae.load_data(data_name)
    vae = pyrovae.VAE(
        prior=pyrovae.StandardNormal(50),
        decoder=pyrovae.BernoulliDecoder(pyrovae.MLP((50,), data.x_shape)),
        encoder=pyrovae.GaussianEncoder(pyrovae.MLP(data.x_shape, (100,))),
    )
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss=Trace_ELBO())

    for epoch in range(1, epochs + 1):
        start, loss = time.perf_counter(), 0.0
        for rows in data.train.shuffled(128, seed=0, epoch=epoch):
            loss += svi.step(data.train.prepare(rows).x)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss {loss / len(data.train):.2f} nats per image, {seconds:.1f} s")

    found = pyrovae.evaluate(vae, data.test, num_samples=200, limit=200)
    print(f"test ELBO {found.elbo.mean():.2f}, log p(x) {found.log_evidence.mean():.2f} nats")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="the name of a data set")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--smoke-test", action="store_true", help="a few seconds, on the digits")
    options = parser.parse_args()
    if options.smoke_test:
        main("digits", epochs=2)
    else:
        main(options.data, options.epochs)

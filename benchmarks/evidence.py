"""log p(x) by importance sampling, 1,000 samples for each image: pythae, Pyro, NumPyro and ours.

All contenders have the same weights, those of the dense VAE after a short training, and measure
the same binary images; the table shows what each of them finds, too. pythae's `get_nll` and
Pyro's `vectorized_importance_weights` take one image at a time, and are called so; NumPyro's is
its `RenyiELBO` with `alpha=0`, mapped over images in one jitted call; ours is
`pyrovae.evaluate`, with the ELBO, k-hat and active units that it measures besides.

    python benchmarks/evidence.py [--images 200] [--samples 1000] [--device cuda]
"""

import time
from functools import partial

import torch
from pyro.infer.importance import vectorized_importance_weights
from step import numpyro_vae
from timing import (
    SEED,
    add_device,
    lines_of,
    measure,
    number,
    parse,
    parser,
    provenance,
    publish,
    ratio,
)
from vae import PIXELS, dense

import pyrovae


def trained(x, device):
    vae = dense()
    pyrovae.fit(vae, x, epochs=3, batch_size=50, seed=SEED, device=device, progress=False)
    return vae


def once(function, count, found, name):
    """A turn is a call that measures so many images; what it finds is kept."""

    def turn():
        start = time.perf_counter()
        found[name] = function()
        return (time.perf_counter() - start) / count

    return turn


def by_pyro(vae, x, samples, device):
    x = x.to(device)

    def measured():
        total = 0.0
        with torch.no_grad():
            for row in x.split(1):
                weights, _, _ = vectorized_importance_weights(
                    vae.model, vae.guide, row, num_samples=samples, max_plate_nesting=1
                )
                total += (weights.logsumexp(0) - torch.tensor(samples).log()).item()
        return total / len(x)

    return measured


def by_pythae(vae, x, samples, device):
    import pythae_vae

    model, x = pythae_vae.with_weights(vae).eval().to(device), x.to(device)

    def measured():
        with torch.no_grad():
            # It returns the mean log p(x), whatever its name says.
            return model.get_nll(x, n_samples=samples, batch_size=samples)

    return measured


def by_numpyro(vae, x, samples, device):
    return numpyro_vae(device).evidence(vae, x.numpy(), samples, SEED)


def by_pyrovae(vae, x, samples, device):
    return lambda: pyrovae.evaluate(vae, x, num_samples=samples).log_evidence.mean().item()


def main():
    options = parser(__doc__, repeats=5)
    options.add_argument("--images", type=int, default=200)
    options.add_argument("--samples", type=int, default=1000)
    add_device(options)
    given = parse(options)
    count, samples = (4, 10) if given.smoke_test else (given.images, given.samples)
    torch.manual_seed(SEED)
    # Images with something to learn: pixels that a few causes switch on together.
    causes = (torch.rand(20, PIXELS) < 0.1).float()
    x = ((torch.rand(count, 20) < 0.2).float() @ causes > 0).float()
    vae = trained(x, given.device)

    values: dict[str, float] = {}
    makers = {
        "Pyro, vectorized_importance_weights": by_pyro,
        "pythae, get_nll": by_pythae,
        "NumPyro, RenyiELBO jitted and mapped": by_numpyro,
        "pyrovae.evaluate": by_pyrovae,
    }

    def build(name):
        return once(makers[name](vae, x, samples, given.device), count, values, name)

    found = measure({name: partial(build, name) for name in makers}, given.repeats, given.device)
    base = found["Pyro, vectorized_importance_weights"]
    rows = [["", "ms per image, median", "Pyro / this", "log p(x), nats"], ["---"] * 4]
    for name, seconds in found.items():
        if isinstance(seconds, str):
            rows.append([name, f"not measured ({seconds})", "", ""])
        else:
            median = sorted(seconds)[len(seconds) // 2]
            cells = [number(1e3 * median), ratio(base, seconds), f"{values[name]:.2f}"]
            rows.append([name, *cells])
    heading = f"{count} images, {samples:,} samples each, {given.repeats} turns:"
    script = f"evidence.py --images {count} --samples {samples}"
    lines = [heading, "", *lines_of(rows), "", provenance(given, script)]
    publish("evidence", lines, given.out, given.device)


if __name__ == "__main__":
    main()

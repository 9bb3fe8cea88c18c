"""What bf16 costs in quality: the bound of trained VAEs, beside the same trained in float32.

The VAEs that `pyrovae train` builds, dense and convolutional, trained on dynamic MNIST from the
same weights on the same batches with the same noise, once in float32 and once with products of
bfloat16 matrices. All are evaluated in float32, on the same test images with the same noise.
What another seed makes of float32 stands beside the difference.

    python benchmarks/precision.py [--repeats 3] [--out FILE]

`--repeats` is the number of seeds. It needs MNIST in $PYROVAE_DATA.
"""

import statistics
import sys
from functools import partial

import torch
from timing import SEED, lines_of, parse, parser, provenance, publish
from variants import first

import pyrovae
from pyrovae.building import build_vae
from pyrovae.schedules import cosine

# For each network the images, the epochs and the batch size.
BUDGETS = {"mlp": (60_000, 10, 128), "conv": (6_000, 5, 64)}
TEST, SAMPLES = 2000, 20


def bound(data, network, precision, seed, smoke_test):
    """The ELBO of test images after a training, in nats per image."""
    images, epochs, batch = (64, 1, 32) if smoke_test else BUDGETS[network]
    train = first(data.train, images)
    torch.manual_seed(seed)
    run = pyrovae.fit(
        build_vae(data, network=network),
        train,
        test=data.test,
        optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True),
        epochs=epochs,
        batch_size=batch,
        lr_schedule=cosine(1.0, 0.0, epochs * -(-len(train) // batch)),
        precision=precision,
        seed=seed,
        progress=False,
    )
    limit = 20 if smoke_test else TEST
    return run.evaluate(num_samples=SAMPLES, limit=limit).elbo.mean().item()


def row(network, found):
    """A line of the table, of the bounds in float32 and in bf16 of every seed."""
    single, half = zip(*found, strict=True)
    shares = [100 * (b - a) / abs(a) for a, b in found]
    middle = statistics.mean(single)
    seeds = f"{100 * statistics.stdev(single) / abs(middle):.3f} %" if len(single) > 1 else ""
    return [
        network,
        f"{middle:.2f}",
        f"{statistics.mean(half):.2f}",
        ", ".join(f"{share:+.3f} %" for share in shares),
        seeds,
    ]


def main():
    given = parse(parser(__doc__, repeats=3))
    data = pyrovae.load_data("digits" if given.smoke_test else "mnist")
    head = ["network", "float32", "bf16", "bf16 against float32, by seed", "s.d. of seeds"]
    rows = [head, ["---"] * len(head)]
    for network in BUDGETS:
        found = []
        for seed in range(SEED, SEED + given.repeats):
            pair = [
                bound(data, network, precision, seed, given.smoke_test)
                for precision in ("float32", "bf16")
            ]
            found.append(pair)
            print(network, seed, pair, file=sys.stderr, flush=True)
        rows.append(row(network, found))
    about = "; ".join(
        f"{network}: {epochs} epochs of {images:,} images in batches of {batch}"
        for network, (images, epochs, batch) in BUDGETS.items()
    )
    lines = [f"ELBO of {TEST:,} test images, nats per image. {about}.", "", *lines_of(rows), ""]
    publish("precision", [*lines, provenance(given, "precision.py")], given.out)


if __name__ == "__main__":
    main()

"""What bf16 costs in quality: the bound of trained VAEs, beside the same trained in float32.

The VAEs that `pyrovae train` builds, a dense one of dynamic MNIST and a convolutional one of the
small digits, trained until they are, from the same weights on the same batches with the same
noise: once in float32 and once with products of bfloat16 matrices. All are evaluated in float32,
on the same test images with the same noise. What another seed makes of float32 stands beside the
difference.

    python benchmarks/precision.py [--repeats 3] [--out FILE]

`--repeats` is the number of seeds. It needs MNIST in $PYROVAE_DATA.
"""

import statistics
import sys
from functools import partial

import torch
from timing import SEED, lines_of, parse, parser, provenance, publish

import pyrovae
from pyrovae.building import build_vae
from pyrovae.schedules import cosine

# For each network the data, the epochs and the batch size.
BUDGETS = {"mlp": ("mnist", 10, 128), "conv": ("digits", 60, 64)}
TEST, SAMPLES = 2000, 20


def bound(network, precision, seed, smoke_test):
    """The ELBO of test images after a training, in nats per image."""
    name, epochs, batch = ("digits", 1, 64) if smoke_test else BUDGETS[network]
    data = pyrovae.load_data(name)
    torch.manual_seed(seed)
    run = pyrovae.fit(
        build_vae(data, network=network),
        data,
        optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True),
        epochs=epochs,
        batch_size=batch,
        lr_schedule=cosine(1.0, 0.0, epochs * -(-len(data.train) // batch)),
        precision=precision,
        seed=seed,
        progress=False,
    )
    return run.evaluate(num_samples=SAMPLES, limit=TEST).elbo.mean().item()


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
    head = ["network", "float32", "bf16", "bf16 against float32, by seed", "s.d. of seeds"]
    rows = [head, ["---"] * len(head)]
    for network in BUDGETS:
        found = []
        for seed in range(SEED, SEED + given.repeats):
            pair = [bound(network, p, seed, given.smoke_test) for p in ("float32", "bf16")]
            found.append(pair)
            print(network, seed, pair, file=sys.stderr, flush=True)
        rows.append(row(network, found))
    about = "; ".join(
        f"{network} on {name}, {epochs} epochs in batches of {batch}"
        for network, (name, epochs, batch) in BUDGETS.items()
    )
    lines = [f"ELBO of the test images, {TEST:,} at most, in nats per image: {about}.", ""]
    publish(
        "precision", [*lines, *lines_of(rows), "", provenance(given, "precision.py")], given.out
    )


if __name__ == "__main__":
    main()

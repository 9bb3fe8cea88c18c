"""One point of `growth.py`, in a process of its own: prints times and memory as JSON.

python benchmarks/growth_point.py --kind CompiledSVI --batch 512
"""

import argparse
import json
import resource
import sys
import time
from functools import partial

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from timing import SEED, add_device, synchronize
from vae import LATENTS, PIXELS, dense

from pyrovae import CompiledSVI

ENGINES = {"cpu": "inductor", "cuda": "cuda-graph"}
KINDS = ("Pyro SVI", "CompiledSVI")
WARM_UP = 5


def peak(device):
    """The largest resident set so far, or what torch has held of a GPU, in MiB.

    A child inherits the peak of the process that starts it. That one imports what this one does
    and no more, so it is never the larger.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def make_svi(given):
    vae, vectorized = dense(given.latents).to(given.device), given.particles > 1
    loss = Trace_ELBO(
        num_particles=given.particles, vectorize_particles=vectorized, max_plate_nesting=1
    )
    make = SVI
    if given.kind == "CompiledSVI":
        make = partial(CompiledSVI, engine=ENGINES[given.device])
    return make(vae.model, vae.guide, Adam({"lr": 1e-3}), loss)


def make_step(svi, given):
    data = torch.randint(2, (given.rows, PIXELS), dtype=torch.uint8, device=given.device)

    def step():
        svi.step(data[torch.randint(given.rows, (given.batch,), device=given.device)].float())

    return step


def seconds_for(step, count):
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize()
    return (time.perf_counter() - start) / count


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kind", choices=KINDS, required=True)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--particles", type=int, default=1)
    options.add_argument("--latents", type=int, default=LATENTS)
    options.add_argument("--rows", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=5, help="rounds of steps")
    options.add_argument("--round-seconds", type=float, default=1.0, help="of one round, about")
    add_device(options)
    given = options.parse_args()

    imported = peak(given.device)
    pyro.set_rng_seed(SEED)
    svi = make_svi(given)
    step = make_step(svi, given)
    seconds_for(step, WARM_UP)
    count = max(1, round(given.round_seconds / seconds_for(step, 3)))
    found = {
        "seconds": [seconds_for(step, count) for _ in range(given.repeats)],
        "peak": peak(given.device),
        "imported": imported,
        "engines": svi.engines if isinstance(svi, CompiledSVI) else [],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""One optimisation step, one epoch: Pyro's SVI, by hand, NumPyro, pythae and CompiledSVI.

All contenders of a section do the same work: the same network, batch size and Adam at 1e-3, one
draw of z with noise that is new at every step, one gradient. `timing.py` has the protocol.

- `step`: the dense VAE of Pyro's example on one batch of binary pixels in memory. The likelihood
  is given by logits, which spares Pyro the way from probabilities back to them; pythae takes
  probabilities only. The floor is the matrix products of the forward and backward pass, and
  nothing else.
- `epoch`: 60,000 images of 28x28, in batches of 128, data included: the MNIST of $PYROVAE_DATA,
  or else random ones. Pyro's example and pythae train on grey pixels through a DataLoader, as
  they are shipped; NumPyro and pyrovae binarise anew at every visit.
- `conv`: a convolutional VAE on one batch in memory; the floor is its convolutions, too.

"by hand" is the loss without Pyro, its KL term in closed form, and torch's fused Adam;
"torch.compile" compiles that loss and, with it, its backward pass. Pyro's SVI and CompiledSVI
take the same program, the same `Trace_ELBO` and the same `pyro.optim.Adam`.

    python benchmarks/step.py [--only step|epoch|conv] [--device cuda] [--repeats 9] [--out FILE]
"""

import os
import warnings
from functools import partial

import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import Adam
from pyro_example import BATCH, mnist, pyro_epochs, pyrovae_epochs
from timing import (
    SEED,
    NotMeasured,
    add_device,
    each,
    engines_on,
    measure,
    parse,
    parser,
    provenance,
    publish,
    steps_of,
    table,
    turn_of,
)
from vae import PIXELS, binary, convolutional, convolutions, dense, matrix_products

from pyrovae import CompiledSVI
from pyrovae.svi import Stepper
from pyrovae.svi.estimators import estimate_with

RATE = 1e-3
FLOOR = "matrix products"
# Steps that one launch takes; the turns below are multiples of it.
TOGETHER = 10


# ── The contenders of a step ─────────────────────────────────────────────────────────────────


def by_svi(make, x, device, loss=Trace_ELBO):
    vae = make().to(device)
    svi = SVI(vae.model, vae.guide, Adam({"lr": RATE}), loss())
    return steps_of(svi, x.to(device))


def by_compiled_svi(make, x, device, engine, precision="float32"):
    vae = make().to(device)
    svi = CompiledSVI(
        vae.model,
        vae.guide,
        Adam({"lr": RATE}),
        Trace_ELBO(),
        engine=engine,
        precision=precision,
    )
    return steps_of(svi, x.to(device), engine=engine)


def by_svi_unchecked(make, x, device):
    steps = by_svi(make, x, device)

    def unchecked(count):
        with pyro.validation_enabled(False):
            steps(count)

    return unchecked


def by_jit(make, x, device):
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated
        steps = by_svi(make, x, device, loss=partial(JitTrace_ELBO, ignore_jit_warnings=True))
        steps(1)
    return steps


def by_hand(make, x, device, compiled=False):
    vae, x = make().to(device), x.to(device)
    loss = torch.compile(vae.negative_elbo, dynamic=False) if compiled else vae.negative_elbo
    optimizer = torch.optim.Adam(vae.parameters(), lr=RATE, fused=True)

    def step():
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return each(step)


def by_replay(make, x, device):
    """The whole step by hand as one CUDA graph, always of the same batch."""
    vae, x = make().to(device), x.to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=RATE, fused=True, capturable=True)

    def step():
        vae.negative_elbo(x).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    recorder = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorder):
        step()
    return each(recorder.replay)


def by_replays(make, x, device):
    """The steps of `fit`, so many of them by one launch."""

    class Together(Stepper):
        step = Stepper.together

    vae, given = make().to(device), [(x.to(device),)] * TOGETHER
    together = Together(
        estimate_with(Trace_ELBO(), vae.model, vae.guide),
        torch.optim.Adam(vae.parameters(), lr=RATE, fused=True),
        owners=[vae],
        engine="cuda-graph",
        steps_per_replay=TOGETHER,
    )
    launches = steps_of(together, given, engine="cuda-graph")
    return lambda count: launches(-(-count // TOGETHER))


def torch_contenders(make, x, device):
    """For each name what builds the steps."""
    found = {
        "Pyro SVI": partial(by_svi, make, x, device),
        "Pyro SVI, validation off": partial(by_svi_unchecked, make, x, device),
        "Pyro SVI, JitTrace_ELBO": partial(by_jit, make, x, device),
        "PyTorch by hand": partial(by_hand, make, x, device),
        "PyTorch by hand, torch.compile": partial(by_hand, make, x, device, compiled=True),
        **{
            f"CompiledSVI, {engine}": partial(by_compiled_svi, make, x, device, engine)
            for engine in engines_on(device)
        },
        "CompiledSVI, inductor, bf16": partial(
            by_compiled_svi, make, x, device, "inductor", precision="bf16"
        ),
    }
    if device == "cuda":
        found["PyTorch by hand, CUDA graph"] = partial(by_replay, make, x, device)
        found[f"steps of fit, cuda-graph, {TOGETHER} per replay"] = partial(
            by_replays, make, x, device
        )
    return found


def other_contenders(x, device):
    of_images = x.dim() > 2

    def by_numpyro():
        arm = numpyro_vae(device)
        if of_images:
            return arm.single_steps(x.movedim(1, -1).numpy(), RATE, SEED, arm.CONVOLUTIONAL)
        return arm.steps(x.numpy(), RATE, SEED)

    def by_pythae():
        import pythae_vae

        return each(pythae_vae.step(x, RATE, device))

    return {
        "NumPyro SVI, jitted" if of_images else "NumPyro SVI, jitted scan": by_numpyro,
        "pythae": by_pythae,
        FLOOR: lambda: each((convolutions if of_images else matrix_products)(len(x), device)),
    }


def numpyro_vae(device):
    """NumPyro's arm, with as many threads as torch has, and without all memory of the device."""
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import numpyro_vae

    if numpyro_vae.backend() != {"cpu": "cpu", "cuda": "gpu"}[device]:
        raise NotMeasured(f"jax computes on the {numpyro_vae.backend()} here")
    return numpyro_vae


def in_turns(contenders, steps):
    """What builds the turns, of so many steps each."""
    return {
        name: (lambda build=build: turn_of(build(), steps)) for name, build in contenders.items()
    }


# ── The sections ─────────────────────────────────────────────────────────────────────────────


def dense_steps(given):
    lines = []
    for batch, steps in ((8, 2),) if given.smoke_test else ((128, 200), (512, 100)):
        x = binary(batch, PIXELS)
        contenders = torch_contenders(dense, x, given.device)
        contenders |= other_contenders(x, given.device)
        found = measure(in_turns(contenders, steps), given.repeats, given.device)
        heading = f"Batch {batch}, {given.repeats} turns of {steps} steps:"
        rows = table(found, "ms", baseline="Pyro SVI", floor=FLOOR)
        lines += [heading, "", *rows, ""]
    return lines


def convolutional_steps(given):
    lines = []
    for batch, steps in ((2, 2),) if given.smoke_test else ((16, 50), (128, 20)):
        x = binary(batch, 1, 28, 28)
        contenders = torch_contenders(convolutional, x, given.device)
        contenders |= other_contenders(x, given.device)
        found = measure(in_turns(contenders, steps), given.repeats, given.device)
        heading = f"Batch {batch}, {given.repeats} turns of {steps} steps:"
        lines += [heading, "", *table(found, "ms", baseline="Pyro SVI", floor=FLOOR), ""]
    return lines


def epochs(given):
    real = "PYROVAE_DATA" in os.environ and not given.smoke_test
    count = 1500 if given.smoke_test else 60_000
    images = mnist(None) if real else torch.randint(256, (count, 28, 28), dtype=torch.uint8)

    device = given.device
    ours = partial(pyrovae_epochs, images, device=device)

    def by_numpyro():
        return numpyro_vae(device).epochs(images.numpy(), BATCH, RATE, SEED)

    def by_pythae():
        import pythae_vae

        return pythae_vae.epochs(images, BATCH, RATE, device)

    contenders = {
        "Pyro's example": lambda: pyro_epochs(images, device),
        "pythae": by_pythae,
        "NumPyro SVI, jitted scan": by_numpyro,
        **{
            f"pyrovae.fit, {engine}": partial(ours, engine=engine) for engine in engines_on(device)
        },
        "pyrovae.fit, inductor, bf16": partial(ours, engine="inductor", precision="bf16"),
        "pyrovae.fit, inductor, with what is before and after the steps": partial(
            ours, engine="inductor", whole=True
        ),
    }
    if device == "cuda":
        contenders[f"pyrovae.fit, cuda-graph, {TOGETHER} per replay"] = partial(
            ours, engine="cuda-graph", steps_per_replay=TOGETHER
        )
    heading = f"{len(images):,} {'MNIST' if real else 'random'} images, {given.repeats} turns:"
    found = measure(contenders, given.repeats, device)
    return [heading, "", *table(found, "s", baseline="Pyro's example"), ""]


SECTIONS = {"step": dense_steps, "epoch": epochs, "conv": convolutional_steps}


def main():
    options = parser(__doc__, repeats=9)
    options.add_argument("--only", choices=SECTIONS, help="one section")
    add_device(options)
    given = parse(options)
    for section in [given.only] if given.only else SECTIONS:
        lines = SECTIONS[section](given)
        ran = provenance(given, f"step.py --only {section}")
        publish(section, [*lines, ran], given.out, given.device)


if __name__ == "__main__":
    main()

"""What the tests run on several processes: torchrun --nproc-per-node 2 tests/on_ranks.py WHAT OUT

Each process writes what it found to OUT/RANK.json.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from programs_for_tests import binary, small_vae
from torch import nn

import pyrovae
from pyrovae import loop, ranks
from pyrovae.errors import NonFiniteError, PyrovaeError
from pyrovae.svi import Exchange, Stepper

RANK = int(os.environ.get("RANK", 0))
ROWS, BATCH, EPOCHS = 101, 20, 3


def train(program=None, x=None, **options):
    """A training that is over in a moment: six batches an epoch, the last of one row."""
    told = {"epochs": EPOCHS, "batch_size": BATCH, "device": "cpu", "progress": False} | options
    return pyrovae.fit(program or small_vae(), binary(ROWS) if x is None else x, **told)


def digest(run):
    """The weights of a run, as one word."""
    state = run.program.state_dict()
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()


def numbers(run):
    """Its records but for the times."""
    timed = ("seconds", "examples_per_second")
    return [{k: v for k, v in m.items() if k not in timed} for m in run.metrics]


class WithGlobal(nn.Module):
    """A program with a global latent, which notes what it draws in training."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 2)
        self.loc = nn.Parameter(torch.zeros(2))
        self.register_buffer("drawn", torch.zeros(2))

    def model(self, x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", ROWS, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = (w * z).sum(-1, keepdim=True).expand(len(x), 6)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", ROWS, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(self.loc, 1.0).to_event(1))
        if self.training:
            with torch.no_grad():
                self.drawn.copy_(torch.stack([w[0], (z - self.net(x))[0, 0]]))


def in_step(number, act):
    """Lets something happen as a step of this process is about to be taken."""
    seed, calls = loop.seed_generators, itertools.count()

    def acting(*counters, **told):
        if next(calls) == number:
            act()
        return seed(*counters, **told)

    loop.seed_generators = acting


# ── What is run ──────────────────────────────────────────────────────────────────────────────


def facts(out):
    """Three trainings in one group of processes, which is theirs and not `fit`'s."""
    torch.distributed.init_process_group("gloo")
    return {
        "copied": copied(),
        "unprepared": unprepared(),
        "plain": plain(out),
        "noise": noise(),
        "failing": failing(out, lambda x: x * torch.nan),
        "raising": failing(out, fail),
        "exact": exact(),
        "experts": experts(),
        "sparse": sparse(),
    }


def copied():
    """Tensors of types and layouts that gloo does not take, as the first process has them."""
    given = [
        torch.arange(12.0).reshape(3, 4)[:, ::2],
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(3, dtype=torch.int16),
        torch.tensor(5),
        torch.zeros(0),
    ]
    if RANK:
        for tensor in given:
            tensor.zero_()
    with ranks.joined() as group:
        group.copy_from_first(given)
    return [tensor.tolist() for tensor in given]


def unprepared():
    """A training whose first process alone finds a number that is not finite as it prepares."""
    prepare = Stepper.prepare

    def failing(*args, **told):
        raise NonFiniteError("Not finite.", "Never mind.")

    if RANK == 0:
        Stepper.prepare = failing
    try:
        return {"weights": digest(train(epochs=1))}
    finally:
        Stepper.prepare = prepare


def plain(out):
    """A training with everything, from weights that are not the same."""
    called = []
    run = train(
        small_vae(seed=RANK),
        valid=binary(7, seed=1),
        patience=5,
        kl_warmup=1,
        clip_norm=1.0,
        run_dir=out / "plain",
        on_epoch=lambda run: called.append(run.metrics[-1]["epoch"]),
    )
    told = {"weights": digest(run), "records": numbers(run), "called": called}
    return told | {"path": str(run.path), "processes": run.config["processes"]}


def noise():
    """The latent that all share and a latent of a row, as the last step of each back end drew."""
    loop.Loop._share_statistics = lambda self: None  # each keeps what it noted
    found = {}
    for engine in ("eager", "graph", "inductor"):
        program = WithGlobal()
        run = train(program, torch.randn(ROWS, 6), epochs=1, engine=engine, batch_size=ROWS)
        shared, own = program.drawn.tolist()
        used = run.config["engine"]["name"]
        found[engine] = {"shared": shared, "own": own, "used": used}
    return found


def fail(x):
    raise RuntimeError("It cannot go on.")


def failing(out, spoil):
    """Something happens to the share of the second process, in a step."""
    program = small_vae()
    model, calls = program.model, itertools.count()
    program.model = lambda x: model(spoil(x) if is_due() else x)

    def is_due():
        return RANK == 1 and program.training and next(calls) > 14

    try:
        train(program, engine="eager")
    except (PyrovaeError, RuntimeError) as error:
        finite = all(bool(p.isfinite().all()) for p in program.parameters())
        return {"error": str(error), "type": type(error).__name__, "finite": finite}
    return {}


class Without(nn.Module):
    """A program without noise."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 6))

    def model(self, x):
        with pyro.plate("data", len(x)):
            logits = self.net(x.mean(-1, keepdim=True))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pass


class Experts(Without):
    """A program without noise, of whose networks a row chooses one; no row chooses the last."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def model(self, x):
        chosen = x[:, 2:].sum(-1).div(2, rounding_mode="floor").int()
        with pyro.plate("data", len(x)):
            logits = torch.zeros_like(x)
            for which in chosen.unique().tolist():
                rows = chosen == which
                logits[rows] = self.nets[which](x[rows])
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def exact(program=None, *, batch_size=27, **options):
    """What several processes train to the numbers of one: their shares are not of one size."""
    run = train(program or Without(), batch_size=batch_size, clip_norm=0.5, **options)
    state = run.program.state_dict()
    return {"weights": {k: v.tolist() for k, v in state.items()}, "records": numbers(run)}


def experts():
    """The same of networks that the rows of some processes make no use of."""
    return exact(Experts(), batch_size=5, engine="eager")


class Embedded(Without):
    """A program without noise, of a table of which a batch has some rows."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6, sparse=True)
        self.net = None

    def model(self, x):
        row = x.mul(torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0, 4.0])).sum(-1).long()
        with pyro.plate("data", len(x)):
            logits = self.table(row)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def sparse():
    """The same by an optimizer that takes sparse gradients alone."""
    make = partial(torch.optim.SparseAdam, lr=0.05)
    return exact(Embedded(), batch_size=40, engine="eager", optimizer=make)


class Centred(nn.Module):
    """A network that reads in training the running mean of what its process has seen."""

    def __init__(self, net):
        super().__init__()
        self.net, self.out_shape = net, net.out_shape
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.2)
        return self.net(x - self.mean)


def whole(out):
    """A training that goes on if it has been begun; the numbers are those of it all."""
    vae = small_vae()
    vae.encoder.net = Centred(vae.encoder.net)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = train(vae, run_dir=out / "run", resume=True)
    told = {"weights": digest(run), "records": numbers(run)}
    return told | {"warned": [str(w.message) for w in warned], "restarts": ranks.restarts()}


def killed(out):
    """The same, saved at every step, the second process killed in the second epoch."""
    loop.SAVE_SECONDS = 0.0
    if RANK == 1 and ranks.restarts() == 0:
        in_step(9, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return whole(out)


def told_to_end(out):
    """The same, the second process told to end in the second epoch."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if RANK == 1:
        in_step(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return whole(out)


def told_late(out):
    """The same, saved at every step, the second process told to end when that step is settled."""
    loop.SAVE_SECONDS = 0.0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    exchange, calls = Exchange.__call__, itertools.count()

    def acting(self, found):
        if RANK == 1 and next(calls) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return exchange(self, found)

    Exchange.__call__ = acting
    return whole(out)


def again(out):
    """Groups of the processes, one after the other."""
    for _ in range(6):
        with ranks.joined() as group:
            group.wait()
    return {"size": group.size}


def stuck(out):
    """The same, the second process stopped for ever: the first waits for it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ranks.GRACE_SECONDS = 1.0
    if RANK == 1:
        in_step(9, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    else:
        in_step(9, (out / "waiting").touch)
    return whole(out)


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    found = globals()[what](folder)
    (folder / f"{RANK}.json").write_text(json.dumps(found))

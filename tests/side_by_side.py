"""A VAE trained by Pyro's own SVI and by CompiledSVI, from one seed."""

import copy
import math

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyrovae import CompiledSVI
from pyrovae.data import Batch
from pyrovae.evaluation import evaluate
from pyrovae.inspection import inspect_program
from pyrovae.models import VAE


def losses(make, vae: VAE, x: Tensor, steps: int = 5) -> list[float]:
    svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        found.append(float(svi.step(x)))
    return found


def check(vae: VAE, x: Tensor, engine: str = "graph") -> None:
    """Its steps are the same in Python and captured; it vectorizes, and can be evaluated."""
    made = []

    def compiled(*args):
        made.append(CompiledSVI(*args, engine=engine))
        return made[0]

    other = copy.deepcopy(vae)
    torch.testing.assert_close(losses(compiled, other, x), losses(SVI, vae, x), rtol=1e-4, atol=0)
    assert made[0].engines == [engine]
    for a, b in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    assert inspect_program(vae, Batch(x, None)).vectorizes
    found = evaluate(vae, x, num_samples=10)
    assert math.isfinite(found.log_evidence.mean())
    assert math.isfinite(found.elbo.mean())

"""A step of CompiledSVI against one of Pyro's SVI, on a table of programs and back ends."""

import shutil

import pyro
import pytest
import torch
from program_table import TABLE, entry
from pyro.infer import SVI
from recorder import stand_in

from pyrovae import CompiledSVI

COMPILED = pytest.param(
    "inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
)
# Compiling takes seconds, and float64 is the stricter one: these are compiled in float32 too.
IN_SINGLE = {"plain", "flow prior", "enumerated in the model", "global latents", "IWAE"}


class Recorder(torch.optim.Optimizer):
    """Keeps the gradients that it is given, and changes nothing."""

    def __init__(self, params, found):
        super().__init__(params, {})
        self.found = found

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            # Our modules register under a number of their own.
            name = pyro.get_param_store().param_name(parameter).split("$$$")[-1]
            if parameter.grad is not None:
                self.found[name] = parameter.grad.clone()


def two_steps(name, make):
    """Loss and gradients of a second step from seed 1, and the generator's state after it.

    The first one may draw for its own purposes: to guess a nesting, or to make a parameter.
    """
    pyro.clear_param_store()
    program, found = entry(name), {}
    optimizer = pyro.optim.PyroOptim(Recorder, {"found": found})
    svi = make(program.model, program.guide, optimizer, program.loss)
    svi.step(*program.args)
    pyro.set_rng_seed(1)
    loss = float(svi.step(*program.args))
    return loss, dict(found), torch.get_rng_state()


@pytest.mark.parametrize("back_end", ["eager", "graph", "cuda-graph", COMPILED])
@pytest.mark.parametrize("name", TABLE)
def test_a_step_is_that_of_pyro(name, back_end, monkeypatch):
    if back_end == "cuda-graph":
        stand_in(monkeypatch)
    made = []

    def make(*args):
        made.append(CompiledSVI(*args, engine=back_end))
        return made[-1]

    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        if (dtype, back_end) == (torch.float32, "inductor") and name not in IN_SINGLE:
            continue
        torch.set_default_dtype(dtype)
        try:
            loss, gradients, generator = two_steps(name, SVI)
            ours, our_gradients, our_generator = two_steps(name, make)
        finally:
            torch.set_default_dtype(torch.float32)

        assert made[-1].engines == [back_end]
        assert ours == pytest.approx(loss, rel=tolerance)
        assert our_gradients.keys() == gradients.keys()
        largest = max(gradient.abs().max().item() for gradient in gradients.values())
        for key, gradient in gradients.items():
            error = (our_gradients[key] - gradient).abs().max().item()
            assert error <= tolerance * max(gradient.abs().max().item(), 1e-3 * largest), key
        assert torch.equal(our_generator, generator)

"""A step of CompiledSVI against one of Pyro's SVI, on a table of programs and back ends."""

import shutil

import pytest
import torch
from program_table import TABLE, check_alike, second_step
from pyro.infer import SVI

from pyrovae import CompiledSVI

COMPILED = pytest.param(
    "inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
)
# Compiling takes seconds, and float64 is the stricter one: these are compiled in float32 too.
IN_SINGLE = {"plain", "flow prior", "enumerated in the model", "global latents", "IWAE"}


@pytest.mark.parametrize("back_end", ["eager", "graph", COMPILED])
@pytest.mark.parametrize("name", TABLE)
def test_a_step_is_that_of_pyro(name, back_end):
    made = []

    def make(*args):
        made.append(CompiledSVI(*args, engine=back_end))
        return made[-1]

    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        if (dtype, back_end) == (torch.float32, "inductor") and name not in IN_SINGLE:
            continue
        torch.set_default_dtype(dtype)
        try:
            expected, found = second_step(name, SVI), second_step(name, make)
        finally:
            torch.set_default_dtype(torch.float32)

        assert made[-1].engines == [back_end]
        check_alike(found, expected, tolerance)

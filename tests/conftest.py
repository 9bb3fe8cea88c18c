"""What every test starts from, and what none may leave behind."""

import os

os.environ["MPLBACKEND"] = "Agg"

import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pretend_gpu import PretendedGPU, RealGPU, pretended
from pyro.poutine.runtime import _PYRO_STACK
from torch.distributions import Distribution

# Tensors here are tiny: a second thread brings nothing, and costs much on a busy machine.
torch.set_num_threads(1)
# What tests train is not remembered as the user's own.
STATE = tempfile.TemporaryDirectory()
os.environ["XDG_STATE_HOME"] = STATE.name
# A shell that starts the suite in the background ignores SIGINT, for it and all its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# The files that take longest, begun first so that none of them is left alone at the end.
LONGEST = (
    *(
        "gpu",
        "program_table",
        "svi",
        "composition",
        "examples",
        "mutants",
        "training",
        "explore_page",
    ),
    *("capture", "documents", "dry_run", "bounds", "resuming", "canaries", "cli", "onnx"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes run the suite; what is named on the command line is run by this one."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(os.cpu_count() or 1, 4) if everything else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, and marks what a GPU is for, also where a stand-in will do."""
    for item in items:
        if "gpu" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def global_state() -> dict[str, Any]:
    matplotlib = sys.modules.get("matplotlib")
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the validation default of distributions": Distribution._validate_args,
        "Pyro's settings": pyro.settings.get(),
        "Pyro's stack of handlers": list(_PYRO_STACK),
        "the warning filters": _general_filters(),
        "matplotlib's backend": matplotlib.get_backend().lower() if matplotlib else "agg",
    }


def _general_filters() -> list[Any]:
    """Without those that a library, imported late, adds for its own modules or warnings."""
    return [
        f
        for f in warnings.filters
        if f[1] is None and f[3] is None and f[2].__module__ == "builtins"
    ]


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """Seeds every test, and fails one that leaves the process other than it found it."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    before = global_state()

    yield

    pyro.clear_param_store()
    after = global_state()
    changed = [f"{k}: {before[k]} -> {after[k]}" for k in before if before[k] != after[k]]
    if changed:
        _restore(before)
        pytest.fail(f"the test leaves a changed process: {'; '.join(changed)}")


def _restore(state: dict[str, Any]) -> None:
    torch.set_default_dtype(state["torch's default dtype"])
    torch.set_num_threads(state["torch's number of threads"])
    torch.set_grad_enabled(state["torch's grad mode"])
    torch.use_deterministic_algorithms(state["torch's deterministic mode"])
    pyro.settings.set(**state["Pyro's settings"])
    Distribution.set_default_validate_args(state["the validation default of distributions"])
    _PYRO_STACK[:] = state["Pyro's stack of handlers"]


@pytest.fixture
def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report makes its figures and does not draw them: that takes longer than a training."""
    monkeypatch.setattr("pyrovae.page._drawing", lambda *_: "")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data, from $PYROVAE_DATA or beside the repository."""
    named = os.environ.get("PYROVAE_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data are not at {folder}; name their folder in $PYROVAE_DATA")
    return folder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[RealGPU | PretendedGPU]:
    """A GPU, or where there is none a stand-in."""
    if torch.cuda.is_available():
        yield RealGPU()
        return
    with pretended(monkeypatch) as stand_in:
        yield stand_in


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("on_a_real_gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and no stand-in will do")

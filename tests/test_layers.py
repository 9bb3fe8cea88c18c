"""Imports point down, and importing changes nothing."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent

# A file imports from strictly lower layers alone. `errors` is below everything.
LAYERS = [
    {"errors"},
    {
        "checks",
        "drawn",
        "interrupts",
        "known_files",
        "memory",
        "noise",
        "operations",
        "progress",
        "randomness",
        "tape",
    },
    {
        "catalogue",
        "ranks",
        "shared_noise",
        "schedules",
        "networks",
        "distributions",
        "devices",
        "capture",
        "allotment",
        "user_files",
        "run_folder",
        "extras",
    },
    {"data", "handlers", "recording"},
    {"priors", "encoders", "decoders", "programs", "hub"},
    {"structure", "supports"},
    {"inspection"},
    {"models", "terms", "bounds", "weights"},
    {"draws"},
    {"parts", "evaluation", "encoding", "checkpoint", "svi", "user_programs"},
    {"generation"},
    {"imputation", "plots", "preparation", "pretrained", "model_card", "stages", "onnx"},
    {"page"},
    {"report"},
    {"runs", "resuming"},
    {"monitoring"},
    {"explore", "loop", "restoring", "tensorboard"},
    {"training"},
    {"building"},
    {"estimator"},
    {"cli"},
    {"__init__", "__main__"},
]
# Inside a folder the same holds; its __init__ imports them all.
INNER = {
    "data": [
        {
            "arrays",
            "counts",
            "decoding",
            "downloads",
            "items",
            "loaders",
            "mapped",
            "masked",
            "precision",
            "sequences",
            "sparse",
            "tables",
        },
        {"rows"},
        {"preprocessing", "raw"},
        {"listing", "named"},
        {"image_cache", "sources"},
        {"examples", "folders"},
        {"defaults", "sets", "splits"},
        {"given"},
        {"loading"},
        {"__init__"},
    ],
    "networks": [
        {"bounded", "layers", "missing", "sizes"},
        {"convolutional", "dense", "inputs", "recurrent", "residual"},
        {"__init__"},
    ],
    "distributions": [
        {"arguments", "degenerate", "masks", "noise", "recomputed", "spherical", "stirling"},
        {"factors"},
        {
            "autoregressive",
            "autoregressive_normal",
            "beta",
            "bijections",
            "categorical",
            "continuous_bernoulli",
            "counts",
            "discretized_logistic",
            "gaussian_kl",
            "mixture",
            "normal_mixture",
            "one_hot",
            "stacks",
            "student_t",
            "uniform",
            "von_mises_fisher",
            "weighted",
        },
        {"mixed_columns", "nan_masked", "relaxed", "straight_through", "stretched_beta"},
        {"__init__"},
    ],
    "bounds": [
        {"own_noise"},
        {"pairs"},
        {"layouts"},
        {"draws"},
        {"controls"},
        {"base"},
        {"aggregate", "elbo", "importance", "paths", "wake_sleep"},
        {"__init__"},
    ],
    "priors": [
        {
            "autoregressive",
            "discrete",
            "encoded",
            "factorized",
            "flows",
            "gaussian",
            "mixtures",
            "spherical",
        },
        {"__init__"},
    ],
    "encoders": [
        {"outputs"},
        {"box", "correlated", "discrete", "flows", "gaussian", "mixtures", "refined", "spherical"},
        {"__init__"},
    ],
    "decoders": [
        {"drawn", "positive"},
        {
            "binary",
            "counts",
            "gaussian",
            "levels",
            "missing",
            "pixelcnn",
            "real",
            "sequences",
            "tabular",
            "unit_interval",
        },
        {"__init__"},
    ],
    "models": [{"autoencoder", "vae"}, {"__init__"}],
    "building": [
        {"choices"},
        {"nets", "refusals"},
        {"assembly"},
        {"programs"},
        {"__init__"},
    ],
    "svi": [
        {
            "attributes",
            "estimators",
            "guard",
            "kernels",
            "once",
            "precision",
            "state",
            "watch",
        },
        {"modules", "reach", "updates"},
        {"objective", "passes"},
        {"plans"},
        {"backends", "exchange", "faithfulness", "sentinel"},
        {"planner", "replays"},
        {"stepper"},
        {"compiled"},
        {"__init__"},
    ],
    "cli": [
        {"options"},
        {"launches", "parts"},
        {"planning"},
        {"as_python", "printing"},
        {"rehearsal"},
        {"doctor", "new", "parsing", "training", "verbs"},
        {"resuming"},
        {"__init__"},
    ],
    "explore": [
        {"latents", "placing"},
        {"inputs"},
        {"session"},
        {"server"},
        {"serving"},
        {"__init__"},
    ],
    "plots": [{"style"}, {"saving"}, {"charts", "grids"}, {"__init__"}],
}


def levels(layers):
    return {name: level for level, layer in enumerate(layers) for name in layer}


LEVEL = levels(LAYERS)
INNER_LEVEL = {folder: levels(layers) for folder, layers in INNER.items()}
# The template is a program of the user's: it is copied, not imported.
FILES = sorted(
    path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stem != "template"
)


def imported(path, package=PACKAGE):
    """The dotted names below `pyrovae` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((package / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, *rest = name.split(".")
            if root == "pyrovae":
                yield rest


def faults(path, package=PACKAGE):
    """What a file imports that it must not."""
    folder, stem = path.parts[0].removesuffix(".py"), path.stem
    inside = len(path.parts) > 1
    for name in imported(path, package):
        if name == ["__version__"]:
            continue
        if not name or name[0] not in LEVEL:
            yield f"{path} imports {'.'.join(name) or 'pyrovae'} from the package itself"
        elif inside and name[0] == folder:
            inner = INNER_LEVEL[folder]
            if name[1] not in inner or inner[name[1]] >= inner[stem]:
                yield f"{path} imports {'.'.join(name)}"
        elif LEVEL[name[0]] >= LEVEL[folder]:
            yield f"{path} imports {'.'.join(name)}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    assert not list(faults(path))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_has_its_layer(path):
    assert path.parts[0].removesuffix(".py") in LEVEL
    if len(path.parts) > 1:
        assert path.stem in INNER_LEVEL[path.parts[0]]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("priors/mixtures.py", "from pyrovae.encoders import GaussianEncoder"),
        ("priors/mixtures.py", "def f():\n    import pyrovae.encoders"),
        ("networks/dense.py", "from pyrovae import data"),
        ("networks/dense.py", "from pyrovae import VAE"),
        ("terms.py", "from pyrovae.models import VAE"),
        ("data/sources.py", "from pyrovae.data.loading import load_data"),
        ("data/sources.py", "from pyrovae.data import Data"),
        ("data/sources.py", "from pyrovae.programs import Program"),
    ],
)
def test_an_import_that_points_up_is_found(file, line, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert list(faults(Path(file), tmp_path))


def test_every_public_name_is_what_its_home_calls_so():
    for name, home in pyrovae._HOME.items():
        assert getattr(pyrovae, name) is getattr(importlib.import_module(home), name)
        assert name in importlib.import_module(home).__all__


@pytest.mark.parametrize(
    "home", ["priors", "encoders", "decoders", "networks", "models", "bounds"]
)
def test_every_part_is_public(home):
    module = importlib.import_module(f"pyrovae.{home}")
    parts = [name for name in module.__all__ if isinstance(getattr(module, name), type)]
    assert [name for name in parts if name not in pyrovae.__all__] == []


IMPORTING = """
import json, logging, random, sys, warnings
import numpy, pyro, sklearn, torch

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "settings of Pyro": str(pyro.settings.get()),
        "validation": torch.distributions.Distribution._validate_args,
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(numpy.random.get_state()),
        "python generator": hash(random.getstate()),
        "logging handlers": str(logging.root.handlers),
        "logging level": logging.root.level,
        "warning filters": str(warnings.filters),
        "parameter store": list(pyro.get_param_store()),
        "excepthook": str(sys.excepthook),
    }

before = state()
import pyrovae
only_pyrovae = sorted(name for name in sys.modules if name.startswith("pyrovae."))
for name in sys.argv[1:]:
    __import__("pyrovae." + name)
after = state()
changed = [key for key in before if before[key] != after[key]]
figures = "matplotlib" in sys.modules
print(json.dumps({"changed": changed, "matplotlib": figures, "submodules": only_pyrovae}))
"""


def test_importing_changes_nothing_global():
    modules = [path.stem if path.stem != "__init__" else path.parts[0] for path in FILES]
    modules = sorted({m for m in modules if m in LEVEL and m not in ("__main__", "__init__")})
    finished = subprocess.run(
        [sys.executable, "-c", IMPORTING, *modules],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found == {"changed": [], "matplotlib": False, "submodules": []}

"""Nothing that a run or its data are read from is ever run: canaries in every slot of a file.

A canary is code that makes a folder. It stands as a pickle of each kind, in archives, in arrays
of objects and as plain Python in the place of each file, and every verb is then asked.
"""

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import pyrovae
from pyrovae import cli, user_programs
from pyrovae.data import load_data, raw
from pyrovae.errors import PyrovaeError

pytestmark = pytest.mark.filterwarnings("ignore:.* is used:UserWarning")

GOLDEN = Path(__file__).parent / "golden" / "0.1.0" / "own"


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def array_of_objects(canary):
    content = io.BytesIO()
    np.save(content, np.array([Canary(canary)] * 12, dtype=object), allow_pickle=True)
    return content.getvalue()


def archive(canary):
    """A .npz of objects, which is also a zip of pickles."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("x.npy", array_of_objects(canary))
        file.writestr("data.pkl", pickle.dumps(Canary(canary)))
    return content.getvalue()


def tar(canary):
    content, member = io.BytesIO(), pickle.dumps(Canary(canary))
    with tarfile.open(fileobj=content, mode="w") as file:
        told = tarfile.TarInfo("pickle")
        told.size = len(member)
        file.addfile(told, io.BytesIO(member))
    return content.getvalue()


def torch_saved(canary, *, new):
    content = io.BytesIO()
    torch.save({"weight": Canary(canary)}, content, _use_new_zipfile_serialization=new)
    return content.getvalue()


PAYLOADS = {
    "pickle 2": lambda canary: pickle.dumps(Canary(canary), 2),
    "pickle 4": lambda canary: pickle.dumps(Canary(canary), 4),
    "pickle 5": lambda canary: pickle.dumps(Canary(canary), 5),
    "torch.save": lambda canary: torch_saved(canary, new=True),
    "torch.save of old": lambda canary: torch_saved(canary, new=False),
    "zip": archive,
    "tar": tar,
    "objects": array_of_objects,
    "source": lambda canary: f"import os\nos.mkdir({str(canary)!r})\n".encode(),
}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Where one would be seen; no network, and caches of its own."""
    monkeypatch.setenv("PYROVAE_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    return tmp_path / "canary"


@pytest.mark.parametrize("name", PAYLOADS)
def test_each_payload_is_live(name, canary):
    """What refuses nothing is run by it: were it not, the tests below could not fail."""
    content = PAYLOADS[name](canary)
    if name == "source":
        exec(content)
    elif name.startswith("torch"):
        torch.load(io.BytesIO(content), weights_only=False)
    elif name in ("zip", "objects"):
        found = np.load(io.BytesIO(content), allow_pickle=True)
        found = found["x"] if name == "zip" else found
    elif name == "tar":
        with tarfile.open(fileobj=io.BytesIO(content)) as file:
            pickle.loads(file.extractfile("pickle").read())  # noqa: S301
    else:
        pickle.loads(content)  # noqa: S301
    assert canary.is_dir()


# ── The folder of a run ──

# Every file that a run's folder may hold, and some that none should.
SLOTS = [
    *("config.json", "environment.json", "metrics.jsonl", "evaluation.json", ".lock"),
    *("stages.safetensors", "report.html", "source/87be51a8/own.py", "own.py"),
    *("checkpoints/step-00000006/model.safetensors", "checkpoints/step-00000006/MANIFEST.json"),
    *("checkpoints/step-00000006/state.safetensors", "checkpoints/step-00000009"),
    *("encode/test.npz", "sample/sample.npz", "__init__.py", "conftest.py", "sitecustomize.py"),
]


def ask(*words):
    """Asks a verb, which either answers or says in one line why not."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        if stop.code != 2:
            raise


@pytest.mark.parametrize("slot", SLOTS)
def test_nothing_in_the_folder_of_a_run_is_run(slot, canary, tmp_path, capsys):
    for payload in PAYLOADS.values():
        path = shutil.copytree(GOLDEN, tmp_path / "run")
        file = path / slot
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(payload(canary))
        few = ("--trust-source", "--num-samples", "2", "--limit", "2")
        ask("evaluate", path, *few)
        ask("encode", path, "--trust-source")
        ask("sample", path, "--count", "1", "--trust-source")
        ask("resume", path, "--epochs", "3")
        shutil.rmtree(path)
        assert not canary.exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "slot", ["metrics.jsonl", "environment.json", "evaluation.json", "stages.safetensors"]
)
def test_a_report_runs_nothing_of_what_it_shows(slot, canary, tmp_path, without_drawing):
    for name in ("pickle 4", "torch.save", "source"):
        path = shutil.copytree(GOLDEN.parent / "plain", tmp_path / "run")
        (path / slot).write_bytes(PAYLOADS[name](canary))
        ask("report", path)
        shutil.rmtree(path)
        assert not canary.exists()


def test_a_manifest_that_vouches_for_a_canary_does_not_make_it_run(canary, tmp_path):
    for name, payload in PAYLOADS.items():
        path = shutil.copytree(GOLDEN, tmp_path / "run")
        folder = path / "checkpoints" / "step-00000006"
        content = payload(canary)
        (folder / "model.safetensors").write_bytes(content)
        manifest = json.loads(json.loads((folder / "MANIFEST.json").read_text())["manifest"])
        manifest["files"]["model.safetensors"]["sha256"] = sha256(content).hexdigest()
        text = json.dumps(manifest)
        sealed = {"sha256": sha256(text.encode()).hexdigest(), "manifest": text}
        (folder / "MANIFEST.json").write_text(json.dumps(sealed))
        with pytest.raises(pyrovae.CheckpointError, match="damaged"):
            pyrovae.load(path, trust_source=True)
        shutil.rmtree(path)
        assert not canary.exists(), name


# ── Data ──

IDX = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
NAMED = {
    "mnist": [f"MNIST/raw/{name}-ubyte{end}" for name in IDX for end in ("", ".gz")],
    "binarized-mnist": [
        "binarized_mnist_larochelle.npz",
        *(f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")),
    ],
    "frey-faces": ["frey_faces.npz", "frey_rawface.mat"],
}


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.txt", "x.mat", "x.pt", "x.pkl"])
def test_no_file_of_data_is_run(name, canary, tmp_path):
    for payload in PAYLOADS.values():
        (tmp_path / name).write_bytes(payload(canary))
        with pytest.raises(PyrovaeError):
            load_data(tmp_path / name)
        ask("train", tmp_path / name)
        assert not canary.exists()


@pytest.mark.parametrize("name", NAMED)
def test_no_file_of_a_named_set_is_run(name, canary, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "data"))
    for payload in PAYLOADS.values():
        for file in NAMED[name]:
            path = tmp_path / "data" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(payload(canary))
        with pytest.raises(PyrovaeError):
            load_data(name)
        assert not canary.exists()
    cli.main(["doctor"])
    assert f"{name} " in capsys.readouterr().out
    assert not canary.exists()


def test_objects_in_a_matlab_file_are_not_run(canary, tmp_path):
    """scipy reads cells and structures as arrays of objects, and none of them by a pickle."""
    objects = np.array([["os.mkdir", str(canary)]], dtype=object)
    for found in (objects, np.zeros((3, 3)), np.zeros((561, 2)), {"ff": np.zeros(3)}):
        savemat(tmp_path / "frey_rawface.mat", {"ff": found})
        with pytest.raises(PyrovaeError):
            load_data("frey-faces", data_dir=tmp_path)
    savemat(tmp_path / "frey_rawface.mat", {"x": np.zeros((560, 500))})
    with pytest.raises(PyrovaeError, match=r"cannot be read \(KeyError"):
        load_data("frey-faces", data_dir=tmp_path)
    assert not canary.exists()


def photographs(folder):
    folder.mkdir()
    for index in range(12):
        shade = np.full((4, 4), 20 * index, np.uint8)
        Image.fromarray(shade).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("suffix", [".png", ".tif", ".eps", ".gif", ".webp"])
def test_no_image_is_run(suffix, canary, tmp_path):
    folder = photographs(tmp_path / "photos")
    for index, payload in enumerate(PAYLOADS.values()):
        (folder / f"canary{index}{suffix}").write_bytes(payload(canary))
    if suffix != ".eps":
        with pytest.raises(PyrovaeError, match="9 files cannot be read"):
            load_data(folder)
    assert len(load_data(folder, skip_bad=True).train) == 10
    assert not canary.exists()


@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_in_a_cache_of_images_is_run(name, canary, tmp_path):
    folder = photographs(tmp_path / "photos")
    load_data(folder)
    files = [path for path in raw.cache_folder().rglob("*") if path.is_file()]
    assert len(files) == 2
    for file in files:
        file.write_bytes(PAYLOADS[name](canary))
        assert len(load_data(folder).train) == 10
        assert not canary.exists()


# ── Modules beside a program ──

# Whatever Python would import in the place of what was: a package and an extension come first.
BESIDE = [
    "helper.py",
    "helper/__init__.py",
    "helper.abi3.so",
    "inner/deep.py",
    "inner/deep.abi3.so",
]


@pytest.fixture(scope="module")
def with_neighbours(tmp_path_factory):
    """A run of a program that imports a module and a package beside it, and their folder."""
    folder = tmp_path_factory.mktemp("program")
    cli.main(["new", str(folder / "mine.py")])
    text = (folder / "mine.py").read_text()
    text = text.replace("import math\n", "import helper, inner.deep, math\n", 1)
    (folder / "mine.py").write_text(text)
    (folder / "inner").mkdir()
    for name in ("helper.py", "inner/__init__.py", "inner/deep.py"):
        (folder / name).write_text("ONE = 1\n")
    program = user_programs.load_builder(str(folder / "mine.py"))((6,), latent_dim=2, hidden=4)
    told = {"latent_dim": 2, "hidden": 4}
    record = user_programs.describe(str(folder / "mine.py"), told)
    words = f"pyrovae train {folder / 'mine.py'}"
    config = {"program": record, "command": words, "folder": str(folder), "files": []}
    x = (torch.rand(60, 6) < 0.5).float()
    path = folder / "run"
    pyrovae.fit(program, x, epochs=1, run_dir=path, progress=False, config=config)
    return folder


@pytest.mark.parametrize("slot", BESIDE)
@pytest.mark.parametrize("whose", ["the user's", "the run's"])
def test_nothing_beside_a_program_is_run_that_is_not_as_it_was(
    slot, whose, canary, with_neighbours, tmp_path, monkeypatch
):
    run, few = with_neighbours / "run", ("--trust-source", "--count", "1")
    if whose == "the run's":
        # As on another machine: the copies are what is run.
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        run = shutil.copytree(run, tmp_path / "run")
        (place,) = run.glob("source/*")
    else:
        place = with_neighbours
    before = {path: path.read_bytes() for path in place.rglob("*.py")}
    assert pyrovae.load(run, trust_source=whose == "the run's")
    file = place / slot
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(PAYLOADS["source"](canary))
    try:
        with pytest.raises(PyrovaeError, match=r"is not as it was|has changed"):
            pyrovae.load(run, trust_source=whose == "the run's")
        ask("sample", run, *few)
        ask("resume", run, "--epochs", "3")
    finally:
        file.unlink()
        for path, content in before.items():
            path.write_bytes(content)
        if slot == "helper/__init__.py":
            shutil.rmtree(file.parent)
    assert not canary.exists()
    assert pyrovae.load(run, trust_source=whose == "the run's")

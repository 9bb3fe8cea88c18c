"""Programs in files of the user's own: written, trained, copied, and never run unasked."""

import hashlib
import importlib.util
import json
import py_compile
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from programs_for_tests import same, weights
from pyro.distributions import Normal

import pyrovae
from pyrovae import checkpoint, cli, run_folder, user_programs
from pyrovae.errors import InputError
from pyrovae.runs import Run

QUICK = ["--epochs", "2", "--build.latent-dim", "3", "--build.hidden", "8"]
PART = """
import torch
from torch import nn
from pyro.distributions import Normal

class Wide(nn.Module):
    def __init__(self, latent_dim, *, scale=2.0):
        super().__init__()
        self.latent_dim, self.scale = latent_dim, scale
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self):
        return Normal(self.loc, self.scale).to_event(1)
"""
# What a stranger might have put into a run.
CANARY = "\nfrom pathlib import Path\nPath('canary').write_text('it was run')\n"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch, without_drawing):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained():
    cli.main(["new", "mine.py"])
    cli.main(["train", "mine.py", *QUICK, "--run-dir", "run"])
    return pyrovae.load("run")


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    assert stop.value.code == 2
    return capsys.readouterr().err


def seal(config):
    """Makes a configuration that of the run's checkpoint, as a stranger can."""
    found = checkpoint.load_newest(Path("run/checkpoints"))
    sealed = {**found.state, "config": run_folder.identity(config)}
    checkpoint.save(Path("run/checkpoints"), replace(found, state=sealed))


# ── New ──


def test_the_template_is_short_and_runs_by_itself(capsys):
    cli.main(["new", "mine.py"])
    text = Path("mine.py").read_text()
    assert len(text.splitlines()) < 60
    assert "pyrovae train mine.py" in text
    assert "pyrovae train mine.py" in capsys.readouterr().out
    short = text.replace("epochs=20", "epochs=1").replace("evaluate()", "evaluate(num_samples=2)")
    assert short.count("epochs=1") == short.count("num_samples=2") == 1
    Path("mine.py").write_text(short)
    found = subprocess.run([sys.executable, "mine.py"], capture_output=True, text=True)
    assert "epoch   1/1" in found.stdout
    assert "log p(x) -" in found.stdout


class Unclamped(torch.nn.Module):
    """A Gaussian encoder whose scale is not kept within bounds."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        loc, log_scale = self.net(x).chunk(2, -1)
        return Normal(loc, log_scale.exp()).to_event(1)


def test_the_template_is_the_vae_of_parts():
    """Equal weights, equal bound."""
    cli.main(["new", "mine.py"])
    mine = user_programs.load_builder("mine.py")((1, 8, 8), latent_dim=3, hidden=8)
    encoder = pyrovae.MLP((1, 8, 8), (6,), hidden=(8,))
    decoder = pyrovae.MLP((3,), (1, 8, 8), hidden=(8,))
    vae = pyrovae.VAE(
        prior=pyrovae.StandardNormal(3),
        decoder=pyrovae.BernoulliDecoder(decoder),
        encoder=Unclamped(encoder),
    )
    for ours, theirs in ((encoder, mine.encoder), (decoder, mine.decoder)):
        for first, second in zip(ours.parameters(), theirs.parameters(), strict=True):
            first.data.copy_(second.data)
    x = (torch.rand(20, 1, 8, 8) < 0.5).float()
    elbos = [pyrovae.evaluate(program, x, num_samples=5).elbo for program in (mine, vae)]
    torch.testing.assert_close(*elbos)


@pytest.mark.parametrize(("name", "said"), [("mine.txt", "no Python file"), ("a/b.py", "written")])
def test_a_file_that_cannot_be_written_says_so(name, said, capsys):
    assert said in fails(capsys, "new", name)


def test_a_file_that_is_there_is_not_overwritten(capsys):
    Path("mine.py").write_text("mine")
    assert "exists already" in fails(capsys, "new", "mine.py")
    assert Path("mine.py").read_text() == "mine"


# ── Loading ──


def test_the_users_own_file_is_run_while_it_is_as_it_was(trained):
    assert same(weights(pyrovae.load("run").program), weights(trained.program))
    assert [path.name for path in Path("run/source").rglob("*.py")] == ["mine.py"]


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_otherwise_nothing_is_run_until_the_user_says_what(how, trained, capsys):
    file = Path("mine.py")
    text = file.read_text()
    file.write_text(text + CANARY) if how == "changed" else file.unlink()
    said = fails(capsys, "evaluate", "run")
    assert "--trust-source" in said
    assert "--program" in said
    assert not Path("canary").exists()

    copy = pyrovae.load("run", trust_source=True)
    assert same(weights(copy.program), weights(trained.program))
    Path("moved.py").write_text(text)
    named = pyrovae.load("run", program="moved.py")
    assert same(weights(named.program), weights(trained.program))
    cli.main(["evaluate", "run", "--trust-source", "--num-samples", "2"])
    cli.main(["evaluate", "run", "--program", "moved.py", "--num-samples", "2"])
    assert not Path("canary").exists()


def test_a_copy_that_was_changed_is_not_run_however_trusted(trained):
    Path("mine.py").unlink()
    copy = next(Path("run/source").rglob("*.py"))
    copy.write_text(copy.read_text() + CANARY)
    with pytest.raises(InputError, match="copy"):
        pyrovae.load("run", trust_source=True)
    assert not Path("canary").exists()


def test_bytecode_beside_a_trusted_copy_is_not_run(trained):
    copy = next(Path("run/source").rglob("*.py"))
    evil = Path("evil.py")
    evil.write_text(copy.read_text() + CANARY)
    cache = Path(importlib.util.cache_from_source(str(copy)))
    cache.parent.mkdir()
    py_compile.compile(
        str(evil), str(cache), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    Path("mine.py").unlink()
    loaded = pyrovae.load("run", trust_source=True)
    assert same(weights(loaded.program), weights(trained.program))
    assert not Path("canary").exists()


def test_a_file_that_does_not_fit_says_so(trained, capsys):
    cli.main(["new", "other.py"])
    text = Path("other.py").read_text().replace("nn.SiLU(), nn.Linear(hidden, size)", "nn.SiLU()")
    Path("other.py").write_text(text)
    assert "do not fit" in fails(capsys, "evaluate", "run", "--program", "other.py")


def test_a_part_of_the_users_own_is_copied_and_trusted_alike():
    Path("wide.py").write_text(PART)
    words = ["train", "--prior", "wide.py:Wide", "--latent-dim", "2", "--hidden", "4"]
    cli.main([*words, "--epochs", "1", "--run-dir", "run"])
    before = weights(pyrovae.load("run").program)
    Path("wide.py").write_text(PART + CANARY)
    with pytest.raises(InputError, match="trust-source"):
        pyrovae.load("run")
    assert same(weights(pyrovae.load("run", trust_source=True).program), before)
    assert not Path("canary").exists()


def test_a_part_whose_size_has_no_name_is_refused(capsys):
    Path("wide.py").write_text(PART.replace("latent_dim, *,", "latent_dim, /,"))
    said = fails(capsys, "train", "--prior", "wide.py:Wide", "--epochs", "1")
    assert "The constructor of Wide takes 'latent_dim' by its place alone." in said


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("def build(x_shape):\n    return None + 1", "cannot be run (TypeError: .*, in line 2)"),
        ("def build():\n    pass", "cannot be called with the shape of the data"),
        ("def build(x_shape, size, /):\n    pass", "cannot be called with the shape"),
        ("def build(x_shape):\n    return 3", "A int has no methods model and guide"),
    ],
)
def test_what_makes_no_program_is_refused(text, cause, capsys):
    Path("mine.py").write_text(text)
    words = ["--build.size", "3"] if "size" in text else []
    said = fails(capsys, "train", "mine.py", "--data", "digits", *words)
    assert re.search(cause.replace("(", r"\(").replace(")", r"\)"), said), said


# ── Resuming ──


def test_a_program_of_the_users_own_is_resumed(trained, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    cli.main(["resume", str(tmp_path / "run"), "--epochs", "3"])
    assert len(pyrovae.load(tmp_path / "run").metrics) == 3


@pytest.mark.parametrize(
    "how", ["changed", "came with the run", "is another word", "is the last of two words"]
)
def test_a_run_from_elsewhere_is_not_run_by_being_resumed(how, trained, capsys):
    config = json.loads(Path("run/config.json").read_text())
    evil = Path("run/evil.py").resolve()
    evil.write_text(Path("mine.py").read_text() + CANARY + "class Bound:\n    pass\n")
    if how == "changed":
        Path("mine.py").write_text(evil.read_text())
    if how == "came with the run":
        digest = hashlib.sha256(evil.read_bytes()).hexdigest()
        config["command"] = config["command"].replace("mine.py", "evil.py")
        config["folder"] = str(evil.parent)
        config["files"] = [{"file": str(evil), "name": "build", "sha256": digest}]
        config["program"] |= config["files"][0]
        seal(config)
    if how == "is another word":
        config["command"] += f" --bound={evil}:Bound"
    if how == "is the last of two words":
        config["command"] += f" --bound elbo --bound {evil}:Bound"
    Path("run/config.json").write_text(json.dumps(config))
    said = fails(capsys, "resume", str(evil.parent), "--epochs", "5")
    assert "is not run" in said
    assert not list(Path.cwd().rglob("canary"))
    if how == "came with the run":
        assert "is not run" in fails(capsys, "evaluate", str(evil.parent))
        assert not list(evil.parent.rglob("canary"))


# ── Files that the user never trained ──


def forged(**changes):
    """A run whose configuration names a file of the standard library, as it is."""
    config = json.loads(Path("run/config.json").read_text())
    config["program"] = {
        "file": subprocess.__file__,
        "sha256": hashlib.sha256(Path(subprocess.__file__).read_bytes()).hexdigest(),
        **changes,
    }
    config["files"] = [config["program"]]
    Path("run/config.json").write_text(json.dumps(config))
    seal(config)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"function": "Popen", "arguments": {"args": ["touch", "canary"]}},
        {"part": "Popen", "args": ["touch", "canary"]},
    ],
    ids=["function", "part"],
)
def test_a_file_whose_content_is_public_is_not_run(changes, trained):
    forged(**changes)
    with pytest.raises(InputError, match="not trained by you"):
        pyrovae.load("run")
    assert not Path("canary").exists()


def test_a_file_whose_content_is_public_is_not_resumed(trained, capsys):
    config = forged(function="Popen", arguments={})
    config["command"] = f"pyrovae train {subprocess.__file__}:Popen --build.shell True"
    Path("run/config.json").write_text(json.dumps(config))
    assert "not trained by you" in fails(capsys, "resume", "run", "--epochs", "5")


def test_another_name_in_a_file_that_was_trained_is_not_run(trained):
    config = json.loads(Path("run/config.json").read_text())
    config["program"]["function"] = "VAE"
    Path("run/config.json").write_text(json.dumps(config))
    seal(config)
    with pytest.raises(InputError, match="not trained by you"):
        pyrovae.load("run")


def test_on_another_machine_a_run_asks_for_trust(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing yet"))
    with pytest.raises(InputError, match="trust-source"):
        pyrovae.load("run")
    assert pyrovae.load("run", trust_source=True)
    assert pyrovae.load("run", program="mine.py:build")


def test_trainings_are_remembered_once(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for _ in range(2):
        cli.main(["train", "mine.py", *QUICK, "--run-dir", f"again{_}", "--quiet"])
    lines = (tmp_path / "state/pyrovae/known_files.jsonl").read_text().splitlines()
    assert [json.loads(line)[:2] for line in lines] == [[str(Path("mine.py").resolve()), "build"]]
    assert pyrovae.load("run")


def test_what_cannot_be_remembered_is_trained_all_the_same(trained, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    cli.main(["train", "mine.py", *QUICK, "--run-dir", "again", "--quiet"])
    with pytest.raises(InputError, match="trust-source"):
        pyrovae.load("again")


# ── Modules beside a file ──

HELPER = "\nWIDTH = 8\n\n\ndef layers(nn, shape):\n    return nn.Linear(shape, WIDTH)\n"
BESIDE = {
    "helper.py": HELPER,
    "inner/__init__.py": "from inner.deep import DEPTH\n",
    "inner/deep.py": "import scales\n\nDEPTH = scales.ONE\n",
    "scales.py": "ONE = 1\n",
    "plain/part.py": "TWO = 2\n",
}


@pytest.fixture
def unmeasured(monkeypatch):
    """Trainings whose numbers are not looked at."""
    monkeypatch.setattr(cli.training, "FINAL_SAMPLES", 2)
    monkeypatch.setattr(cli.training, "FINAL_EXAMPLES", 5)
    monkeypatch.setattr(Run, "report", lambda run: run.path / "report.html")


@pytest.fixture
def with_neighbours(unmeasured):
    """A program that imports a module, a package that imports another, and a plain folder's."""
    cli.main(["new", "mine.py"])
    imports = "import helper, inner\nfrom plain.part import TWO\nimport math\n"
    Path("mine.py").write_text(Path("mine.py").read_text().replace("import math\n", imports, 1))
    for name, text in BESIDE.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    Path("unused.py").write_text(CANARY)
    cli.main(["train", "mine.py", *QUICK, "--run-dir", "run"])
    return pyrovae.load("run")


def test_what_a_file_imports_from_beside_it_is_recorded_and_copied(with_neighbours):
    (entry,) = with_neighbours.config["files"]
    expected = {n: hashlib.sha256(text.encode()).hexdigest() for n, text in BESIDE.items()}
    assert entry["beside"] == with_neighbours.config["program"]["beside"] == expected
    assert list(entry["beside"]) == sorted(BESIDE)
    (copy,) = Path("run/source").rglob("mine.py")
    copied = {p.relative_to(copy.parent).as_posix() for p in copy.parent.rglob("*.py")}
    assert copied == {"mine.py", *BESIDE}
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "changed") for name in BESIDE), ("helper.py", "removed"), ("inner/deep.py", "gone")],
)
def test_a_neighbour_that_is_not_as_it_was_is_not_run(name, how, with_neighbours, capsys):
    before = weights(with_neighbours.program)
    changed = Path(name)
    changed.write_text(BESIDE[name] + CANARY) if how == "changed" else changed.unlink()
    for words in (["evaluate", "run"], ["resume", "run", "--epochs", "5"]):
        said = fails(capsys, *words)
        assert "is not run" in said
    assert name in fails(capsys, "sample", "run")
    assert not list(Path.cwd().rglob("canary"))
    loaded = pyrovae.load("run", trust_source=True)
    assert same(weights(loaded.program), before)
    assert not list(Path.cwd().rglob("canary"))
    if how == "changed":
        pyrovae.load("run", program="mine.py")
        assert Path("canary").exists()


@pytest.mark.parametrize("name", ["helper.py", "inner/deep.py"])
def test_a_changed_copy_of_a_neighbour_is_not_run_however_trusted(name, with_neighbours):
    Path("mine.py").unlink()
    (copy,) = (path for path in Path("run/source").glob(f"*/{name}"))
    copy.write_text(BESIDE[name] + CANARY)
    with pytest.raises(InputError, match="copy"):
        pyrovae.load("run", trust_source=True)
    assert not list(Path.cwd().rglob("canary"))


def test_a_module_that_was_not_there_is_not_run_beside_a_file_or_its_copy(
    with_neighbours, tmp_path, monkeypatch, capsys
):
    """Not even where Python itself would find it: in the working folder."""
    text = Path("mine.py").read_text()
    Path("mine.py").write_text(text.replace("import math\n", "import colorsys, math\n"))
    cli.main(["train", "mine.py", *QUICK, "--run-dir", "other"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (copy,) = Path("other/source").rglob("mine.py")
    for place in (tmp_path, copy.parent):
        (place / "colorsys.py").write_text(CANARY)
    with pytest.raises(InputError, match=r"colorsys\.py is not as it was"):
        pyrovae.load("other")
    assert "colorsys.py is not as it was" in fails(capsys, "resume", "other", "--epochs", "5")
    Path("mine.py").write_text(text)
    with pytest.raises(InputError, match=r"colorsys\.py is not as it was"):
        pyrovae.load("other", trust_source=True)
    assert not list(Path.cwd().rglob("canary"))


def test_bytecode_beside_a_neighbour_is_not_run(with_neighbours):
    for name in ("helper.py", "inner/deep.py"):
        evil = Path("evil.py")
        evil.write_text(BESIDE[name] + CANARY)
        for file in (Path(name), *Path("run/source").glob(f"*/{name}")):
            cache = Path(importlib.util.cache_from_source(str(file)))
            cache.parent.mkdir(exist_ok=True)
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(str(evil), str(cache), invalidation_mode=mode)
    pyrovae.load("run")
    Path("mine.py").unlink()
    pyrovae.load("run", trust_source=True)
    assert not list(Path.cwd().rglob("canary"))


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for folder, width in (("one", 3), ("two", 5)):
        place = tmp_path / folder
        place.mkdir()
        cli.main(["new", str(place / "mine.py")])
        text = (place / "mine.py").read_text().replace("import math\n", "import size, math\n", 1)
        (place / "mine.py").write_text(text.replace("hidden=400", "hidden=size.WIDTH"))
        (place / "size.py").write_text(f"WIDTH = {width}\n")
    widths = [
        user_programs.load_builder(f"{folder}/mine.py")((4,)).encoder[1].out_features
        for folder in ("one", "two", "one")
    ]
    assert widths == [3, 5, 3]
    (tmp_path / "one" / "size.py").write_text("WIDTH = 11\n")
    assert user_programs.load_builder("one/mine.py")((4,)).encoder[1].out_features == 11


def test_a_run_that_names_files_elsewhere_as_neighbours_is_refused(with_neighbours, tmp_path):
    secret = tmp_path.parent / "secret.py"
    secret.write_text("")
    config = json.loads(Path("run/config.json").read_text())
    for name in ("../secret.py", str(secret), "inner/../../secret.py"):
        beside = {name: hashlib.sha256(b"").hexdigest()}
        config["program"]["beside"] = beside
        Path("run/config.json").write_text(json.dumps(config))
        seal(config)
        for trusted in (True, False):
            with pytest.raises(InputError, match="are elsewhere"):
                pyrovae.load("run", trust_source=trusted)


@pytest.mark.parametrize("beside", [["helper.py"], "helper.py", 3, {"helper.py": None}])
def test_a_run_whose_neighbours_make_no_sense_is_refused(beside, with_neighbours, capsys):
    config = json.loads(Path("run/config.json").read_text())
    config["program"]["beside"] = config["files"][0]["beside"] = beside
    Path("run/config.json").write_text(json.dumps(config))
    seal(config)
    with pytest.raises(InputError):
        pyrovae.load("run")
    assert fails(capsys, "resume", "run", "--epochs", "5")


def test_neighbours_of_a_part_are_held_to_the_same(unmeasured, capsys):
    Path("wide.py").write_text("from scale import SCALE\n" + PART.replace("2.0", "SCALE"))
    Path("scale.py").write_text("SCALE = 2.0\n")
    words = ["train", "--prior", "wide.py:Wide", "--latent-dim", "2", "--hidden", "4"]
    cli.main([*words, "--epochs", "1", "--run-dir", "run"])
    run = pyrovae.load("run")
    assert list(run.config["program"]["prior"]["beside"]) == ["scale.py"]
    Path("scale.py").write_text("SCALE = 2.0\n" + CANARY)
    with pytest.raises(InputError, match=r"scale\.py is gone, has changed"):
        pyrovae.load("run")
    assert pyrovae.load("run", trust_source=True).program.prior.scale == run.program.prior.scale
    assert "is not run" in fails(capsys, "resume", "run", "--epochs", "2")
    assert not Path("canary").exists()


def test_a_program_with_neighbours_is_resumed_and_passed_on(with_neighbours, tmp_path):
    cli.main(["resume", "run", "--epochs", "3"])
    run = pyrovae.load("run")
    assert len(run.metrics) == 3
    folder = run.save_pretrained("passed on")
    for name in ("mine.py", *BESIDE):
        Path(name).unlink()
    with pytest.raises(InputError, match="unasked"):
        pyrovae.from_pretrained(folder)
    passed = pyrovae.from_pretrained(folder, trust_source=True)
    assert same(weights(passed.program), weights(run.program))


def test_libraries_in_a_folder_below_are_none_of_a_files_own(unmeasured, tmp_path, monkeypatch):
    """As those of an environment in the project's folder; a folder of their name hides none."""
    library = tmp_path / ".venv" / "library"
    library.mkdir(parents=True)
    (tmp_path / "library").mkdir()
    (library / "__init__.py").write_text("")
    (library / "part.py").write_text("ONE = 1\n")
    monkeypatch.syspath_prepend(str(library.parent))
    cli.main(["new", "mine.py"])
    text = Path("mine.py").read_text()
    Path("mine.py").write_text(text.replace("import math\n", "import library.part, math\n", 1))
    cli.main(["train", "mine.py", *QUICK, "--run-dir", "run"])
    assert "beside" not in pyrovae.load("run").config["program"]


def test_a_failing_neighbour_is_named_and_nothing_is_left_in_the_way():
    Path("mine.py").write_text("import broken\n")
    Path("broken.py").write_text("1 / 0\n")
    before = list(sys.meta_path)
    with pytest.raises(InputError, match=r"mine\.py cannot be run \(ZeroDivisionError"):
        user_programs.load_builder("mine.py")
    assert sys.meta_path == before
    Path("broken.py").write_text("ONE = 1\n")
    with pytest.raises(InputError, match="defines no 'build'"):
        user_programs.load_builder("mine.py")


def test_a_neighbour_that_was_never_trained_with_is_not_run_whatever_a_run_says(with_neighbours):
    """A stranger may know what the user's own file beside a known program holds."""
    Path("helper.py").write_text(HELPER + CANARY)
    config = json.loads(Path("run/config.json").read_text())
    now = hashlib.sha256(Path("helper.py").read_bytes()).hexdigest()
    config["program"]["beside"]["helper.py"] = now
    Path("run/config.json").write_text(json.dumps(config))
    seal(config)
    with pytest.raises(InputError, match="not trained by you"):
        pyrovae.load("run")
    assert not Path("canary").exists()

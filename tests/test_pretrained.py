"""Pretrained folders: what they give back, what they say, and what a stranger cannot do."""

import json
import re
import shutil
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from programs_for_tests import binary, same, small_vae, weights
from safetensors.torch import load_file, save, save_file
from test_user_files import CANARY, PART
from torch import nn

import pyrovae
from pyrovae import cli, known_files, pretrained, user_files
from pyrovae.data.downloads import OFFLINE
from pyrovae.errors import CheckpointError, InputError
from pyrovae.extras import require


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained():
    data = pyrovae.load_data("digits")
    run = pyrovae.fit(small_vae(data.x_shape, latent_dim=3), data, epochs=2, progress=False)
    run.evaluate(num_samples=20, limit=30)
    return run


@pytest.fixture
def folder(trained):
    return trained.save_pretrained("kept/digits")


def edit(folder, *keys, value):
    """Puts a value into the configuration."""
    config = node = json.loads((folder / "config.json").read_text())
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def put_weights(folder, tensors):
    """Other weights, sealed as if they were the folder's own."""
    content = save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, "weights", value={"sha256": sha256(content).hexdigest(), "bytes": len(content)})


# ── What comes back ──


def test_a_run_comes_back_without_its_data(trained, folder):
    names = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    again = pyrovae.from_pretrained(folder)
    assert same(weights(again.program), weights(trained.program))
    assert again.splits == {}
    assert again.preprocessing == trained.preprocessing
    assert torch.equal(again.sample(5, seed=1).x, _samples(trained, 5))
    with pytest.raises(InputError, match="not at hand"):
        again.encode()


def _samples(run, count):
    return run.on(np.zeros((1, 8, 8), np.uint8)).sample(count, seed=1).x


def test_it_is_measured_and_encodes_on_data_that_are_given(trained, folder):
    again = pyrovae.from_pretrained(str(folder))
    test = trained.splits["test"]
    raw = test.raw(range(len(test))).x
    found = [
        run.on(given).evaluate(num_samples=20, limit=30)
        for run, given in ((trained, raw), (again, raw), (again, raw.numpy()))
    ]
    for other in found:
        assert torch.equal(other.elbo, trained.evaluation.elbo)
    assert torch.equal(again.on(raw).encode().means["z"], trained.encode().means["z"])
    with pytest.raises(InputError, match="'array' are of shape"):
        again.on(raw[..., :5, :5])


def test_parts_of_every_kind_come_back():
    data = pyrovae.load_data("digits")
    encoder = pyrovae.GaussianEncoder(pyrovae.ConvNet(data.x_shape, (4,), hidden=8))
    vae = pyrovae.VAE(
        pyrovae.VampPrior(encoder, data.x_shape, components=5),
        pyrovae.BernoulliDecoder(pyrovae.DeconvNet((2,), data.x_shape)),
        encoder,
    )
    run = pyrovae.fit(vae, data, epochs=1, progress=False)
    again = pyrovae.from_pretrained(run.save_pretrained("vamp"))
    assert same(weights(again.program), weights(vae))
    assert again.program.prior.encoder is again.program.encoder


def test_standardised_data_are_given_in_their_own_units():
    rows = np.random.default_rng(0).normal(5.0, 3.0, size=(100, 4))
    data = pyrovae.load_data(rows)
    vae = pyrovae.VAE(
        pyrovae.StandardNormal(2),
        pyrovae.GaussianDecoder(pyrovae.MLP((2,), (4,), hidden=(8,))),
        pyrovae.GaussianEncoder(pyrovae.MLP((4,), (4,), hidden=(8,))),
    )
    run = pyrovae.fit(vae, data, epochs=1, progress=False)
    again = pyrovae.from_pretrained(run.save_pretrained("table"))
    raw = data.test.raw(range(len(data.test))).x
    assert torch.equal(again.on(raw).measured.head(9).x, data.test.head(9).x)


def test_it_can_be_kept_again_with_its_numbers(trained, folder):
    again = pyrovae.from_pretrained(folder).save_pretrained("twice")
    for name in ("README.md", "config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_program_that_cannot_be_named_is_given_again():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = small_vae()
            self.model, self.guide = self.vae.model, self.vae.guide

    run = pyrovae.fit(Mine(), binary(), epochs=1, progress=False)
    folder = run.save_pretrained("mine")
    assert "given by whoever loads it" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match=r"Mine is not one of .* program=\.\.\."):
        pyrovae.from_pretrained(folder)
    again = pyrovae.from_pretrained(folder, program=Mine())
    assert same(weights(again.program), weights(run.program))


# ── The card ──


def test_the_card_says_what_the_run_says(trained, folder):
    card = (folder / "README.md").read_text()
    numbers = trained.evaluation.summary()
    elbo = f"| ELBO | {numbers['elbo']:.2f} ± {numbers['elbo_se']:.2f} |"
    log_p = f"| log p(x) | {numbers['log_evidence']:.2f} ± {numbers['log_evidence_se']:.2f} |"
    for line in (
        "# VAE on digits",
        elbo,
        log_p,
        "over 30 test examples, by 20 importance samples each",
        "`pyrovae evaluate RUN --num-samples 20 --limit 30`",
        "| seed | 0 |",
        "| epochs | 2 |",
        "| optimizer | Adam, lr 0.001 |",
        f"| hardware | {trained.environment['hardware']} |",
        f"| date | {trained.environment['date']} |",
        f"| sha256 | {trained.config['data']['fingerprint']} |",
        "| examples | train 1,437, valid 180, test 180 |",
        "(encoder): GaussianEncoder(",
    ):
        assert line in card, line
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", trained.environment["date"])


def test_the_code_of_the_card_runs(folder):
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    names = {"data": np.zeros((3, 8, 8), np.uint8)}
    exec(code.replace("folder or user/name", str(folder)), names)
    assert names["run"].path is None


def test_the_hub_understands_the_card(folder):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((folder / "README.md").read_text())
    assert card.data.library_name == "pyrovae"
    assert "variational-autoencoder" in card.data.tags


def test_what_was_not_measured_is_said_to_be_so():
    run = pyrovae.fit(small_vae(), binary(), epochs=1, progress=False)
    card = (run.save_pretrained("array") / "README.md").read_text()
    assert "Not measured." in card
    assert "`pyrovae.fit(...)`" in card


def test_nothing_says_where_things_lay(tmp_path):
    np.save("secret.npy", np.random.default_rng(0).normal(size=(50, 4)))
    cli.main(["train", str(tmp_path / "secret.npy"), "--epochs", "1", "--run-dir", "run"])
    run = pyrovae.load("run")
    folder = run.save_pretrained("open")
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["name"] == "secret.npy"
    assert config["command"] == "pyrovae train secret.npy --epochs 1 --run-dir run"
    assert str(tmp_path) not in json.dumps(config)
    assert config["evaluation"]["split"] == "test"


def test_a_folder_that_is_there_is_left_alone(trained, folder):
    before = (folder / "README.md").read_bytes()
    (folder / "README.md").write_bytes(before + b"mine")
    with pytest.raises(InputError, match="exists already"):
        trained.save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == before + b"mine"
    Path("empty").mkdir()
    pyrovae.from_pretrained(trained.save_pretrained("empty"))


def test_what_cannot_be_written_is_not_there_at_all(trained, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left"):
        trained.save_pretrained("full")
    assert list(Path().iterdir()) == []


def test_a_preprocessing_that_cannot_be_named_is_refused(trained, monkeypatch):
    data = {**trained.config["data"], "preprocessing": None}
    monkeypatch.setitem(trained.config, "data", data)
    with pytest.raises(InputError, match="preprocessing"):
        trained.save_pretrained("none")


# ── Files of the user's own ──


@pytest.fixture
def own():
    cli.main(["new", "mine.py"])
    quick = ["--epochs", "1", "--build.latent-dim", "3", "--build.hidden", "8"]
    cli.main(["train", "mine.py", *quick, "--run-dir", "run"])
    return pyrovae.load("run")


def test_a_file_of_the_author_s_is_run_only_when_trusted(own):
    folder = own.save_pretrained("kept")
    config = json.loads((folder / "config.json").read_text())
    assert config["program"]["file"] == "mine.py"
    with pytest.raises(InputError, match=r"mine\.py, which is not run unasked.* trust_source"):
        pyrovae.from_pretrained(folder)
    again = pyrovae.from_pretrained(folder, trust_source=True)
    assert same(weights(again.program), weights(own.program))
    assert again.sample(2).x.shape == (1, 2, 1, 8, 8)
    assert "trust_source=True" in (folder / "README.md").read_text()


def test_a_file_that_has_changed_since_is_taken_from_the_run(own):
    text = Path("mine.py").read_text()
    Path("mine.py").write_text(text + CANARY)
    folder = own.save_pretrained("kept")
    kept = next(folder.glob("source/*/mine.py"))
    assert kept.read_text() == text
    kept.write_text(text + CANARY)
    with pytest.raises(InputError, match=r"mine.py .* has changed"):
        pyrovae.from_pretrained(folder, trust_source=True)
    assert not Path("canary").exists()


def test_a_part_out_of_a_file_comes_along():
    Path("wide.py").write_text(PART)
    words = ["--prior", "wide.py:Wide", "--epochs", "1", "--hidden", "8", "--latent-dim", "2"]
    cli.main(["train", *words, "--run-dir", "run"])
    folder = pyrovae.load("run").save_pretrained("kept")
    Path("wide.py").unlink()
    with pytest.raises(InputError, match=r"wide\.py"):
        pyrovae.from_pretrained(folder)
    again = pyrovae.from_pretrained(folder, trust_source=True)
    assert type(again.program.prior).__name__ == "Wide"


def test_a_file_of_the_reader_s_cannot_be_named(own):
    folder = own.save_pretrained("kept")
    Path("reader.py").write_text(Path("mine.py").read_text() + CANARY)
    digest = sha256(Path("reader.py").read_bytes()).hexdigest()
    (folder / "source" / digest[:8]).mkdir()
    shutil.copy("reader.py", folder / "source" / digest[:8])
    edit(folder, "program", "sha256", value=digest)
    paths = [str(Path("reader.py").resolve()), "../reader.py", "..", "a\\reader.py", "", 3, None]
    for path in paths:
        edit(folder, "program", "file", value=path)
        for trusted in (False, True):
            with pytest.raises(InputError, match="names the file"):
                pyrovae.from_pretrained(folder, trust_source=trusted)
    edit(folder, "program", "file", value="reader.py")
    edit(folder, "program", "sha256", value="../../..")
    with pytest.raises(InputError, match="names the file"):
        pyrovae.from_pretrained(folder, trust_source=True)
    assert not Path("canary").exists()


def test_a_preprocessing_of_the_reader_s_cannot_be_named(folder, own):
    file = Path("mine.py").resolve()
    described = {"file": str(file), "sha256": user_files.digest(file), "part": "Anything"}
    known_files.remember(file, "Anything", described["sha256"])
    file_before = set(sys.modules)
    edit(folder, "data", "preprocessing", value=described)
    with pytest.raises(InputError, match="names the file"):
        pyrovae.from_pretrained(folder)
    assert set(sys.modules) == file_before


def test_keeping_a_run_trusts_none_of_its_files(own, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    pyrovae.load("run", trust_source=True).save_pretrained("passed on")
    assert not (tmp_path / "state").exists()


def test_numbers_of_other_data_are_not_said_to_be_of_the_test_set(trained):
    other = trained.on(trained.splits["train"].raw(range(50)).x)
    other.evaluate(num_samples=5)
    other.save_pretrained("other")
    card = Path("other/README.md").read_text()
    assert "over 50 examples of other data, array" in card
    assert "test examples" not in card


def test_a_part_of_the_standard_library_cannot_be_named(folder):
    import subprocess

    file = Path(subprocess.__file__)
    digest = sha256(file.read_bytes()).hexdigest()
    part = {"part": "Popen", "file": str(file), "sha256": digest, "args": ["touch", "canary"]}
    edit(folder, "program", "prior", value=part)
    for trusted in (False, True):
        with pytest.raises(InputError, match="names the file"):
            pyrovae.from_pretrained(folder, trust_source=trusted)
    assert not Path("canary").exists()


# ── Tampering ──


def other_shape(tensors):
    return {**tensors, "decoder.net.layers.0.weight": torch.zeros(2, 2)}


def missing(tensors):
    return {k: v for k, v in tensors.items() if k != "decoder.net.layers.0.weight"}


def one_more(tensors):
    return {**tensors, "more": torch.zeros(1)}


def nan(tensors):
    return {**tensors, "decoder.net.layers.0.bias": torch.full((16,), torch.nan)}


def whole(tensors):
    return {**tensors, "decoder.net.layers.0.bias": torch.zeros(16, dtype=torch.int64)}


@pytest.mark.parametrize("change", [other_shape, missing, one_more, nan, whole])
def test_weights_that_do_not_fit_are_refused(folder, change):
    put_weights(folder, change(load_file(folder / "model.safetensors")))
    with pytest.raises(InputError, match=r"do not fit the program, first (decoder|more)"):
        pyrovae.from_pretrained(folder)


def test_weights_that_are_not_sealed_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(InputError, match="sha256"):
        pyrovae.from_pretrained(folder)


def test_a_pickle_is_not_read(folder):
    class Canary:
        def __reduce__(self):
            return Path.touch, (Path("canary"),)

    content = Path("weights.pt")
    torch.save({"a": Canary()}, content)
    for data in (content.read_bytes(), b"", b"\xff" * 64):
        (folder / "model.safetensors").write_bytes(data)
        edit(folder, "weights", "sha256", value=sha256(data).hexdigest())
        with pytest.raises(InputError, match="cannot be read"):
            pyrovae.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    shutil.copy(content, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read"):
        pyrovae.from_pretrained(folder)
    assert not Path("canary").exists()


DEEP = json.loads("[" * 400 + "]" * 400)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["format"], 2),
        (["program"], None),
        (["program", "part"], "os.system"),
        (["program", "part"], "Run"),
        (["program", "part"], ["VAE"]),
        (["program", "prior", "part"], "pathlib.Path"),
        (["program", "prior"], {"part": "StandardNormal"}),
        (["program", "prior"], {"same": ["x"]}),
        (["program", "prior"], 3),
        (["program", "prior", "latent_dim"], 10**15),
        (["program", "prior", "latent_dim"], "3"),
        (["program", "decoder", "net", "activation"], {"type": "Module"}),
        (["program", "decoder", "net", "hidden"], [-1]),
        (["program", "decoder", "net", "hidden"], DEEP),
        (["program"], {"function": "build"}),
        (["program"], {"part": "MLP", "in_shape": [1], "out_shape": [1]}),
        (["program", "decoder", "more"], 1),
        (["data"], []),
        (["data", "x_shape"], [1, 8, -8]),
        (["data", "x_shape"], ["touch", "canary"]),
        (["data", "x_shape"], []),
        (["data", "x_shape"], [True]),
        (["data", "images"], {"path": "/"}),
        (["data", "preprocessing"], None),
        (["data", "preprocessing"], {"part": "StandardNormal", "latent_dim": 2}),
        (["data", "preprocessing"], {"part": "Binarize", "mode": "never"}),
        (["weights"], "none"),
        (["environment"], 1),
        (["training"], 1),
    ],
)
def test_a_configuration_that_was_tampered_with_is_refused(folder, keys, value):
    pyrovae.from_pretrained(folder)
    edit(folder, *keys, value=value)
    with pytest.raises(InputError) as error:
        pyrovae.from_pretrained(folder)
    assert error.value.remedy
    assert not Path("canary").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\ud800", "null"])
def test_what_is_no_configuration_is_refused(folder, content):
    (folder / "config.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(InputError):
        pyrovae.from_pretrained(folder)


def test_what_is_no_folder_is_refused():
    Path("empty").mkdir()
    for name in ("empty", "nowhere", "/nowhere/at/all"):
        with pytest.raises(InputError, match="cannot be read"):
            pyrovae.from_pretrained(name)


# ── The hub, with nothing sent anywhere ──


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    library = pytest.importorskip("huggingface_hub")
    kept = tmp_path_factory.mktemp("hub")
    asked = []

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            asked.append((repo_id, private, exist_ok))
            return Url(f"https://hub/{repo_id}", repo_id)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            assert commit_message
            shutil.copytree(folder_path, kept / repo_id)

    class Url(str):
        def __new__(cls, url, repo_id):
            found = super().__new__(cls, url)
            found.repo_id = repo_id
            return found

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        if not (kept / repo_id).is_dir():
            raise FileNotFoundError(f"404: {repo_id}")
        return str(kept / repo_id)

    monkeypatch.setattr(library, "HfApi", Api)
    monkeypatch.setattr(library, "snapshot_download", snapshot_download)
    return SimpleNamespace(kept=kept, asked=asked)


def test_a_run_goes_to_the_hub_and_comes_back(hub, trained):
    assert trained.push_to_hub("kim/digits", private=True) == "https://hub/kim/digits"
    assert hub.asked == [("kim/digits", True, True)]
    names = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in (hub.kept / "kim/digits").iterdir()} == names
    again = pyrovae.from_pretrained("kim/digits", revision="v1")
    assert hub.asked[1] == ("kim/digits", "v1", [*pretrained.FILES])
    assert same(weights(again.program), weights(trained.program))


def test_a_folder_comes_before_the_hub(hub, trained):
    trained.save_pretrained("kim/digits")
    pyrovae.from_pretrained("kim/digits")
    assert hub.asked == []


def test_what_the_hub_does_not_have_is_refused(hub):
    with pytest.raises(InputError, match="404"):
        pyrovae.from_pretrained("kim/nothing")


def test_without_a_network_the_hub_is_not_asked(hub, trained, monkeypatch):
    monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(InputError, match=OFFLINE):
        pyrovae.from_pretrained("kim/digits")
    with pytest.raises(InputError, match=OFFLINE):
        trained.push_to_hub("kim/digits")
    assert hub.asked == []


def test_a_library_that_is_missing_is_named_with_its_extra(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (trained.push_to_hub, pyrovae.from_pretrained):
        with pytest.raises(InputError, match=r"pip install 'pyrovae\[hub\]'"):
            call("kim/digits")
    with pytest.raises(InputError, match=r"nowhere.*pyrovae\[more\]"):
        require("nowhere.at_all", "more")

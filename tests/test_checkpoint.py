"""Checkpoints: whole or ignored, never a pickle, never silently other weights."""

import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil

import pytest
import torch
from torch import nn

from pyrovae import checkpoint
from pyrovae.checkpoint import Checkpoint, load_newest, save
from pyrovae.errors import CheckpointError

# Most of these pass over a damaged checkpoint, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.* is used:UserWarning")

FILES = ("model.safetensors", "state.safetensors", "MANIFEST.json")


def trained(step):
    """A checkpoint after so many steps, with the state of a real optimizer."""
    torch.manual_seed(step)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(2):
        net(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "epoch": step // 2,
        "best": {"loss": 0.1 + step, "step": None, "improved": True, "name": "é"},
        "history": [1.5, math.inf, [torch.arange(3), {"deep": torch.tensor(2.5).double()}]],
        "nothing": {},
    }
    return Checkpoint(step, dict(net.state_dict()), state)


def same(one, other):
    """Whether two trees are equal, bit for bit; a tuple is stored as a list."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        keys = list(one) == list(other) if isinstance(other, dict) else False
        return keys and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def same_weights(one, other):
    """A file of tensors has an order of its own."""
    return same(dict(sorted(one.weights.items())), dict(sorted(other.weights.items())))


def equal(one, other):
    return one.step == other.step and same_weights(one, other) and same(one.state, other.state)


@pytest.fixture(scope="module")
def first():
    return trained(3)


@pytest.fixture(scope="module")
def second():
    return trained(7)


@pytest.fixture
def folder(tmp_path, first, second):
    """A folder with two checkpoints."""
    save(tmp_path, first)
    save(tmp_path, second)
    return tmp_path


def newest(folder):
    return max(folder.glob("step-*"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ── Round trips ──────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path, first):
    path = save(tmp_path, first)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    assert equal(load_newest(tmp_path), first)


def test_an_optimizer_continues_from_its_saved_state(tmp_path, first):
    save(tmp_path, first)
    found = load_newest(tmp_path)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.load_state_dict(found.weights)
    optimizer = torch.optim.Adam(net.parameters(), lr=1.0)
    optimizer.load_state_dict(found.state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert same(optimizer.state_dict(), first.state["optimizer"])


def test_tensors_that_share_memory_and_views_are_saved(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    shared = Checkpoint(1, {"a": base, "b": base, "c": base.T, "d": base[1]}, {"e": base.T})
    save(tmp_path, shared)
    assert equal(load_newest(tmp_path), shared)


def test_the_newest_is_read_by_number_and_the_last_two_are_kept(tmp_path, first):
    for step in (9, 10, 100):
        save(tmp_path, Checkpoint(step, first.weights, first.state))
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert load_newest(tmp_path).step == 100


def test_the_same_step_can_be_saved_again(folder, first):
    save(folder, Checkpoint(7, first.weights, first.state))
    assert equal(load_newest(folder), Checkpoint(7, first.weights, first.state))


def test_an_empty_or_missing_folder_says_so(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="There is no checkpoint"):
            load_newest(folder)


@pytest.mark.parametrize(
    "stray", ["step-", "step-x", "step-9.tmp", ".step-00000009.tmp", "latest", "step-²"]
)
def test_folders_of_other_names_are_ignored(folder, second, stray):
    (folder / stray).mkdir()
    assert equal(load_newest(folder), second)


def test_a_file_in_the_place_of_a_checkpoint_is_passed_over(folder, second):
    (folder / "step-00000009").write_text("no folder")
    assert equal(load_newest(folder), second)


# ── Damage ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, first, name):
    path = newest(folder) / name
    path.write_bytes(path.read_bytes()[:-1])
    assert equal(load_newest(folder), first)


def test_a_damaged_checkpoint_that_is_passed_over_is_named(folder):
    (newest(folder) / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"step-00000007 is damaged.*step-00000003 is used"):
        load_newest(folder)


def test_where_none_is_whole_the_error_names_the_newest_and_its_fault(folder):
    for path in folder.iterdir():
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000007.*model\.safetensors"):
        load_newest(folder)


def flip_bit(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path, draw):
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def extend(path, draw):
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 9)))


def zero_page(path, draw):
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def replace_by_noise(path, draw):
    path.write_bytes(draw.randbytes(draw.randrange(300)))


def swap_within(path, draw):
    other = path.parent / draw.choice(FILES)
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def take_from_another_step(path, draw):
    other = path.parent.parent / "step-00000003"
    path.write_bytes((other / path.name).read_bytes())


def remove(path, draw):
    path.unlink()


def make_a_folder(path, draw):
    path.unlink()
    path.mkdir()


def edit_number(path, draw):
    """One digit of the manifest, which holds the plain values of the state too."""
    path = path.parent / "MANIFEST.json"
    text = path.read_text()
    place = draw.choice([i for i, character in enumerate(text) if character.isdigit()])
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def edit_structure(path, draw):
    """Another value under a key of the sealed manifest, or another thing altogether."""
    path = path.parent / "MANIFEST.json"
    sealed = json.loads(path.read_text())
    odd = [None, 5, 1.5, True, [], {}, "", "null", ["x"], "\ud800"]
    choice = draw.randrange(3)
    if choice == 0:
        sealed = draw.choice(odd)
    elif choice == 1:
        sealed[draw.choice(list(sealed))] = draw.choice(odd)
    else:
        del sealed[draw.choice(list(sealed))]
    path.write_text(json.dumps(sealed))


def edit_and_seal_again(path, draw):
    """A manifest whose sha256 is right and whose content is not."""
    path = path.parent / "MANIFEST.json"
    manifest = json.loads(json.loads(path.read_text())["manifest"])
    odd = [None, 5, [], {}, "", {"tensor": "99"}, {"pairs": 3}, {"pairs": [[[], 1]]}, {"x": 1}]
    if draw.random() < 0.5:
        manifest[draw.choice(["files", "state"])] = draw.choice(odd)
    else:
        manifest["files"][draw.choice(list(manifest["files"]))] = draw.choice(odd)
    text = json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "manifest": text}))


# The cases of each kind; docs/reliability.md has the result of 910, which are 10,010 in all.
CASES = int(os.environ.get("PYROVAE_CASES", "40"))
HARMS = (
    flip_bit,
    truncate,
    extend,
    zero_page,
    replace_by_noise,
    swap_within,
    take_from_another_step,
    remove,
    make_a_folder,
    edit_number,
    edit_structure,
)


def content_or_error(folder):
    try:
        return load_newest(folder)
    except CheckpointError as error:
        return str(error)


@pytest.mark.parametrize("harm", HARMS)
def test_no_damage_goes_unseen(folder, first, second, harm):
    """In every seeded case: the step before, an error, or the very same content."""
    pristine = newest(folder)
    backup = folder.parent / f"{folder.name}-backup"
    shutil.copytree(pristine, backup)
    draw = random.Random(harm.__name__)
    for case in range(CASES):
        shutil.rmtree(pristine)
        shutil.copytree(backup, pristine)
        harm(pristine / draw.choice(FILES), draw)

        found = load_newest(folder)
        assert equal(found, first) or equal(found, second), case

        alone = folder.parent / f"{folder.name}-alone"
        shutil.copytree(pristine, alone / pristine.name)
        found = content_or_error(alone)
        assert pristine.name in found if isinstance(found, str) else equal(found, second), case
        shutil.rmtree(alone)


def test_a_manifest_sealed_again_over_nonsense_is_an_error_or_changes_no_weight(folder, second):
    pristine = newest(folder)
    original = (pristine / "MANIFEST.json").read_bytes()
    shutil.rmtree(folder / "step-00000003")
    draw = random.Random(0)
    for case in range(60):
        (pristine / "MANIFEST.json").write_bytes(original)
        edit_and_seal_again(pristine / "MANIFEST.json", draw)
        found = content_or_error(folder)
        assert isinstance(found, str) or same_weights(found, second), case


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sha256": "", "manifest": ' + "[" * 100_000])
def test_a_manifest_nested_without_end_is_damage(folder, first, text):
    (newest(folder) / "MANIFEST.json").write_text(text)
    assert equal(load_newest(folder), first)


# ── Writing ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("failing", FILES)
@pytest.mark.parametrize("written", [part / 16 for part in range(17)])
def test_a_full_disk_leaves_what_stood_before(folder, second, monkeypatch, failing, written):
    write = checkpoint._write_synced
    before = names(folder)

    def fail(path, content):
        if path.name == failing:
            write(path, content[: int(written * len(content))])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(checkpoint, "_write_synced", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(folder, trained(9))
    assert names(folder) == before
    assert equal(load_newest(folder), second)


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_failing_system_call_leaves_what_stood_before(folder, second, monkeypatch, call):
    before = names(folder)

    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(folder, trained(9))
    assert names(folder) == before
    assert equal(load_newest(folder), second)


def test_a_folder_left_by_a_killed_save_is_no_obstacle(folder):
    left = folder / ".step-00000009.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "stray").write_bytes(b"")
    path = save(folder, trained(9))
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    assert equal(load_newest(folder), trained(9))


def test_files_are_synced_whole_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(("fsync", os.path.basename(path), os.fstat(descriptor).st_size))
        fsync(descriptor)

    def record_rename(source, target):
        calls.append(("rename", os.path.basename(source), os.path.basename(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    path = save(tmp_path, trained(9))

    synced = [("fsync", name, (path / name).stat().st_size) for name in FILES]
    assert sorted(calls[:3]) == sorted(synced)
    assert calls[3] == ("rename", ".step-00000009.tmp", "step-00000009")
    assert [call[:2] for call in calls[4:]] == [("fsync", tmp_path.name)]


# ── No pickle ────────────────────────────────────────────────────────────────────────────────


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(canary, path):
    path.write_bytes(pickle.dumps(canary))


def torch_saved(canary, path):
    torch.save({"weight": torch.zeros(3), "canary": canary}, path)


def torch_saved_in_the_old_format(canary, path):
    torch.save({"canary": canary}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("write", [pickled, torch_saved, torch_saved_in_the_old_format])
def test_a_pickle_in_a_slot_is_refused_and_not_run(folder, first, write, name):
    canary = folder.parent / f"{folder.name}-canary"
    target = newest(folder) / name
    write(Canary(canary), target)
    if name != "MANIFEST.json":
        manifest_path = target.parent / "MANIFEST.json"
        manifest = json.loads(json.loads(manifest_path.read_text())["manifest"])
        manifest["files"][name]["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
        text = json.dumps(manifest)
        digest = hashlib.sha256(text.encode()).hexdigest()
        manifest_path.write_text(json.dumps({"sha256": digest, "manifest": text}))

    assert equal(load_newest(folder), first)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))  # noqa: S301
    assert canary.exists()

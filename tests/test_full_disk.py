"""A disk that is really full: what was saved stands, and with more room a training goes on."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from programs_for_tests import binary, same, weights

import pyrovae
from pyrovae import loop
from pyrovae.errors import CheckpointError

ROWS, EPOCHS = 100, 4


@pytest.fixture
def mounted(tmp_path):
    """Mounts a disk of so many kilobytes, where this process may."""
    disks = []

    def mount(kilobytes):
        disk = tmp_path / f"disk{len(disks)}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root can mount a disk to fill, on Linux")
        if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", str(disk)], check=True)


def vae():
    """A program whose checkpoint has about 220 KiB: 18,000 weights, and Adam's two moments."""
    torch.manual_seed(0)
    return pyrovae.VAE(
        prior=pyrovae.StandardNormal(2),
        decoder=pyrovae.BernoulliDecoder(pyrovae.MLP((2,), (6,), hidden=(1000,))),
        encoder=pyrovae.GaussianEncoder(pyrovae.MLP((6,), (4,), hidden=(1000,))),
    )


def train(path, epochs=EPOCHS):
    return pyrovae.fit(
        vae(),
        binary(ROWS),
        epochs=epochs,
        batch_size=25,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        run_dir=path,
        resume=True,
        progress=False,
    )


def steps_saved(path):
    return sorted(folder.name for folder in path.glob("checkpoints/step-*"))


@pytest.mark.parametrize("kilobytes", [4, 8, 40, 180, 260, 400, 500, 620, 1000])
def test_a_full_disk_keeps_what_was_saved_and_the_run_goes_on(
    kilobytes, mounted, tmp_path, monkeypatch
):
    """The last two checkpoints and a third in the making need about 660 KiB."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    path = mounted(kilobytes) / "run"
    expected = weights(train(tmp_path / "whole").program)
    if kilobytes >= 1000:
        assert same(weights(train(path).program), expected)
        return
    with pytest.raises(CheckpointError, match=r"No space left on device.*Free some space"):
        train(path)
    assert not list(path.glob("checkpoints/.*")), "what was not finished is gone"
    saved = steps_saved(path)
    assert bool(saved) == (kilobytes >= 260)
    if saved:
        found = pyrovae.load(path)
        assert all(value.isfinite().all() for value in weights(found.program).values())
        with pytest.raises(CheckpointError, match="No space left on device"):
            train(path)
        assert steps_saved(path)[-1] >= saved[-1]

    subprocess.run(["mount", "-o", "remount,size=4m", str(path.parent)], check=True)
    assert same(weights(train(path).program), expected)

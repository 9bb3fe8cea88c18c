"""What TensorBoard is given is what the run has."""

import io
import sys
import time

import numpy as np
import pytest
from PIL import Image
from programs_for_tests import binary, small_vae

import pyrovae
from pyrovae import tensorboard as ours
from pyrovae.errors import InputError
from pyrovae.tensorboard import TensorBoard

pytest.importorskip("tensorboard")
pytest.importorskip("graphviz")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def trained(path, board, **options):
    options = {"epochs": 3, "progress": False, "run_dir": path, **options}
    return pyrovae.fit(small_vae(), binary(), valid=binary(seed=1), on_epoch=board, **options)


def test_scalars_are_the_records(tmp_path):
    run = trained(tmp_path / "run", TensorBoard())
    found = read(tmp_path / "run" / "tensorboard")
    assert {"loss", "train_elbo", "valid_elbo", "kl"} <= set(found.Tags()["scalars"])
    assert not {"epoch", "step", "seconds"} & set(found.Tags()["scalars"])
    for name in found.Tags()["scalars"]:
        written = [(event.step, event.value) for event in found.Scalars(name)]
        expected = [(m["step"], pytest.approx(m[name], rel=1e-6)) for m in run.metrics]
        assert written == expected


def test_samples_are_those_of_the_run_at_that_time(tmp_path):
    pictures = []
    board = TensorBoard()

    def both(run):
        board(run)
        pictures.append(run.sample(16)._repr_png_())

    trained(tmp_path / "run", both)
    found = read(tmp_path / "run" / "tensorboard").Images("samples")
    assert [decoded(image.encoded_image_string) for image in found] == list(map(decoded, pictures))
    assert pictures[0] != pictures[-1]


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).tobytes()


def test_the_graph_shows_latents_and_data(tmp_path):
    run = trained(tmp_path / "run", TensorBoard(), epochs=1)
    source = ours._graph(run, "model").source
    assert "z -> x" in source
    assert "cluster_data" in source
    assert "x [" not in ours._graph(run, "guide").source


def test_without_the_program_of_graphviz_the_graph_is_text(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    trained(tmp_path / "run", TensorBoard(), epochs=1)
    found = read(tmp_path / "run" / "tensorboard")
    assert "model/text_summary" in found.Tags()["tensors"]
    assert b"z -> x" in found.Tensors("model/text_summary")[0].tensor_proto.string_val[0]


def test_a_resumed_run_goes_on_in_the_same_files(tmp_path):
    trained(tmp_path / "run", TensorBoard(), epochs=2)
    run = trained(tmp_path / "run", TensorBoard(), epochs=4, resume=True)
    found = read(tmp_path / "run" / "tensorboard")
    assert [event.step for event in found.Scalars("loss")] == [m["step"] for m in run.metrics]


def test_what_was_written_after_the_checkpoint_is_taken_back(tmp_path):
    for epochs in (3, 1):
        time.sleep(1.1)  # the names of the files, by which they are ordered, have whole seconds
        run = trained(None, TensorBoard(tmp_path), epochs=epochs)
    written = [event.step for event in read(tmp_path).Scalars("loss")]
    assert written == [m["step"] for m in run.metrics]


def test_no_samples_and_a_folder_of_ones_own(tmp_path):
    trained(None, TensorBoard(tmp_path / "board", samples=0), epochs=1)
    assert "samples" not in read(tmp_path / "board").Tags()["images"]


def test_an_autoencoder_has_curves_and_no_samples(tmp_path):
    vae = small_vae()
    program = pyrovae.Autoencoder(2, vae.decoder, vae.encoder)
    pyrovae.fit(program, binary(), epochs=1, progress=False, on_epoch=TensorBoard(tmp_path))
    found = read(tmp_path).Tags()
    assert "loss" in found["scalars"]
    assert "samples" not in found["images"]


def test_without_a_folder_it_says_so():
    with pytest.raises(InputError, match="no folder to write to"):
        trained(None, TensorBoard())


def test_fewer_than_no_samples_are_refused():
    with pytest.raises(InputError, match="samples is -1"):
        TensorBoard(samples=-1)


def test_without_tensorboard_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pyrovae\[tensorboard\]"):
        TensorBoard()

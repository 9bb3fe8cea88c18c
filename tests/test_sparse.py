"""Sparse counts: as their dense copies in every batch and number, from any file, or refused."""

import gzip
import re
import sys

import numpy as np
import pytest
import torch
from scipy import io, sparse

import pyrovae
from pyrovae import cli
from pyrovae.building import Choice, build_vae, default_decoder
from pyrovae.data import AsIs, Binarize, Examples, Standardize, as_examples, load_data
from pyrovae.data.sparse import SparseRows
from pyrovae.errors import InputError

FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


def counts(rows=40, columns=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(0.6, (rows, columns)).astype(np.int64)


def matrix(x=None, kind="csr"):
    return getattr(sparse, f"{kind}_array")(counts() if x is None else x)


def everything(examples):
    return examples.raw(range(len(examples))).x


# ── Rows ──


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_read_as_those_of_the_dense_matrix(kind):
    rows, dense = SparseRows.of(matrix(kind=kind), "x"), torch.from_numpy(counts()).float()
    some = torch.tensor([5, 0, 39, 5])
    assert rows.shape == (len(rows), rows.width) == dense.shape
    assert torch.equal(rows.index_select(0, some), dense[some])
    assert torch.equal(rows[some].index_select(0, torch.arange(4)), dense[some])
    assert [len(block) for block in rows.split(17)] == [17, 17, 6]
    assert torch.equal(torch.cat(list(rows.split(17))), dense)
    assert rows.numel() == dense.numel()
    assert len(rows.values) == np.count_nonzero(counts())


def test_moments_and_found_rows_are_those_of_the_dense_matrix():
    x = counts().astype(float)
    x[:, 3] = 0
    x[4, 2], x[9, 2] = np.nan, np.nan
    rows, dense = SparseRows.of(sparse.csr_array(x), "x"), torch.from_numpy(x)
    mean, scale = rows.moments()
    torch.testing.assert_close(mean, dense.nanmean(0))
    torch.testing.assert_close(scale, (dense - dense.nanmean(0)).square().nanmean(0).sqrt())
    found = rows.rows_with(rows.values.isnan())
    assert found.nonzero()[:, 0].tolist() == [4, 9]
    ours, theirs = Standardize.of(rows), Standardize.of(dense)
    torch.testing.assert_close((ours.mean, ours.scale), (theirs.mean, theirs.scale))


def test_entries_that_stand_twice_are_added_up_and_zeros_dropped():
    places = [1, 1, 0], [0, 2, 3]
    rows = SparseRows.of(sparse.csr_array(([1, 2, 0], *places), shape=(2, 3)), "x")
    assert rows.values.tolist() == [3.0]
    assert rows.index_select(0, torch.arange(2)).tolist() == [[0, 3, 0], [0, 0, 0]]


def test_the_matrix_that_was_given_stays_as_it_was():
    entries = np.array([2, 0], np.float32)
    given = sparse.csr_array((entries, [1, 0], [0, 1, 2]), shape=(2, 2))
    kept = given.data.copy()
    rows = SparseRows.of(given, "x")
    rows.values.fill_(7)
    np.testing.assert_array_equal(given.data, kept)


# ── Data ──


@pytest.mark.parametrize("kind", [*FORMATS, "torch csr", "torch csc", "torch coo"])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_all_that_is_sparse_loads_alike(kind):
    if kind.startswith("torch"):
        given = getattr(torch.from_numpy(counts()), f"to_sparse_{kind[-3:]}")()
    else:
        given = matrix(kind=kind)
    data, expected = load_data(given), load_data(matrix())
    assert (data.values, data.preprocessing, data.x_shape) == ("counts", AsIs(), (7,))
    assert data.fingerprint == expected.fingerprint
    for split in data.splits:
        assert torch.equal(everything(data.splits[split]), everything(expected.splits[split]))


def test_splits_batches_digests_and_labels_are_those_of_the_dense_array():
    y = np.arange(40)
    ours = load_data(matrix(), y)
    theirs = load_data(counts().astype(np.float32), y, preprocessing=AsIs())
    for split, examples in ours.splits.items():
        dense = theirs.splits[split]
        assert torch.equal(everything(examples), everything(dense))
        assert torch.equal(examples.y, dense.y)
        assert examples.digest() == dense.digest()
        assert not examples.streams
    batches = [s.train.shuffled(7, seed=1, epoch=2) for s in (ours, theirs)]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(ours.train.prepare(one).x, theirs.train.prepare(other).x)
    torch.testing.assert_close(ours.train.head(3).x, theirs.train.head(3).x)


def test_they_are_kept_sparse():
    data = load_data(sparse.random_array((200, 20_000), density=0.01, rng=0).ceil() * 3)
    assert all(isinstance(split._x, SparseRows) for split in data.splits.values())
    assert sum(split._x.nbytes for split in data.splits.values()) < 200 * 20_000 * 4 / 40
    assert everything(data.valid).shape == (20, 20_000)


@pytest.mark.parametrize(
    ("x", "values", "kind", "decoder"),
    [
        (counts(), "counts", AsIs, "negative-binomial"),
        (counts() > 0, "binary", AsIs, "bernoulli"),
        (counts() * 0, "binary", AsIs, "bernoulli"),
        (counts() * 0.3, "real", Standardize, "gaussian"),
        (-counts(), "real", Standardize, "gaussian"),
    ],
)
def test_defaults_follow_from_the_values(x, values, kind, decoder):
    data = load_data(sparse.csr_array(x))
    assert data.values == values
    assert isinstance(data.preprocessing, kind)
    assert default_decoder(data) == decoder


@pytest.mark.parametrize("given", [matrix(), torch.from_numpy(counts()).to_sparse_coo()])
def test_examples_take_what_is_sparse(given):
    y = torch.arange(40)
    examples = Examples(given, y)
    assert torch.equal(everything(examples), torch.from_numpy(counts()).float())
    assert torch.equal(examples.raw([7, 3]).y, torch.tensor([7, 3]))
    with pytest.raises(InputError, match="40 examples and 3 labels"):
        Examples(given, y[:3])


def test_other_fingerprints_for_other_values_and_other_places():
    x = counts()
    x[:2] = 0
    aside, below, larger = x.copy(), x.copy(), x.copy()
    x[0, 0] = aside[0, 1] = below[1, 0] = 5
    larger[0, 0] = 6
    found = {load_data(sparse.csr_array(a)).fingerprint for a in (x, aside, below, larger)}
    assert len(found) == 4


def test_standardised_sparse_data_have_moments_zero_and_one():
    data = load_data(matrix(counts(500))).standardized()
    x = data.train.head(400).x
    torch.testing.assert_close(x.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(7), atol=1e-5, rtol=0)
    assert data.valid.preprocessing is data.test.preprocessing is data.preprocessing


def test_they_are_binarised_where_that_is_asked_for():
    data = load_data(matrix() / counts().max(), binarize="static")
    assert isinstance(data.preprocessing, Binarize)
    first = data.train.prepare(data.train.raw([3, 1])).x
    assert torch.equal(first, data.train.head(4).x[[3, 1]])
    with pytest.raises(InputError, match="no grey scale"):
        load_data(matrix(), binarize="static")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.data.__setitem__(0, np.nan), r"NaN.*example 3 \(1 of 40"),
        (lambda m: m.data.__setitem__(0, np.inf), "infinite.*example 3"),
        (lambda m: m.data.__setitem__(0, 1e300), "overflowing.*example 3"),
        (lambda m: m.indices.__setitem__(0, 99), "damaged"),
        (lambda m: m.indices.__setitem__(0, -1), "damaged"),
        (lambda m: m.indptr.__setitem__(7, 999), "damaged"),
    ],
)
def test_what_is_wrong_with_a_matrix_is_said(change, words):
    x = counts().astype(float)
    x[:3], x[3, 0] = 0, 1
    broken = sparse.csr_array(x)
    change(broken)
    with pytest.raises(InputError, match=words):
        load_data(broken)
    with pytest.raises(InputError, match=words):
        as_examples(broken, "train")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (matrix() * 1j, "complex"),
        (matrix(np.zeros((0, 4))), "shape"),
        (matrix(np.zeros((4, 0))), "shape"),
        (sparse.coo_array(np.ones(30)), "shape"),
        (matrix(counts(5)), "too few"),
    ],
)
def test_unusable_matrices_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        load_data(given)


def test_a_nan_is_a_missing_entry_where_that_is_said():
    x = counts().astype(float)
    x[3, 2] = np.nan
    data = load_data(sparse.csr_array(x), missing=True)
    assert sum(int(everything(s).isnan().sum()) for s in data.splits.values()) == 1
    with pytest.raises(InputError, match="no value at all"):
        load_data(sparse.csr_array(np.full((30, 2), np.nan)), missing=True)


def test_numbers_of_a_program_are_those_of_the_dense_array():
    torch.manual_seed(0)
    data = load_data(matrix())
    vae = build_vae(data, decoder=Choice("poisson"), latent_dim=2, hidden=8).double()
    dense = torch.from_numpy(counts()).double()
    found = [pyrovae.evaluate(vae, x, num_samples=5).elbo for x in (matrix(), dense)]
    assert torch.equal(*found)


# ── Files ──


def write_h5ad(path, x, obs=None):
    anndata = pytest.importorskip("anndata")
    import pandas as pd

    made = anndata.AnnData(x)
    for name, values in (obs or {}).items():
        made.obs[name] = pd.Categorical(values) if isinstance(values[0], str) else values
    made.write_h5ad(path)


def write(path, kind="csr"):
    if path.suffix == ".npz":
        sparse.save_npz(path, matrix(kind=kind))
    elif path.suffix == ".h5ad":
        write_h5ad(path, matrix(kind=kind).astype(np.float32))
    else:
        io.mmwrite(path, matrix(kind=kind))
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("c.npz", kind) for kind in ("csr", "csc", "coo", "bsr", "dia")],
        ("c.mtx", "csr"),
        ("c.h5ad", "csr"),
        ("c.h5ad", "csc"),
    ],
)
def test_files_load_as_what_was_written(tmp_path, name, kind):
    data, expected = load_data(write(tmp_path / name, kind)), load_data(matrix())
    assert data.values == "counts"
    assert torch.equal(everything(data.test), everything(expected.test))
    assert data.fingerprint == expected.fingerprint


def test_examples_keep_the_names_of_their_file(tmp_path):
    import pandas as pd

    anndata = pytest.importorskip("anndata")
    names = [f"cell {row}" for row in range(40)]
    x = matrix().astype(np.float32)
    anndata.AnnData(x, obs=pd.DataFrame(index=names)).write_h5ad(tmp_path / "c.h5ad")
    data = load_data(tmp_path / "c.h5ad")
    for split in data.splits.values():
        rows = [names.index(name) for name in split.names.tolist()]
        assert np.array_equal(everything(split).numpy(), x.toarray()[rows])


def test_a_file_of_text_may_be_compressed(tmp_path):
    text = write(tmp_path / "c.mtx").read_bytes()
    (tmp_path / "c.mtx.gz").write_bytes(gzip.compress(text))
    (tmp_path / "cut.mtx.gz").write_bytes(gzip.compress(text)[:40])
    for name in ("C.MTX", "C.MTX.GZ"):
        (tmp_path / name).write_bytes((tmp_path / name.lower()).read_bytes())
    for name in ("c.mtx.gz", "C.MTX", "C.MTX.GZ"):
        assert load_data(tmp_path / name).fingerprint == load_data(matrix()).fingerprint
    with pytest.raises(InputError, match=r"cut\.mtx\.gz cannot be read"):
        load_data(tmp_path / "cut.mtx.gz")


def test_dense_files_of_counts_are_counts(tmp_path):
    write_h5ad(tmp_path / "c.h5ad", counts().astype(np.float32))
    io.mmwrite(tmp_path / "c.mtx", counts())
    for name in ("c.h5ad", "c.mtx"):
        assert load_data(tmp_path / name).fingerprint == load_data(matrix()).fingerprint


def test_compressed_rows_without_a_word_of_their_format(tmp_path):
    rows = matrix()
    parts = {"data": rows.data, "indices": rows.indices.astype(np.uint16), "indptr": rows.indptr}
    np.savez(tmp_path / "c.npz", **parts, shape=rows.shape, labels=np.arange(40))
    data = load_data(tmp_path / "c.npz")
    assert data.fingerprint == load_data(matrix()).fingerprint
    assert torch.equal(data.test.y, load_data(matrix(), np.arange(40)).test.y)


@pytest.mark.parametrize(
    ("obs", "labelled"),
    [
        ({"kind": ["b", "a"] * 20}, True),
        ({"kind": ["b", "a"] * 20, "size": list(range(40))}, True),
        ({"kind": ["b", "a"] * 20, "batch": ["x", "y"] * 20}, False),
        ({"size": list(range(40))}, False),
    ],
)
def test_the_only_categories_of_cells_are_their_labels(tmp_path, obs, labelled):
    write_h5ad(tmp_path / "c.h5ad", matrix().astype(np.float32), obs)
    data = load_data(tmp_path / "c.h5ad")
    assert (data.train.y is not None) == labelled
    if labelled:
        expected = load_data(matrix(), np.array([1, 0] * 20)).train.y
        assert torch.equal(data.train.y, expected)


def test_without_anndata_it_is_said_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "c.h5ad").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(InputError, match=re.escape("pip install 'pyrovae[anndata]'")):
        load_data(tmp_path / "c.h5ad")


def damaged(tmp_path):
    """Files that are not what they say."""
    rows = matrix()
    good = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr}
    shape, csr = np.array(rows.shape), np.array("csr")
    archives = {
        "outside": {**good, "indices": rows.indices + 99, "shape": shape, "format": csr},
        "negative": {**good, "indices": rows.indices - 5, "shape": shape, "format": csr},
        "starts": {**good, "indptr": rows.indptr[::-1], "shape": shape, "format": csr},
        "short": {**good, "indptr": rows.indptr[:-3], "shape": shape},
        "lacking": {"data": rows.data, "shape": shape, "format": csr},
        "lacking2": {"data": rows.data, "indptr": rows.indptr, "shape": shape},
        "word": {**good, "shape": shape, "format": np.array("os.system")},
        "objects": {**good, "shape": shape, "format": np.array([print], object)},
        "flat": {**good, "shape": np.array([280]), "format": csr},
        "below": {**good, "shape": -shape, "format": csr},
    }
    for name, arrays in archives.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    text = write(tmp_path / "good.mtx").read_text()
    (tmp_path / "cut.mtx").write_text(text[: len(text) // 2])
    (tmp_path / "no_matrix.mtx").write_text("not a matrix\n")
    (tmp_path / "empty.mtx").write_text("")
    (tmp_path / "outside.mtx").write_text(text.replace("\n1 ", "\n99 ", 1))
    (tmp_path / "pickle.h5ad").write_bytes(b"\x80\x04.")
    cells = write(tmp_path / "cells.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(cells[: len(cells) // 2])
    for name in ("good.mtx", "cells.h5ad"):
        (tmp_path / name).unlink()
    return sorted(tmp_path.iterdir())


def test_damaged_files_are_refused_in_one_sentence(tmp_path):
    pytest.importorskip("anndata")
    files = damaged(tmp_path)
    assert len(files) == 16
    for path in files:
        with pytest.raises(InputError, match=path.name) as found:
            load_data(path)
        assert "\n" not in str(found.value), path


def test_an_h5ad_file_without_x_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("anndata")
    with h5py.File(tmp_path / "c.h5ad", "w") as file:
        file["y"] = 1
    with pytest.raises(InputError, match=r"c\.h5ad cannot be read"):
        load_data(tmp_path / "c.h5ad")


@pytest.mark.parametrize("name", ["no.mtx", "no.mtx.gz", "no.h5ad", "no.npz"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(InputError, match="There is no file"):
        load_data(name)


# ── The command line ──


@pytest.fixture
def quick(tmp_path, monkeypatch):
    from pyrovae.cli import training

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pyrovae"])
    monkeypatch.setattr(training, "FINAL_SAMPLES", 10)
    return ["--epochs", "2", "--hidden", "8", "--latent-dim", "2"]


def test_a_file_of_counts_is_trained_measured_encoded_and_gone_on_with(tmp_path, quick, capsys):
    write(tmp_path / "cells.npz")
    write(tmp_path / "others.mtx")
    cli.main(["train", "cells.npz", *quick, "--run-dir", "run"])
    said = capsys.readouterr().out
    assert "cells.npz, 7, counts values, as they are" in said
    assert "negative-binomial decoder" in said
    run = pyrovae.load("run")
    assert run.config["data"]["source"] == str(tmp_path / "cells.npz")
    for words in (
        ["evaluate", "run", "--num-samples", "5"],
        ["encode", "run"],
        ["encode", "run", "--data", "others.mtx"],
        ["sample", "run", "--count", "4"],
        ["resume", "run", "--epochs", "3"],
    ):
        cli.main(words)
    assert np.load("run/encode/test.npz")["z"].shape == (4, 2)
    assert np.load("run/encode/others.npz")["z"].shape == (40, 2)
    elbo = run.on("others.mtx").evaluate(num_samples=5).elbo
    assert elbo.shape == (40,)


def test_counts_are_standardised_for_a_density(tmp_path, quick, capsys):
    write(tmp_path / "cells.npz")
    cli.main(["train", "cells.npz", *quick, "--decoder", "gaussian", "--run-dir", "run"])
    assert "counts values, standardised" in capsys.readouterr().out
    before, after = pyrovae.load("run").preprocessing, load_data(matrix()).standardized()
    torch.testing.assert_close(before.mean, after.preprocessing.mean)


def test_fit_and_load_take_a_matrix(tmp_path):
    data = load_data(matrix())
    vae = build_vae(data, latent_dim=2, hidden=8)
    pyrovae.fit(vae, data, epochs=1, progress=False, run_dir=tmp_path / "run")
    run = pyrovae.load(tmp_path / "run", data=matrix())
    assert torch.equal(everything(run.splits["test"]), everything(data.test))
    with pytest.raises(InputError, match="not those that the run was trained on"):
        pyrovae.load(tmp_path / "run", data=matrix(counts(seed=1)))
    bare = pyrovae.fit(vae, matrix(), epochs=1, progress=False)
    assert (
        bare.config["data"]["contents"]["train"]["sha256"]
        == Examples(torch.from_numpy(counts()).float()).digest()
    )

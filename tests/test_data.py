"""Sources, splits and examples: what is read, what is refused, and what noise it gets."""

import gzip
import struct
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae
from pyrovae.data import (
    AsIs,
    Binarize,
    Dequantize,
    Examples,
    Standardize,
    as_examples,
    load_data,
)
from pyrovae.data.masked import nan_where_masked
from pyrovae.data.raw import SPLITS
from pyrovae.errors import InputError


def grey(count=30, shape=(6, 5), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


# ── Defaults that follow from the data ──


@pytest.mark.parametrize(
    ("array", "values", "preprocessing", "shape"),
    [
        (grey(), "grey", Dequantize, (1, 6, 5)),
        (grey(shape=(6, 5, 3)), "grey", Dequantize, (3, 6, 5)),
        (grey(shape=(3, 6, 5)), "grey", Dequantize, (3, 6, 5)),
        (grey() > 127, "binary", AsIs, (1, 6, 5)),
        ((grey() > 127).astype(np.int64), "binary", AsIs, (1, 6, 5)),
        ((grey() / 255).astype(np.float64), "unit", AsIs, (1, 6, 5)),
        (np.random.default_rng(0).normal(3, 2, (30, 7)), "real", Standardize, (7,)),
        (grey(shape=(7,)), "real", Standardize, (7,)),
    ],
)
def test_defaults_follow_from_the_data(array, values, preprocessing, shape):
    data = load_data(array)
    assert data.values == values
    assert isinstance(data.preprocessing, preprocessing)
    assert data.x_shape == shape
    assert (len(data.train), len(data.valid), len(data.test)) == (24, 3, 3)


def test_splits_share_no_example_and_are_the_same_every_time():
    array = np.arange(100.0)[:, None] * np.ones((1, 2))
    found = [load_data(array).splits for _ in range(2)]
    rows = [
        {name: split.raw(range(len(split))).x[:, 0].tolist() for name, split in splits.items()}
        for splits in found
    ]
    assert rows[0] == rows[1]
    assert sorted(chain(*rows[0].values())) == sorted(array[:, 0])


def test_labels_stay_with_their_examples():
    array = np.arange(100.0)[:, None] * np.ones((1, 2))
    data = load_data(array, np.arange(100))
    for split in data.splits.values():
        raw = split.raw(range(len(split)))
        assert torch.equal(raw.x[:, 0].long(), raw.y)


def test_standardised_training_data_have_moments_zero_and_one():
    data = load_data(np.random.default_rng(0).normal(3, 2, (1000, 4)))
    x = data.train.head(800).x
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_digits_are_the_embedded_default():
    data = load_data("digits")
    assert data.preprocessing == Binarize("dynamic", 16)
    assert data.train.y is not None


# ── Noise ──


def test_dynamic_binarisation_is_redrawn_in_training_and_fixed_elsewhere():
    data = load_data(grey(count=200), binarize="dynamic")
    raw = data.train.raw(range(50))
    assert not torch.equal(data.train.prepare(raw).x, data.train.prepare(raw).x)
    assert torch.equal(data.valid.head(20).x, data.valid.head(20).x)


def test_static_binarisation_is_drawn_once():
    data = load_data(grey(count=200), binarize="static")
    rows = torch.tensor([5, 3, 8])
    first = data.train.prepare(data.train.raw(rows)).x
    assert torch.equal(first, data.train.prepare(data.train.raw(rows)).x)
    assert torch.equal(first, data.train.head(10).x[rows])


def test_binarisation_is_bernoulli_of_the_grey_value():
    image = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 16, 16).repeat(4000, 1, 1)
    x = Examples(image[:, None], preprocessing=Binarize("dynamic")).head(4000).x
    error = (x.mean((0, 1)).flatten() - torch.arange(256) / 255).abs().max()
    assert x[:, 0, 0, 0].sum() == 0
    assert x[:, 0, 15, 15].sum() == 4000
    assert error < 5 * 0.5 / 4000**0.5


def test_held_out_noise_does_not_depend_on_batches_or_limits():
    valid = load_data(grey(count=300), binarize="dynamic").valid
    whole = torch.cat([batch.x for batch in valid.in_order(7)])
    assert torch.equal(whole, torch.cat([batch.x for batch in valid.in_order(30)]))
    assert torch.equal(whole[:11], torch.cat([b.x for b in valid.in_order(4, limit=11)]))


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    train = Examples(torch.arange(100.0)[:, None])

    def order(**key):
        return torch.cat([raw.rows for raw in train.shuffled(7, **key)]).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert sorted(order(seed=1, epoch=2)) == list(range(100))
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3) != order(seed=2, epoch=3)


# ── Files ──


def test_npy_and_npz_files(tmp_path):
    x, y = grey(), np.arange(30)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x=x, y=y)
    np.savez(tmp_path / "c.npz", train=x, test=x[:7], test_labels=y[:7])
    assert len(load_data(tmp_path / "a.npy").train) == 24
    assert load_data(str(tmp_path / "b.npz")).train.y is not None
    own = load_data(tmp_path / "c.npz")
    assert (len(own.train), len(own.valid), len(own.test)) == (27, 3, 7)
    assert own.test.y.tolist() == list(range(7))


def write_idx(path, array, compress):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "."),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("kmnist", "KMNIST"),
    ],
)
def test_raw_idx_files_are_used_as_they_lie(tmp_path, name, folder, compress):
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    suffix = ".gz" if compress else ""
    for part, count in (("train", 60), ("t10k", 20)):
        write_idx(place / f"{part}-images-idx3-ubyte{suffix}", grey(count), compress)
        labels = np.arange(count, dtype=np.uint8)
        write_idx(place / f"{part}-labels-idx1-ubyte{suffix}", labels, compress)
    data = load_data(name, data_dir=tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (50, 10, 20)
    assert data.valid.y.tolist() == list(range(50, 60))
    assert torch.equal(data.train.raw([3]).x[0, 0], torch.from_numpy(grey(60)[3]))


def test_amat_files_and_the_packed_archive_agree(tmp_path):
    bits = {s: (grey(4, (28, 28), seed=i) > 127).astype(np.uint8) for i, s in enumerate(SPLITS)}
    packed = {f"{s}_packed": np.packbits(b.reshape(4, -1), axis=1) for s, b in bits.items()}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "a" / "binarized_mnist_larochelle.npz", shape=np.array([28, 28]), **packed)
    for split, rows in bits.items():
        np.savetxt(tmp_path / "b" / f"binarized_mnist_{split}.amat", rows.reshape(4, -1), fmt="%d")
    one, two = (load_data("binarized-mnist", data_dir=tmp_path / d) for d in "ab")
    assert one.values == two.values == "binary"
    for split in SPLITS:
        expected = torch.from_numpy(bits[split]).float()[:, None]
        assert torch.equal(one.splits[split].head(4).x, expected)
        assert torch.equal(two.splits[split].head(4).x, expected)


def test_the_real_sets(data_dir):
    mnist = load_data("mnist", data_dir=data_dir)
    assert [len(split) for split in mnist.splits.values()] == [50_000, 10_000, 10_000]
    assert mnist.train.y[:5].tolist() == [5, 0, 4, 1, 9]
    larochelle = load_data("binarized-mnist", data_dir=data_dir)
    assert [len(split) for split in larochelle.splits.values()] == [50_000, 10_000, 10_000]
    faces = load_data("frey-faces", data_dir=data_dir)
    assert faces.x_shape == (1, 28, 20)
    assert [len(split) for split in faces.splits.values()] == [1565, 200, 200]


# ── Bad input: one sentence of cause, one of remedy ──


def with_nan(dtype=np.float32):
    array = np.zeros((30, 4), dtype)
    array[17, 2] = np.nan
    return array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 4)), "empty"),
        (np.zeros((4, 0)), "empty"),
        (np.zeros(4), "shape"),
        (np.zeros((3, 2, 2, 2, 2)), "shape"),
        (with_nan(), "example 17"),
        (with_nan(np.float64), "example 17"),
        (np.full((30, 4), 1e300), "overflow"),
        (np.full((30, 4), np.inf), "infinite"),
        (np.zeros((30, 4), complex), "complex"),
        (np.array([["a", "b"]] * 30), "dtype"),
        (np.zeros((30, 4), object), "object"),
        (np.zeros((5, 4)), "too few"),
        (np.zeros((30, 3, 5, 3)), "channels"),
        (np.zeros((30, 7, 5, 9)), "channels"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_unusable_arrays_are_refused(array, words):
    with pytest.raises(InputError, match=words):
        load_data(array)


# ── Missing entries ──


def test_missing_entries_are_let_through_where_the_user_says_so():
    array = np.random.default_rng(0).normal(3, 2, (200, 4)).astype(np.float32)
    array[::3, 1] = np.nan
    with pytest.raises(InputError, match=r"example 0 \(67 of 200.*missing=True"):
        load_data(array)
    data = load_data(array, missing=True)
    assert sum(int(s.head(200).x.isnan().sum()) for s in data.splits.values()) == 67
    assert all(split.missing and split.to(torch.device("cpu")).missing for split in [data.train])


class Table:
    """A table as pandas has it: its items are columns, its array is of rows."""

    def __array__(self, dtype=None, copy=None):
        return np.zeros((5, 3), dtype)

    def __len__(self):
        return 5

    def __getitem__(self, column):
        return np.zeros(5)


@pytest.mark.parametrize("given", [np.zeros((5, 3)), Table()])
def test_examples_of_an_array_or_a_table_are_refused_rather_than_read_by_items(given):
    with pytest.raises(InputError, match=r"The train data are a (ndarray|Table)\. Give a tensor"):
        Examples(given)


@pytest.mark.parametrize("make", [Examples, lambda x: pyrovae.data.as_examples(x, "train")])
def test_a_tensor_with_nan_is_refused_with_what_to_say_of_it(make):
    x = torch.zeros(30, 4)
    x[17, 2] = torch.nan
    with pytest.raises(InputError, match=r"train data.*example 17.*Examples, missing=True"):
        make(x)


def test_examples_with_missing_entries_are_taken_as_they_stand():
    x = torch.zeros(30, 4)
    x[17, 2] = torch.nan
    examples = Examples(x, missing=True)
    assert pyrovae.data.as_examples(examples, "test") is examples
    assert torch.equal(examples.head(30).x.isnan(), x.isnan())


@pytest.mark.parametrize(
    "load",
    [lambda x: load_data(x, missing=True), lambda x: Examples(torch.as_tensor(x), missing=True)],
)
def test_infinity_is_never_missing_and_something_is_observed(load):
    with pytest.raises(InputError, match=r"infinite.*example 4"):
        load(np.where(np.arange(30)[:, None] == 4, np.inf, np.full((30, 3), np.nan)))
    with pytest.raises(InputError, match="no value at all"):
        load(np.full((30, 3), np.nan))


@pytest.mark.parametrize(
    ("array", "values", "preprocessing"),
    [
        ((grey() > 127).astype(float), "binary", AsIs),
        (grey() / 255, "unit", AsIs),
        (np.random.default_rng(0).normal(3, 2, (30, 7)), "real", Standardize),
    ],
)
def test_defaults_follow_from_what_was_observed(array, values, preprocessing):
    array[np.random.default_rng(1).random(array.shape) < 0.2] = np.nan
    data = load_data(array, missing=True)
    assert (data.values, type(data.preprocessing)) == (values, preprocessing)


@pytest.mark.parametrize("mode", ["threshold", "static", "dynamic"])
def test_a_missing_pixel_stays_missing_when_others_are_binarised(mode):
    array = grey().astype(float) / 255
    array[:, 2, 3] = np.nan
    train = load_data(array, binarize=mode, missing=True).train
    raw = train.raw(range(20))
    for x in (train.head(20).x, train.prepare(raw).x):
        assert torch.equal(x.isnan(), raw.x.isnan())
        assert ((x == 0) | (x == 1) | raw.x.isnan()).all()


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00v\x00{'descr': '<f"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_unreadable_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.np.*cannot be read"):
        load_data(path)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    np.save(tmp_path / "evil.npy", np.array([Canary()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        load_data(tmp_path / "evil.npy")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minst", "neither a named data set"),
        ("missing.npy", "no file"),
        ("frey-faces", "no automatic source"),
    ],
)
def test_missing_data_say_what_would_work(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        load_data(name, data_dir=tmp_path)


def test_a_truncated_idx_file_is_named(tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x03\x00\x00\x00\x05")
    with pytest.raises(InputError, match="train-images-idx3-ubyte cannot be read"):
        load_data("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("mode", ["dynamic", "sometimes"])
def test_binarising_what_has_no_grey_scale_is_refused(mode):
    with pytest.raises(InputError, match="binaris"):
        load_data(np.random.default_rng(0).normal(size=(30, 4)), binarize=mode)


def test_labels_must_be_one_for_each_example():
    with pytest.raises(InputError, match="30 examples and 4 labels"):
        Examples(torch.zeros(30, 2), torch.zeros(4))


def test_public_names_are_listed_once_and_exist():
    assert sorted(pyrovae._HOME) == sorted(pyrovae.__all__)
    for name in pyrovae.__all__:
        assert getattr(pyrovae, name) is not None


def test_labels_that_are_no_tensor_are_refused():
    with pytest.raises(InputError, match=r"are a list.*torch\.as_tensor"):
        Examples(torch.zeros(2, 3), [0, 1])


@pytest.mark.parametrize(
    "make", [np.ma.masked_array, lambda x, mask: [*np.where(mask, np.nan, x)]]
)
def test_what_is_masked_is_missing(make):
    x, mask = np.arange(60.0).reshape(20, 3), np.zeros((20, 3), dtype=bool)
    mask[4, 1] = True
    with pytest.raises(InputError, match="example 4"):
        as_examples(make(x, mask), "train")
    with pytest.raises(InputError, match="example 4"):
        load_data(make(x, mask))
    data = load_data(make(x, mask), missing=True)
    batches = chain(*(split.in_order(9) for split in data.splits.values()))
    assert sum(int(batch.x.isnan().sum()) for batch in batches) == 1


def test_a_masked_array_of_which_nothing_is_masked_keeps_its_values():
    whole = np.ma.masked_array(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert as_examples(whole, "train").raw([0, 1]).x.tolist() == [[0, 1, 2], [3, 4, 5]]
    some = np.ma.masked_equal(np.arange(6).reshape(2, 3), 4)
    assert np.isnan(nan_where_masked(some)).tolist() == [[False] * 3, [False, True, False]]


def test_a_list_of_tensors_of_one_shape_is_a_tensor():
    x = torch.rand(5, 4, 2)
    assert torch.equal(as_examples(list(x), "train").raw([3]).x[0], x[3])
    assert torch.equal(as_examples(tuple(x), "train").raw([3]).x[0], x[3])


@pytest.mark.parametrize("given", [(np.zeros((20, 3)), np.zeros(20)), [[1.0], [1.0, 2.0]]])
def test_a_tuple_of_data_and_labels_is_refused_in_words(given):
    with pytest.raises(InputError, match=r"that is no array.*load_data\(x, y\)"):
        load_data(given)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.arange(150), "30 examples and 150 labels"),
        (np.arange(5), "30 examples and 5 labels"),
        (np.linspace(0, 1, 30), "integer"),
        (np.zeros((30, 2), int), "integer"),
        (np.array(["a"] * 30), "integer"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(y, words):
    with pytest.raises(InputError, match=words):
        load_data(grey(), y)


def test_data_of_other_units_are_refused_by_a_runs_preprocessing():
    wide = np.arange(256, dtype=np.uint8).repeat(4).reshape(64, 4, 4)
    with pytest.raises(InputError, match=r"from 0 to 255.*from 0 to 16"):
        load_data(wide, preprocessing=Binarize("dynamic", 16))
    with pytest.raises(InputError, match="from -3"):
        load_data(np.full((30, 4), -3.0), preprocessing=Binarize("dynamic", 1.0))


def test_flattened_grey_images_binarise_too():
    assert load_data(np.random.default_rng(0).random((30, 9)), binarize="static").train
    assert load_data(grey(shape=(9,)), binarize="dynamic").preprocessing.maximum == 255


@pytest.mark.parametrize("columns", [range(3), ["a", "b", "c"]])
def test_a_table_of_pandas_is_read_by_its_rows(columns):
    values = np.arange(9.0, dtype=np.float32).reshape(3, 3)
    table = pd.DataFrame(values, columns=columns, index=[2, 0, 1])

    assert torch.equal(as_examples(table, "train").head(3).x, torch.as_tensor(values))
    assert torch.equal(
        as_examples(table[columns[0]], "train").head(3).x, torch.tensor(values[:, 0])
    )


def test_a_single_number_is_no_data():
    with pytest.raises(InputError, match="a single number"):
        as_examples(torch.tensor(3.0), "train")


def test_a_list_of_tables_is_an_array():
    table = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "b"])
    assert as_examples([table] * 4, "train").x_shape == (3, 2)

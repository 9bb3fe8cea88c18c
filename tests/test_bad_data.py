"""Whatever the data: they are refused by name before the first step, or trained on and finite.

`PYROVAE_CASES=2500 pytest tests/test_bad_data.py` runs as many cases as docs/reliability.md says.
"""

import math
import os
import warnings
from functools import partial

import numpy as np
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import pyrovae
from pyrovae import catalogue
from pyrovae.building import Choice, build_vae, values_of
from pyrovae.data import AsIs
from pyrovae.errors import InputError, NonFiniteError

CASES = int(os.environ.get("PYROVAE_CASES", "60"))
USUAL = [(5,), (6, 5), (1, 6, 5), (3, 6, 5)]
SHAPES = [
    *(3 * USUAL),
    (),
    (0,),
    (1,),
    (5,),
    (6, 5),
    (1, 6, 5),
    (6, 5, 3),
    (3, 6, 5),
    (2, 6, 5),
    (2, 2, 3, 4),
]
DTYPES = ["bool", "uint8", "int8", "int16", "int64", "uint64", "float16", "float32", "float64"]
ODD_DTYPES = ["complex64", "object", "U3", "datetime64[s]"]
FILLS = {
    "grey": lambda rng, shape: rng.integers(0, 256, shape),
    "bits": lambda rng, shape: rng.integers(0, 2, shape),
    "unit": lambda rng, shape: rng.random(shape),
    "signed unit": lambda rng, shape: rng.uniform(-1, 1, shape),
    "normal": lambda rng, shape: rng.normal(3, 2, shape),
    "counts": lambda rng, shape: rng.poisson(2, shape),
    "negative": lambda rng, shape: -rng.integers(1, 50, shape),
    "constant": lambda rng, shape: np.full(shape, 7.0),
    "huge": lambda rng, shape: 1e30 * rng.normal(size=shape),
    "past float32": lambda rng, shape: 1e300 * rng.normal(size=shape),
    "tiny": lambda rng, shape: 1e-30 * rng.normal(size=shape),
}
FAULTS = [*(5 * [None]), math.nan, math.inf, -math.inf, 1e38]
DECODERS = [*(8 * [None]), *sorted(catalogue.entries("decoder"))]


def as_it_is(array, folder):
    return array


def backwards(array, folder):
    return np.flip(array.copy())


def by_columns(array, folder):
    return np.asfortranarray(array)


def read_only(array, folder):
    array = array.copy()
    array.flags.writeable = False
    return array


def every_other(array, folder):
    return np.repeat(array, 2, axis=0)[::2]


def in_a_file(array, folder):
    np.save(folder / "x.npy", array)
    return folder / "x.npy"


def mapped(array, folder):
    np.save(folder / "x.npy", array)
    return np.load(folder / "x.npy", mmap_mode="r")


def as_tensor(array, folder):
    return torch.from_numpy(array.copy())


def with_gradient(array, folder):
    return torch.from_numpy(array.copy()).requires_grad_()


def transposed(array, folder):
    tensor = torch.from_numpy(array.copy())
    return tensor.flip(0).expand(2, *tensor.shape)[0]


LAYOUTS = [
    *(as_it_is, backwards, by_columns, read_only, every_other, in_a_file, mapped),
    *(as_tensor, with_gradient, transposed),
]


@st.composite
def data(draw):
    """An array that may be anything, and how it is given."""
    rng = np.random.default_rng(draw(st.integers(0, 10)))
    count = draw(st.sampled_from([30, 30, 30, 30, 10, 9, 3, 2, 1, 0]))
    shape = (count, *draw(st.sampled_from(SHAPES)))
    dtype = draw(st.sampled_from([*(4 * DTYPES), *ODD_DTYPES]))
    fill = draw(st.sampled_from(sorted(FILLS)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of casts that lose the value
        array = FILLS[fill](rng, shape).astype(np.float64 if "time" not in dtype else np.int64)
        array = array.astype(dtype)
    fault = draw(st.sampled_from(FAULTS))
    if fault is not None and dtype.startswith("float") and array.size:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array.flat[draw(st.integers(0, array.size - 1))] = fault
    layouts = LAYOUTS
    if dtype in ODD_DTYPES:
        layouts = [as_it_is, backwards] + [in_a_file] * (dtype != "object")
    elif not dtype.startswith("float"):
        layouts = [f for f in LAYOUTS if f is not with_gradient]
    return array, draw(st.sampled_from(layouts))


@settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(given_data=data(), word=st.sampled_from(DECODERS), missing=st.booleans())
def test_data_are_refused_or_trained_on(given_data, word, missing, tmp_path):
    array, layout = given_data
    choice = None if word is None else Choice(word)
    values = "real" if choice is None else values_of(choice)
    options = {}
    if values in ("levels", "counts", "symbols"):
        options["preprocessing"] = AsIs()
    elif word is not None and values != "binary":
        options["binarize"] = "none"
    try:
        loaded = pyrovae.load_data(layout(array, tmp_path), missing=missing, **options)
        vae = build_vae(loaded, decoder=choice, latent_dim=2, hidden=4)
        run = pyrovae.fit(
            vae,
            loaded,
            epochs=1,
            batch_size=max(1, len(loaded.train) // 5),
            optimizer=partial(torch.optim.Adam, lr=1e-3),
            progress=False,
        )
    except InputError as error:
        event(f"refused: {error.cause.split()[-1]}")
        return
    except NonFiniteError:
        # Of values at the end of what floats hold the first loss may be infinite.
        event("stopped before the first step")
        assert array.dtype.kind in "iuf"
        assert np.abs(array[np.isfinite(array)].astype(float)).max() > 1e15
        assert all(p.isfinite().all() for p in vae.parameters())
        return
    event("trained")
    assert math.isfinite(run.metrics[-1]["loss"])
    assert all(p.isfinite().all() for p in vae.parameters())
    x = loaded.train.head(len(loaded.train)).x
    assert x.dtype == torch.float32
    decoder = getattr(vae.decoder, "decoder", vae.decoder)  # within one that leaves NaN out
    if values == "binary" or (word is None and decoder.values == "binary"):
        assert ((x == 0) | (x == 1) | x.isnan()).all()
    assert missing or x.isfinite().all()

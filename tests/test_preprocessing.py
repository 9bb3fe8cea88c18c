"""Preprocessing: to the program's x and back, and what noise does in between."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from pyrovae.data import AsIs, Binarize, Dequantize, Preprocessing, Standardize, load_data
from pyrovae.errors import InputError

EVERY = [
    AsIs(),
    Binarize("threshold"),
    Binarize("static", maximum=16.0),
    Binarize("dynamic"),
    Dequantize(16),
    Standardize(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])),
]
every_preprocessing = pytest.mark.parametrize("preprocessing", EVERY, ids=lambda p: p.summary)


def noise_for(preprocessing, raw):
    return torch.rand(raw.shape) if preprocessing.needs_noise else None


@every_preprocessing
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_x_is_in_float32_and_of_the_datas_shape(preprocessing, dtype):
    raw = torch.randint(0, 16, (5, 2)).to(dtype)
    x = preprocessing.apply(raw, noise_for(preprocessing, raw))
    assert (x.dtype, x.shape) == (torch.float32, raw.shape)
    assert preprocessing.invert(x).shape == raw.shape


@every_preprocessing
def test_it_says_what_it_does_and_cannot_be_changed(preprocessing):
    assert isinstance(preprocessing, Preprocessing)
    assert preprocessing.summary
    assert preprocessing.needs_noise or not preprocessing.redraws
    field = [*(f.name for f in dataclasses.fields(preprocessing)), "anything"][0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(preprocessing, field, 1)


def test_only_dequantised_data_have_a_cell_volume():
    volumes = [preprocessing.log_cell_volume for preprocessing in EVERY]
    assert volumes == [None, None, None, None, -math.log(16), None]


# ── Missing entries ──────────────────────────────────────────────────────────────────────────


@every_preprocessing
def test_a_missing_entry_is_one_before_and_after(preprocessing):
    raw = torch.randint(0, 16, (5, 2)).float()
    raw[1, 0] = raw[3] = math.nan
    x = preprocessing.apply(raw, noise_for(preprocessing, raw))
    assert torch.equal(x.isnan(), raw.isnan())
    assert torch.equal(preprocessing.invert(x).isnan(), raw.isnan())
    preprocessing.check(raw)


@pytest.mark.parametrize("preprocessing", [Binarize("static", 16.0), Dequantize(16)], ids=str)
def test_a_range_is_that_of_what_was_observed(preprocessing):
    raw = torch.tensor([[math.nan, 17.0], [3.0, math.nan]])
    with pytest.raises(InputError, match="from 3 to 17"):
        preprocessing.check(raw)


@pytest.mark.parametrize("shape", [(200, 3), (50, 4, 3), (20, 1, 4, 3)], ids=str)
def test_moments_are_those_of_what_was_observed(shape):
    raw = torch.randn(shape) * 3 + 2
    raw[torch.rand(shape) < 0.3] = math.nan
    found = Standardize.of(raw)
    features = raw.reshape(1, -1) if raw.dim() == 4 else raw.reshape(-1, 3).T
    for index, feature in enumerate(features):
        kept = feature[~feature.isnan()]
        torch.testing.assert_close(found.mean.reshape(-1)[index], kept.mean())
        torch.testing.assert_close(found.scale.reshape(-1)[index], kept.std(correction=0))


def test_columns_of_codes_constant_ones_and_unseen_ones_stay_as_they_are():
    raw = torch.randint(0, 4, (50, 4)).float()
    raw[:, 2], raw[:, 3] = 7.0, math.nan
    found = Standardize.of(raw, columns=(4, 0, 0, 0))
    assert (found.mean[0], found.scale[0]) == (0, 1)
    assert (found.mean[2], found.scale[2]) == (7, 1)
    assert (found.mean[3], found.scale[3]) == (0, 1)
    assert torch.equal(found.apply(raw, None)[:, 0], raw[:, 0])
    assert found.mean[1] == raw[:, 1].mean()


# ── Binarisation ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mode", "noise", "redraws"),
    [("threshold", False, False), ("static", True, False), ("dynamic", True, True)],
)
def test_each_mode_needs_noise_and_redraws_it_as_it_says(mode, noise, redraws):
    assert (Binarize(mode).needs_noise, Binarize(mode).redraws) == (noise, redraws)


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'sometimes'.*threshold, static, dynamic"):
        Binarize("sometimes")


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_pixel_is_one_with_the_probability_of_its_grey_value(mode):
    raw = torch.tensor([0, 64, 128, 192, 255], dtype=torch.uint8).expand(20000, 5)
    share = Binarize(mode).apply(raw, torch.rand(raw.shape)).mean(0)
    error = 5 * 0.5 / math.sqrt(20000)
    torch.testing.assert_close(share, raw[0] / 255, atol=error, rtol=0)
    assert (share[0], share[4]) == (0, 1)


def test_a_threshold_is_at_one_half():
    raw = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert Binarize("threshold").apply(raw, None).tolist() == [0, 0, 1, 1]


def test_the_maximum_stands_for_one():
    raw = torch.tensor([0, 8, 9, 16], dtype=torch.uint8)
    assert Binarize("threshold", maximum=16.0).apply(raw, None).tolist() == [0, 0, 1, 1]
    assert Binarize("threshold", maximum=16.0).invert(torch.tensor(0.5)) == 8


# ── Dequantisation ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("levels", [2, 16, 256, 65536])
def test_dequantised_integers_are_where_they_belong_and_come_back(levels):
    raw = torch.arange(levels)
    for noise in (0.0, 0.5, 1 - 2**-24):
        x = Dequantize(levels).apply(raw, torch.full(raw.shape, noise))
        assert x.min() > 0
        assert x.max() < 1
        assert (Dequantize(levels).invert(x).round() - raw).abs().max() <= (noise != 0.5)


def test_every_level_is_filled_evenly():
    raw = torch.full((20000,), 3)
    x = Dequantize(8).apply(raw, torch.rand(20000))
    assert (x >= 3 / 8).all()
    assert (x < 4 / 8).all()
    assert x.mean().item() == pytest.approx(3.5 / 8, abs=5 / 8 / math.sqrt(12 * 20000))


def test_dequantised_bytes_are_drawn_anew_and_stay_within_their_range():
    assert Dequantize().needs_noise
    assert Dequantize().redraws
    inverted = Dequantize().invert(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]))
    assert inverted.tolist() == [0.0, 0.0, 127.5, 255.0, 255.0]


# ── Standardisation ──────────────────────────────────────────────────────────────────────────


def test_vectors_are_standardised_feature_by_feature_and_back():
    raw = torch.randn(50, 3) * torch.tensor([0.1, 5.0, 300.0]) + torch.tensor([7.0, 0.0, -9.0])
    standard = Standardize.of(raw)
    x = standard.apply(raw, None)
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3))
    torch.testing.assert_close(standard.invert(x), raw)


def test_images_are_standardised_over_all_pixels():
    raw = torch.randn(9, 2, 5, 7) * 4 + 3
    standard = Standardize.of(raw)
    x = standard.apply(raw, None)
    assert standard.mean.shape == standard.scale.shape == ()
    assert x.mean().item() == pytest.approx(0, abs=1e-6)
    assert x.std(correction=0).item() == pytest.approx(1)


def test_a_constant_feature_stays_finite():
    raw = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert Standardize.of(raw).apply(raw, None).tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_moments_of_large_bytes_do_not_overflow():
    raw = torch.full((400, 1, 28, 28), 250, dtype=torch.uint8)
    raw[::2] = 252
    assert Standardize.of(raw).mean == 251
    assert Standardize.of(raw).scale == 1


def test_moments_are_not_applied_to_observations_of_other_numbers(tmp_path):
    draw = np.random.default_rng(0).standard_normal
    np.savez(tmp_path / "x.npz", train=draw((30, 3)), test=draw((9, 4)))
    with pytest.raises(InputError, match=r"of shape \(4,\), and the moments .* \(3,\)"):
        load_data(tmp_path / "x.npz")
    sequences = load_data(draw((30, 5, 3)), sequences=True)
    sequences.preprocessing.check(torch.zeros(2, 7, 3))  # of another length
    load_data(draw((30, 3, 6, 6))).preprocessing.check(torch.zeros(2, 3, 8, 8))

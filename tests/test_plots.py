"""Pictures: the right value in the right place, and no state but the figure's own."""

import io
import math
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image
from sklearn.decomposition import PCA

from pyrovae import plots
from pyrovae.data.tables import Column
from pyrovae.errors import InputError
from pyrovae.plots import Picture, curves, grid, kl_bars, latent_scatter, style, weights


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(plots.png(figure))).convert("RGB")).astype(int)


def record(epoch, **changes):
    values = {
        "epoch": epoch,
        "train_elbo": -100.0 + epoch,
        "valid_elbo": -101.0 + epoch,
        "log_likelihood": -80.0 + epoch,
        "kl": 20.0,
        "loss": 100.0 - epoch,
        "kl_weight": 1.0,
        "grad_norm": 3.0,
        "examples_per_second": 1e4,
    }
    return {**values, **changes}


def ydata(axes):
    return [np.asarray(line.get_ydata()).tolist() for line in axes.lines]


def titles(axes):
    return axes.get_title(loc="left"), axes.get_title(loc="right")


def labels(axes):
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def bars(figure):
    return figure.axes[0].patches


# ── Grids ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "shape",
    [
        (2, 10, 1, 8, 8),
        (1, 1, 1, 28, 28),
        (20, 20, 1, 28, 28),
        (10, 10, 3, 64, 64),
        (3, 5, 4, 16, 8),
        (2, 3, 1, 1, 40),
        (1, 2, 1, 1600, 900),
        (2, 7, 1),
        (20, 20, 2),
        (4, 6, 64),
        (4, 6, 65),
        (2, 2, 2000),
    ],
)
def test_grids_of_any_kind_have_a_sensible_size(shape):
    x = torch.rand(shape)
    figure = grid(x, rows=["a"] * shape[0], columns=["b"] * shape[1], caption="A caption.")

    width, height = figure.get_size_inches()
    assert 0.5 < width < 12
    assert 0.5 < height < 12
    assert pixels(figure).shape[:2] == (int(150 * height), int(150 * width))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_in_its_place_pixel_by_pixel(channels):
    """Row by row, left to right, upright, in exact levels, between thin lines."""
    levels = torch.randint(0, 256, (3, 4, channels, 8, 6))
    shown = pixels(grid(levels / 255, low=0, high=1))

    # The largest enlargement that fits: 3 rows of 8 pixels, with lines of 3 between them.
    scale = 21
    assert shown.shape == (3 * 8 * scale + 2 * 3, 4 * 6 * scale + 3 * 3, 3)
    for row in range(3):
        for column in range(4):
            top, left = row * (8 * scale + 3), column * (6 * scale + 3)
            cell = shown[top : top + 8 * scale, left : left + 6 * scale]
            expected = levels[row, column].expand(3, 8, 6).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(cell, expected.repeat(scale, 0).repeat(scale, 1))
    assert to_hex(shown[8 * scale + 1, 5] / 255) == style.RULE


def test_labels_stand_beside_the_images_and_move_none():
    levels = torch.tensor([[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]])
    x = levels[:, :, None, None, None].expand(2, 3, 1, 8, 8)
    figure = grid(x, rows=["original", "reconstruction"], columns=["1", "2", "3"], caption="Two.")
    shown = pixels(figure)

    bare = pixels(grid(x))
    top = np.flatnonzero((shown == bare[0, 0]).all(-1).sum(1) >= 168)[0]
    left = shown.shape[1] - bare.shape[1]
    assert left > 100
    np.testing.assert_array_equal(shown[top:, left:][: len(bare)], bare)
    assert {t.get_text() for t in figure.texts} == {
        *("original", "reconstruction", "1", "2", "3", "Two.")
    }


@pytest.mark.parametrize("label", ["m" * 40, "between two codes: NoiselessVAE", "iiiill" * 9])
def test_a_label_of_a_row_is_not_cut_off(label):
    found = pixels(grid(torch.rand(1, 2, 1, 28, 28), rows=[label]))
    edge, beside = found[:, :3], found[:, :12]
    assert (edge == 255).all()
    assert (beside < 255).any(), "and no wider a margin than it needs"


def test_a_grid_is_scaled_by_its_own_extremes_or_by_those_given():
    x = torch.tensor([[-3.0, 1.0, 5.0]])[:, :, None, None, None].expand(1, 3, 1, 4, 4)

    own = pixels(grid(x))[5]
    given = pixels(grid(x, low=-5, high=1))[5]

    assert sorted({tuple(p) for p in own[[5, own.shape[0] // 2, -5]]}) == [
        (0, 0, 0),
        (128, 128, 128),
        (255, 255, 255),
    ]
    assert given[5].tolist() == [85, 85, 85]
    assert given[-5].tolist() == [255, 255, 255]


def test_transparent_images_lie_on_white_and_their_opacity_is_not_rescaled():
    x = torch.zeros(1, 2, 4, 8, 8)
    x[0, 1, 0] = 0.5
    x[0, 1, 3] = 0.5
    shown = pixels(grid(x, low=0, high=1))

    assert shown[5, 5].tolist() == [255, 255, 255]
    assert shown[5, -5].tolist() == [191, 128, 128]

    x[0, :, 3] = 1.0
    assert pixels(grid(x))[5, -5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("value", [0.0, 1.0, -7.0, math.nan, math.inf])
@pytest.mark.parametrize("shape", [(2, 2, 1, 8, 8), (2, 2, 5), (2, 2, 70)])
def test_constant_and_non_finite_grids_are_drawn(value, shape):
    assert pixels(grid(torch.full(shape, value))).size


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float64, torch.int64])
def test_any_dtype_is_drawn_as_its_values(dtype):
    x = torch.tensor([[0, 1]])[:, :, None, None, None].expand(1, 2, 1, 8, 8)
    shown = pixels(grid(x.to(dtype)))

    assert shown[5, 5].tolist() == [0, 0, 0]
    assert shown[5, -5].tolist() == [255, 255, 255]


def test_vectors_are_lines_in_their_cells_on_one_scale():
    x = torch.tensor([[[0.0, 1.0, 2.0], [2.0, 2.0, 2.0]], [[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]]])
    figure = grid(x)
    (axes,) = figure.axes
    segments = np.array(axes.collections[0].get_segments())

    assert segments.shape == (4, 3, 2)
    width, height = axes.get_xlim()[1] / 2, axes.get_ylim()[0] / 2
    cells = (segments / (width, height)).reshape(2, 2, 3, 2)
    for row in range(2):
        for column in range(2):
            across, down = cells[row, column].T - [[column], [row]]
            assert across == pytest.approx([0.08, 0.5, 0.92])
            # Upwards is more; pixels count from the top.
            assert 0.9 - down == pytest.approx(0.4 * x[row, column].numpy(), abs=1e-6)


def test_long_vectors_are_strips_from_dark_to_bright():
    x = torch.linspace(0, 1, 100).expand(2, 3, 100).clone()
    x[1, 2] = x[1, 2].flip(0)
    figure = grid(x)
    shown = pixels(figure).sum(-1)
    width = 1200 // 3

    assert shown[3, 5] < shown[3, width // 2] < shown[3, width - 5]
    assert shown[50, -5] < shown[50, -width // 2]
    assert abs(shown[3, 5] - shown[50, -6]) < 10


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.rand(2, 2, 2, 8, 8), {}, "2 channels"),
        (torch.rand(2, 2, 8, 8), {}, r"\(2, 2, 8, 8\)"),
        (torch.rand(0, 2, 5), {}, r"\(0, 2, 5\)"),
        (torch.rand(2, 3, 5), {"rows": ["a"]}, "1 row labels for 2 rows"),
        (torch.rand(2, 3, 5), {"columns": ["a", "b"]}, "2 column labels for 3 columns"),
    ],
)
def test_what_is_no_grid_is_refused(x, options, message):
    with pytest.raises(InputError, match=message):
        grid(x, **options)


def test_long_column_labels_are_turned_and_a_dollar_is_a_dollar():
    names = ["a rather long name $x$"] * 12
    figure = grid(torch.rand(2, 12, 1, 28, 28), columns=names)

    assert {text.get_rotation() for text in figure.texts} == {90.0}
    assert pixels(figure).size


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────


def test_a_picture_is_saved_and_displayed_as_a_png(tmp_path):
    picture = Picture(torch.rand(20), grid(torch.rand(2, 10, 1, 8, 8)), "Twenty samples.")
    path = picture.save(tmp_path / "new" / "samples.png")

    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert image.width / image.height == pytest.approx(5, rel=0.02)
    assert picture._repr_png_() == content
    assert len(repr(picture)) < 100


def test_rows_of_a_table_are_saved_under_what_they_are(tmp_path):
    figure, columns = grid(torch.rand(2, 2, 1)), [Column("age"), Column("example")]
    x = torch.tensor([[[1.5, 2.0], [3.0, 4.0]], [[5.0, 6.0], [math.nan, math.nan]]])
    plain = Picture(x, figure, "", columns).save(tmp_path / "a.csv")
    assert plain.read_text() == "age,example\n1.5,2\n3,4\n5,6\n"
    labels = {"shown": ["original"] * 2 + ["reconstruction"] * 2, "example": [0, 1, 0, 1]}
    said = Picture(x, figure, "", columns, labels).save(tmp_path / "b.csv").read_text()
    assert said.splitlines() == [
        "shown,example_,age,example",
        "original,0,1.5,2",
        "original,1,3,4",
        "reconstruction,0,5,6",
        "reconstruction,1,,",
    ]


def test_a_picture_that_cannot_be_saved_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    picture = Picture(torch.rand(1), grid(torch.rand(1, 1, 1, 8, 8)), "")

    with pytest.raises(
        InputError, match=r"file/x\.png cannot be written .*\)\. Choose another path"
    ):
        picture.save(tmp_path / "file" / "x.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"Is a directory\)\. Choose another path\."):
        picture.save(tmp_path / "folder.png")


@pytest.mark.parametrize("name", ["x.csv", "x.svg", "x"])
def test_a_picture_is_written_under_no_name_that_says_something_else(tmp_path, name):
    picture = Picture(torch.rand(1), grid(torch.rand(1, 1, 1, 8, 8)), "")

    with pytest.raises(InputError, match=r"no \.png file.*FILE\.npz"):
        picture.save(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_drawing_changes_no_global_setting():
    before = dict(matplotlib.rcParams)
    for figure in (
        grid(torch.rand(2, 2, 1, 8, 8), rows=["a", "b"]),
        curves([record(1)]),
        latent_scatter(torch.randn(50, 3), torch.arange(50)),
    ):
        plots.png(figure)

    assert dict(matplotlib.rcParams) == before
    for path in Path(plots.__file__).parent.glob("*.py"):
        assert "import pyplot" not in path.read_text()
        assert "matplotlib.pyplot" not in path.read_text()


# ── Curves ───────────────────────────────────────────────────────────────────────────────────


def test_curves_show_every_record_under_its_name():
    metrics = [record(epoch) for epoch in range(1, 11)]
    elbo, log_likelihood, kl, norm = curves(metrics).axes

    assert ydata(elbo) == [[m["train_elbo"] for m in metrics], [m["valid_elbo"] for m in metrics]]
    assert labels(elbo) == ["train", "validation"]
    assert titles(elbo) == ("ELBO", "nats per example")
    assert ydata(log_likelihood) == [[m["log_likelihood"] for m in metrics]]
    assert ydata(kl) == [[20.0] * 10]
    assert ydata(norm) == [[3.0] * 10]


def test_a_single_epoch_leaves_a_visible_mark():
    figure = curves([record(1)])
    shown = pixels(figure)

    for axes in figure.axes:
        assert all(line.get_marker() == "o" for line in axes.lines)
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in (style.BLUE, style.AMBER)]
    for colour, least in zip(colours, (4 * 20, 20), strict=True):
        assert (shown == colour).all(-1).sum() > least


@pytest.mark.parametrize("valid", [{"valid_elbo": None}, {"valid_elbo": math.nan}, {}])
def test_curves_without_validation(valid):
    metrics = [record(epoch) for epoch in range(1, 5)]
    for one in metrics:
        del one["valid_elbo"]
        one |= valid
    elbo = curves(metrics).axes[0]

    assert len(elbo.lines) == 1
    assert labels(elbo) == []


def test_curves_join_over_epochs_without_a_value_and_say_where_there_is_none():
    metrics = [record(e, valid_elbo=-5.0 if e % 2 else None, kl=None) for e in range(1, 6)]
    figure = curves(metrics)
    elbo, _, kl, _ = figure.axes

    assert elbo.lines[1].get_xdata().tolist() == [1, 3, 5]
    assert [text.get_text() for text in kl.texts] == ["not recorded"]
    assert pixels(figure).size


def test_the_start_of_a_long_run_does_not_set_the_scale():
    metrics = [record(e, train_elbo=-1e6 if e < 5 else -100.0 - 1 / e) for e in range(1, 101)]
    low, high = curves(metrics).axes[0].get_ylim()

    assert -120 < low < high < 10


def test_annealing_is_tinted():
    metrics = [record(epoch, kl_weight=min(1, epoch / 5)) for epoch in range(1, 11)]

    assert labels(curves(metrics).axes[2]) == ["validation", "weight below 1"]
    assert labels(curves([record(1), record(2)]).axes[2]) == []


def test_gradient_norms_over_decades_are_on_a_logarithmic_scale():
    metrics = [record(epoch, grad_norm=10.0**epoch) for epoch in range(1, 6)]

    assert curves(metrics).axes[3].get_yscale() == "log"
    assert curves(metrics[:1]).axes[3].get_yscale() == "linear"


def test_no_record_is_an_error():
    with pytest.raises(InputError, match="no epoch"):
        curves([])


# ── The latent space ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_latents_of_any_dimension_with_and_without_labels(size, labelled):
    means = torch.randn(60, size)
    figure = latent_scatter(means, torch.arange(60) % 3 if labelled else None)
    axes = figure.axes[0]

    assert pixels(figure).size
    assert labels(axes) == (["0", "1", "2"] if labelled else [])
    if size == 1:
        heights = sum(p.get_height() for p in axes.patches if hasattr(p, "get_height"))
        assert heights == 60
    else:
        assert len(axes.collections[0].get_offsets()) == 60


def test_points_have_the_colour_of_their_label():
    means = torch.randn(40, 2)
    classes = torch.tensor([3, 7, 9, 7]).repeat(10)
    dots = latent_scatter(means, classes).axes[0].collections[0]

    found = {
        tuple(np.float32(at)): to_hex(colour)
        for at, colour in zip(dots.get_offsets().tolist(), dots.get_facecolors(), strict=True)
    }
    expected = {3: style.PALETTE[0], 7: style.PALETTE[1], 9: style.PALETTE[2]}
    for at, label in zip(means.tolist(), classes.tolist(), strict=True):
        assert found[tuple(np.float32(at))] == expected[label]


def test_more_dimensions_are_projected_onto_two_principal_components():
    means = torch.randn(200, 5, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.1, 2.0, 0.5]) + 4
    axes = latent_scatter(means, None).axes[0]
    reference = PCA(2).fit(means.numpy())

    found = np.sort(np.abs(np.asarray(axes.collections[0].get_offsets())), axis=0)
    np.testing.assert_allclose(found, np.sort(np.abs(reference.transform(means)), axis=0))
    for name, share in zip(
        (axes.get_xlabel(), axes.get_ylabel()), reference.explained_variance_ratio_, strict=True
    ):
        assert f"({share:.0%} of variance)" in name


def test_many_labels_share_a_colour_bar():
    few = latent_scatter(torch.randn(30, 2), torch.arange(30) % 10)
    many = latent_scatter(torch.randn(30, 2), torch.arange(30) % 11)

    assert len(few.axes) == 1
    assert len(labels(few.axes[0])) == 10
    assert len(many.axes) == 2
    assert many.axes[1].get_title() == "label"
    assert pixels(many).size


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_collapsed_posterior_is_drawn(count, size):
    means = torch.full((count, size), 3.0)
    means[0] += 1e-7

    assert pixels(latent_scatter(means, torch.zeros(count))).size


def test_examples_without_finite_means_are_left_out():
    means = torch.randn(10, 2)
    means[3, 1] = math.nan

    assert len(latent_scatter(means, None).axes[0].collections[0].get_offsets()) == 9
    with pytest.raises(InputError, match="no finite mean"):
        latent_scatter(torch.full((3, 2), math.nan))


def test_many_points_are_pixels_in_a_vector_format():
    few, many = (latent_scatter(torch.randn(count, 2)) for count in (2000, 2001))

    assert not few.axes[0].collections[0].get_rasterized()
    assert many.axes[0].collections[0].get_rasterized()


@pytest.mark.parametrize(
    ("means", "classes"),
    [
        (torch.randn(5), None),
        (torch.randn(5, 2), torch.zeros(4)),
        (torch.randn(5, 2), torch.zeros(5, 1)),
    ],
)
def test_means_and_labels_that_do_not_fit_are_refused(means, classes):
    with pytest.raises(InputError, match="cannot be drawn"):
        latent_scatter(means, classes)


# ── KL and evidence ──────────────────────────────────────────────────────────────────────────


def test_kl_bars_descend_under_the_numbers_of_their_dimensions():
    kl = torch.tensor([0.5, 0.001, 2.0, 0.02])
    figure = kl_bars({"z": kl})
    axes = figure.axes[0]

    assert [bar.get_height() for bar in bars(figure)] == pytest.approx([2.0, 0.5, 0.02, 0.001])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "0", "3", "1"]
    assert [to_hex(bar.get_facecolor()) for bar in bars(figure)] == [style.BLUE] * 3 + [style.GREY]
    assert [0.01, 0.01] in ydata(axes)
    assert titles(axes)[1].startswith("nats; 3 of 4 above 0.01")


def test_kl_bars_of_several_sites_keep_apart():
    figure = kl_bars({"a": torch.tensor([0.1, 0.3]), "b": torch.tensor([0.2, 0.9, 0.4])})

    heights = [bar.get_height() for bar in bars(figure)]
    assert heights == pytest.approx([0.3, 0.1, 0.9, 0.4, 0.2])
    assert labels(figure.axes[0]) == ["a", "b"]
    places = [bar.get_x() for bar in bars(figure)]
    assert places[2] - places[1] > 1.5


@pytest.mark.parametrize("count", [1, 200])
def test_kl_bars_of_one_and_of_many_dimensions(count):
    figure = kl_bars({"z": torch.rand(count) - 0.1, "w": torch.rand(count)})

    assert len(bars(figure)) == 2 * count
    assert pixels(figure).size


def test_without_a_dimension_there_are_no_bars():
    for nothing in ({}, {"z": torch.empty(0)}):
        with pytest.raises(InputError, match="no KL by dimension"):
            kl_bars(nothing)


def evaluation(count, **changes):
    elbo = torch.randn(count) * 10 - 100
    values = {"elbo": elbo, "log_evidence": elbo + 3, "pareto_k": torch.rand(count)}
    return SimpleNamespace(**{**values, **changes})


def test_weights_show_both_numbers_and_the_tail():
    found = evaluation(400, pareto_k=torch.tensor([0.2, 0.9, math.nan, -math.inf]).repeat(100))
    figure = weights(found)
    left, right = figure.axes

    assert labels(left) == ["log p(x)", "ELBO"]
    means = [x for line in left.lines for x in set(np.asarray(line.get_xdata()).tolist())]
    assert means == pytest.approx(
        [found.log_evidence.mean().item(), found.elbo.mean().item()], rel=1e-5
    )
    assert "33.3% above 0.7" in titles(right)[1]
    assert sum(bar.get_height() for bar in right.patches) == 300
    assert pixels(figure).size


@pytest.mark.parametrize("count", [1, 50])
def test_weights_without_a_tail_are_one_panel(count):
    figure = weights(evaluation(count, pareto_k=torch.full((count,), math.nan)))

    assert len(figure.axes) == 1
    assert pixels(figure).size


def test_weights_leave_out_what_is_not_finite():
    found = evaluation(10)
    found.elbo[3] = -math.inf

    assert pixels(weights(found)).size
    with pytest.raises(InputError, match="is finite"):
        weights(evaluation(3, elbo=torch.full((3,), -math.inf)))

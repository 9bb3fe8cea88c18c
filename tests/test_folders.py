"""Folders of images: what is read of them, what is refused, and what the cache does."""

import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import pyrovae
from pyrovae import cli
from pyrovae.data import Dequantize, folders, load_data
from pyrovae.data.decoding import BadImage, Decoding, decode, read_header
from pyrovae.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyrovae" / "folders"


@pytest.fixture
def photos(tmp_path):
    """Thirty photographs, each of a size of its own."""
    for index in range(30):
        paint(tmp_path / "photos" / f"{index:02d}.jpg", size=(20 + index, 50 - index), seed=index)
    return tmp_path / "photos"


def noise(size=(12, 16), channels=3, seed=0):
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def paint(path, *, size=(12, 16), channels=3, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(size, channels, seed)).save(path, **options)
    return path


def rows(examples):
    return examples.raw(range(len(examples))).x


# ── Decoding ──


def test_pixels_come_as_they_were_saved(tmp_path):
    path = paint(tmp_path / "a.png")
    expected = noise().transpose(2, 0, 1)
    assert np.array_equal(decode(path, (3, 12, 16)), expected)
    assert read_header(path) == ((12, 16), False, False)


def halves(path, size):
    """White on the left, black on the right."""
    array = np.zeros(size, np.uint8)
    array[:, : size[1] // 2] = 255
    Image.fromarray(array).save(path)
    return path


def test_the_shorter_side_is_scaled_and_the_centre_cut_out(tmp_path):
    found = decode(halves(tmp_path / "a.png", (40, 120)), (1, 20, 20))[0]
    assert (found[:, :7] == 255).all()
    assert (found[:, -7:] == 0).all()


def test_padding_keeps_the_whole_image_between_black_bars(tmp_path):
    found = decode(halves(tmp_path / "a.png", (40, 120)), (1, 21, 21), pad=True)[0]
    assert (found[:7] == 0).all()
    assert (found[-7:] == 0).all()
    assert (found[8:13, :8] == 255).all()
    assert (found[8:13, -8:] == 0).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("size", [(40, 80), (10, 20)])
def test_orientation_tags_are_applied(tmp_path, suffix, size):
    """Orientation 6: what is stored on the left is to be seen above."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = halves(tmp_path / "plain.png", (40, 80))
    turned = tmp_path / f"a.{suffix}"
    Image.open(path).convert("RGB").save(turned, exif=exif)
    assert read_header(turned).size == (80, 40)
    found = decode(turned, (1, *size[::-1]))[0]
    assert found[: size[1] // 2 - 2].mean() > 240
    assert found[size[1] // 2 + 2 :].mean() < 15


def test_transparent_pixels_are_white(tmp_path):
    array = np.dstack([noise(), np.zeros((12, 16), np.uint8)])
    array[:, 8:, 3] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", (3, 12, 16))
    assert (found[:, :, :8] == 255).all()
    assert np.array_equal(found[:, :, 8:], noise()[:, 8:].transpose(2, 0, 1))


def test_palettes_and_their_transparent_colour(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    image.save(tmp_path / "a.gif", transparency=0)
    found = decode(tmp_path / "a.gif", (3, 2, 2)).transpose(1, 2, 0)
    assert found.tolist() == [[[255] * 3, [200, 0, 0]], [[0, 0, 200], [255] * 3]]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    found = decode(tmp_path / "a.jpg", (3, 4, 4))
    assert found[0].min() > 250
    assert found[1:].max() < 5


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    values = np.arange(0, 65536, 255, dtype=np.uint16)[:256].reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    found = decode(tmp_path / f"a.{suffix}", (1, 16, 16))[0]
    assert np.array_equal(found, np.rint(values / 257))
    assert read_header(tmp_path / f"a.{suffix}").grey


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_32_bits_have_no_scale(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="32 bits"):
        decode(tmp_path / "a.tif", (1, 4, 4))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_of_several_frames_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    found = decode(path, (3, 8, 8))
    assert read_header(path).several
    assert found[0].min() > 240
    assert found[1:].max() < 15


def truncated(path):
    paint(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-500])


def bomb(path):
    """A PNG that says it has 4 * 10^10 pixels, in 60 bytes."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))


BAD = {
    "truncated": (truncated, "truncated"),
    "bomb": (bomb, "40000000000 pixels.*decompression bomb"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_text("no image"), "not an image"),
    "link": (lambda path: path.symlink_to("nowhere"), "not a file"),
    "folder": (lambda path: path.mkdir(), "not a file"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_unreadable_file_says_why(tmp_path, kind, suffix):
    make, words = BAD[kind]
    make(tmp_path / f"a.{suffix}")
    with pytest.raises(BadImage, match=words):
        decode(tmp_path / f"a.{suffix}", (3, 8, 8))


def test_one_more_pixel_than_pillow_allows_is_too_many(tmp_path, monkeypatch):
    path = paint(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 16)
    decode(path, (3, 12, 16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 16 - 1)
    with pytest.raises(BadImage, match="bomb"), pytest.warns(Image.DecompressionBombWarning):
        decode(path, (3, 12, 16))


@pytest.mark.parametrize(
    ("size", "expected"), [(64, (64, 64)), ("48x64", (48, 64)), ((48, 64), (48, 64)), (None, None)]
)
def test_sizes_are_typed_or_given(size, expected):
    assert Decoding(size).size == expected


@pytest.mark.parametrize("size", ["", "big", "0", 0, -3, "48x", "4x4x4", (1, 2, 3), "48 64"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InputError, match="48x64"):
        Decoding(size)


# ── Folders ──


def test_photographs_become_examples(photos):
    data = load_data(photos, size="8x12")
    assert data.x_shape == (3, 8, 12)
    assert data.preprocessing == Dequantize(256)
    assert (len(data.train), len(data.valid), len(data.test)) == (24, 3, 3)
    assert data.train.y is None
    expected = {decode(path, (3, 8, 12)).tobytes() for path in photos.iterdir()}
    found = [x.numpy().tobytes() for split in data.splits.values() for x in rows(split)]
    assert len(found) == 30
    assert set(found) == expected


def test_several_sizes_name_the_commonest_and_the_flag(photos):
    for index in range(3):
        paint(photos / f"same{index}.png", size=(33, 44), seed=index)
    with pytest.raises(InputError, match=r"31 different sizes.* 33x44 \(3\).*--size 64"):
        load_data(photos)


def test_images_of_one_size_need_none(tmp_path):
    for index in range(12):
        paint(tmp_path / "a" / f"{index}.png", size=(5, 7), seed=index)
    assert load_data(tmp_path / "a").x_shape == (3, 5, 7)


def test_grey_where_all_are_or_where_it_is_asked_for(tmp_path):
    for index in range(12):
        paint(tmp_path / "a" / f"{index}.png", channels=1, seed=index)
    assert load_data(tmp_path / "a").x_shape == (1, 12, 16)
    assert load_data(tmp_path / "a", grey=False).x_shape == (3, 12, 16)
    paint(tmp_path / "a" / "colour.png")
    assert load_data(tmp_path / "a").x_shape == (3, 12, 16)
    assert load_data(tmp_path / "a", grey=True).x_shape == (1, 12, 16)


def test_copies_of_one_file_never_cross_splits(tmp_path):
    for index in range(40):
        for copy in range(3):
            paint(tmp_path / "a" / f"{copy}-{index}.png", size=(4, 4), seed=index)
    splits = [
        {x.numpy().tobytes() for x in rows(s)} for s in load_data(tmp_path / "a").splits.values()
    ]
    assert [len(split) for split in splits] == [32, 4, 4]
    assert not (splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2])


def test_splits_do_not_depend_on_names_or_labels(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "other" / "label")
    for path in (tmp_path / "other" / "label").iterdir():
        path.rename(path.with_name(f"x{99 - int(path.stem)}.jpg"))
    found = [
        {x.numpy().tobytes() for x in rows(load_data(folder, size=8).test)}
        for folder in (photos, tmp_path / "other")
    ]
    assert found[0] == found[1]


def test_subfolders_are_labels(tmp_path):
    for index in range(20):
        paint(tmp_path / "a" / ("cat" if index % 2 else "dog/deep") / f"{index}.png", seed=index)
    data = load_data(tmp_path / "a")
    labels = {
        x.numpy().tobytes(): int(y)
        for split in data.splits.values()
        for x, y in zip(rows(split), split.y, strict=True)
    }
    for index in range(20):
        assert labels[noise(seed=index).transpose(2, 0, 1).tobytes()] == (0 if index % 2 else 1)
    paint(tmp_path / "a" / "loose.png", seed=99)
    assert load_data(tmp_path / "a").train.y is None


def test_subfolders_named_so_are_splits(tmp_path):
    for split, count in (("train", 12), ("val", 3), ("Test", 2)):
        for index in range(count):
            paint(tmp_path / "a" / split / "xy"[index % 2] / f"{index}.png", seed=index)
    data = load_data(tmp_path / "a")
    assert [len(split) for split in data.splits.values()] == [12, 3, 2]
    assert data.split_rule == "the source's own splits"
    assert data.test.y.tolist() == [0, 1]


def test_a_split_that_is_missing_is_drawn_from_training(tmp_path):
    for split, count in (("train", 20), ("test", 7)):
        for index in range(count):
            paint(tmp_path / "a" / split / f"{index}.png", seed=index)
    data = load_data(tmp_path / "a")
    assert [len(split) for split in data.splits.values()] == [18, 2, 7]
    assert data.split_rule.startswith("valid: a tenth")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no images"),
        (["notes.txt", ".hidden.png", ".hidden/a.png"], "holds no images"),
        (["a.png", "b.png"], "too few"),
        (["train/a.png", "b.png"], "b.png lies in none"),
        (["train/a.png", "cat/b.png"], "cat/b.png lies in none"),
        (["test/a.png"], "named train"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, names, words):
    (tmp_path / "a").mkdir()
    for index, name in enumerate(names):
        path = tmp_path / "a" / name
        if path.suffix == ".png":
            paint(path, seed=index)
        else:
            path.write_text("")
    with pytest.raises(InputError, match=words):
        load_data(tmp_path / "a")


def test_links_are_followed_and_those_that_lead_back_end(photos, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "album").symlink_to(photos)
    (photos / "back").symlink_to(tmp_path / "linked")
    data = load_data(tmp_path / "linked", size=8)
    assert sum(len(split) for split in data.splits.values()) == 30


def test_unreadable_files_are_listed_and_skipped_where_one_says_so(photos, capsys):
    for kind in ("truncated", "bomb", "empty", "text"):
        BAD[kind][0](photos / f"{kind}.png")
    with pytest.raises(InputError) as refused:
        load_data(photos, size=8)
    said = str(refused.value)
    assert "4 files cannot be read" in said
    assert "--skip-bad" in said
    for kind in ("truncated", "bomb", "empty", "text"):
        assert re.search(rf"{kind}\.png \([^;]*{BAD[kind][1]}", said)
    capsys.readouterr()
    data = load_data(photos, size=8, skip_bad=True)
    assert sum(len(split) for split in data.splits.values()) == 30
    assert "without 4 files that cannot be read" in data.cache
    assert capsys.readouterr().err == ""  # the images were decoded, and are not again


def test_options_of_folders_are_for_folders():
    for options in ({"size": 8}, {"grey": True}, {"skip_bad": True}):
        with pytest.raises(InputError, match="no folder of images"):
            load_data("digits", **options)
        with pytest.raises(InputError, match="no folder of images"):
            load_data(np.zeros((30, 4, 4), np.uint8), **options)
    with pytest.raises(InputError, match="--size"):
        load_data("digits", pad=True)


# ── The cache ──


def made(cache):
    return sorted(cache.glob("*/*"))


def test_the_second_time_nothing_is_decoded(photos, cache, monkeypatch, capsys):
    first = load_data(photos, size=8)
    assert str(made(cache)[0] / "images.raw") in capsys.readouterr().err
    assert "(0.0 MB)" in first.cache
    monkeypatch.setattr(folders, "decode", None)
    second = load_data(photos, size=8)
    assert second.fingerprint == first.fingerprint
    assert torch.equal(rows(second.train), rows(first.train))
    assert capsys.readouterr().err == ""


def test_several_frames_are_said_once(photos, capsys):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "a.gif", save_all=True, append_images=frames[1:])
    load_data(photos, size=8)
    assert "1 of 31 files have several frames" in capsys.readouterr().err
    load_data(photos, size=8)
    assert capsys.readouterr().err == ""


def test_the_data_are_mapped_and_not_copied(photos, cache):
    data = load_data(photos, size=8)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(made(cache)[0] / "images.raw") in maps.read_text()
    train, valid, _ = (split._x for split in data.splits.values())
    assert valid.data_ptr() == train.data_ptr() + train.numel()


@pytest.mark.parametrize("options", [{"size": 9}, {"grey": True}, {"pad": True}])
def test_other_options_are_another_cache(photos, cache, options):
    first = load_data(photos, size=8)
    other = load_data(photos, **{"size": 8, **options})
    assert len(made(cache)) == 2
    assert other.fingerprint != first.fingerprint


def test_a_folder_that_changed_is_decoded_again_and_the_old_cache_is_gone(photos, cache):
    first = load_data(photos, size=8)
    paint(photos / "00.jpg", size=(30, 30), seed=77)
    second = load_data(photos, size=8)
    assert second.fingerprint != first.fingerprint
    assert len(made(cache)) == 1
    (photos / "00.jpg").unlink()
    assert sum(len(split) for split in load_data(photos, size=8).splits.values()) == 29


def cut(place):
    content = (place / "images.raw").read_bytes()
    (place / "images.raw").write_bytes(content[:-1])


def flip(place):
    content = bytearray((place / "images.raw").read_bytes())
    content[100] ^= 255
    (place / "images.raw").write_bytes(content)


DAMAGE = {
    "cut": cut,
    "flipped": flip,
    "no images": lambda place: (place / "images.raw").unlink(),
    "no index": lambda place: (place / "index.json").unlink(),
    "half an index": lambda place: (place / "index.json").write_text('{"shape": [30,'),
    "another index": lambda place: (place / "index.json").write_text('{"shape": [30]}'),
    "a list": lambda place: (place / "index.json").write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_made_again(photos, cache, kind):
    expected = rows(load_data(photos, size=8).train)
    DAMAGE[kind](made(cache)[0])
    assert torch.equal(rows(load_data(photos, size=8).train), expected)
    assert len(made(cache)) == 1


def test_a_crash_in_the_middle_leaves_no_cache(photos, cache, monkeypatch):
    def crash(path, shape, *, pad):
        if path.stem == "17":
            raise KeyboardInterrupt
        return decode(path, shape, pad=pad)

    monkeypatch.setattr(folders, "decode", crash)
    with pytest.raises(KeyboardInterrupt):
        load_data(photos, size=8)
    assert made(cache) == []


def test_a_cache_that_cannot_be_written_says_where(photos, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("")
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        load_data(photos, size=8)


# ── Runs ──


@pytest.fixture
def trained(photos, tmp_path):
    data = load_data(photos, size=8)
    vae = pyrovae.VAE(
        prior=pyrovae.StandardNormal(2),
        decoder=pyrovae.GaussianDecoder(pyrovae.MLP((2,), data.x_shape, hidden=(4,))),
        encoder=pyrovae.GaussianEncoder(pyrovae.MLP(data.x_shape, (4,), hidden=(4,))),
    )
    return pyrovae.fit(vae, data, epochs=1, run_dir=tmp_path / "run", progress=False)


def test_a_run_loads_its_folder_again(trained, photos):
    found = pyrovae.load(trained.path)
    assert torch.equal(found.measured.head(3).x, trained.measured.head(3).x)
    assert json.loads((trained.path / "config.json").read_text())["data"]["images"]["size"] == [
        8,
        8,
    ]
    os.unlink(photos / "07.jpg")
    with pytest.raises(InputError, match="not those that the run was trained on"):
        pyrovae.load(trained.path)


def test_a_run_is_measured_on_another_folder_or_a_single_picture(trained, tmp_path):
    paint(tmp_path / "other" / "one.png", size=(30, 20), channels=1)
    other = trained.on(tmp_path / "other")
    assert len(other.measured) == 1
    assert other.evaluate(num_samples=5).num_examples == 1


# ── The command line ──


def run(*words):
    """The exit code of a command."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0
    return 0


QUICK = ["--epochs", "2", "--hidden", "8", "--latent-dim", "2"]


@pytest.mark.parametrize("options", [[], ["--pad", "--grey"]])
def test_a_folder_is_trained_measured_and_shown(photos, cache, options, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr(cli.training, "FINAL_SAMPLES", 10)
    assert run("train", "photos/", "--size", "8x12", *options, *QUICK) == 0
    said = capsys.readouterr()
    shape, kind = ("1 x 8 x 12", "grey") if options else ("3 x 8 x 12", "colour")
    assert f"data     photos/, {shape}, {kind} values, 256 levels dequantised" in said.out
    assert "24 / 3 / 3" in said.out
    assert re.search(rf"cache    {made(cache)[0]}/images.raw \(0.0 MB\)", said.out)
    assert "bits per dim" in said.out
    assert "decoding 30 images" in said.err

    path = re.search(r"^run +(runs/photos-.*)$", said.out, re.M)[1]
    assert Path(path, "report.html").is_file()
    assert run("evaluate", path, "--num-samples", 5, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == 3
    shutil.rmtree(cache)  # the run makes it again, and nothing of that is in what a program reads
    assert run("evaluate", path, "--num-samples", 5, "--json", "--data", "photos") == 0
    assert json.loads(capsys.readouterr().out)["num_examples"] == 30
    assert run("reconstruct", path) == 0

    assert run("encode", path, "--data", "photos", "-o", "all.npz") == 0
    assert sorted(np.load("all.npz")["names"].tolist()) == sorted(p.name for p in photos.iterdir())


def test_each_row_knows_its_file(photos):
    found = load_data(photos, size=(8, 12))
    for split in found.splits.values():
        for row, name in enumerate(split.names.tolist()):
            pixels = decode(photos / name, (3, 8, 12), pad=False)
            assert np.array_equal(split.raw([row]).x[0].numpy(), pixels)
    assert sum(len(split.names) for split in found.splits.values()) == 30


def test_what_is_wrong_with_a_folder_is_said_in_two_sentences(photos, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    assert run("train", "photos") == 2
    assert re.search(r"30 different sizes.*--size 64", capsys.readouterr().err)
    truncated(photos / "z.png")
    assert run("train", "photos", "--size", "8") == 2
    assert re.search(r"1 file cannot be read: z.png \(.*--skip-bad", capsys.readouterr().err)
    assert run("train", "foto", "--size", "8") == 2
    assert "'foto' is neither a named data set, nor a folder" in capsys.readouterr().err
    assert run("train", "photos", "--data", "digits") == 2
    assert "twice" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_data_need_no_flag(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.training, "FINAL_SAMPLES", 10)
    assert run("train", "digits", *QUICK) == 0
    assert "data     digits" in capsys.readouterr().out

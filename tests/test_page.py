"""The report: one file that needs nothing, runs nothing and is never half written."""

import os
import re
from html.parser import HTMLParser

import matplotlib
import pytest
import torch

from pyrovae import plots
from pyrovae.errors import InputError
from pyrovae.page import Section, write_page

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = """</title><script>alert("1")</script>'&<img src=x onerror=alert(2)>$title"""


class Page(HTMLParser):
    """Tags, attributes and texts; balanced or an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def find(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return [data for name, data in self.texts if name == tag and data.strip()]


def curves():
    keys = ("train_elbo", "valid_elbo", "log_likelihood", "kl", "grad_norm", "kl_weight")
    return plots.curves([{"epoch": e, **{key: e / 10 for key in keys}} for e in range(1, 31)])


def write(path, **changes):
    options = {
        "title": "digits-vae",
        "lead": "A VAE on digits.",
        "facts": {"Program": "VAE", "Latent": "8 dimensions"},
        "numbers": [("Test ELBO", "−97.3", "± 0.4"), ("Bits per dim", "2.13", "")],
        "sections": [
            Section("Samples", "Draws from the prior.", plots.grid(torch.rand(2, 5, 1, 8, 8))),
            Section("Training", "First paragraph.\n\nSecond one.", curves()),
            Section("Latents", "", plots.latent_scatter(torch.randn(2500, 3))),
            Section("KL", "By dimension.", plots.kl_bars({"z": torch.rand(12)})),
            Section("Notes", "Nothing to see.", None),
        ],
        "provenance": {"seed": "0", "torch": "2.15", "command": "pyrovae train --seed 0"},
    }
    return write_page(path, **{**options, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs") / "report.html")


def test_a_report_needs_nothing_but_itself(whole):
    text = whole.read_text("utf-8")
    page = Page(text)

    assert not re.search(r"https?://", text)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert not re.search(r"@import|url\((?!#)", text)
    assert not page.find("script")
    assert not page.find("link")
    (policy,) = [m for m in page.find("meta") if "http-equiv" in m]
    assert policy["content"].startswith("default-src 'none'")
    assert whole.stat().st_size < 3e6


def test_a_report_says_everything_it_was_given(whole):
    page = Page(whole.read_text("utf-8"))

    assert page.find("html") == [{"lang": "en"}]
    assert page.text("title") == ["digits-vae"]
    assert page.text("h1") == ["digits-vae"]
    assert page.text("h2") == ["Samples", "Training", "Latents", "KL", "Notes", "Provenance"]
    assert page.text("dd") == ["VAE", "8 dimensions", "−97.3", "± 0.4", "2.13"]
    assert page.text("th") == ["seed", "torch"]
    assert all(attributes == {"scope": "row"} for attributes in page.find("th"))
    assert page.text("code") == ["pyrovae train --seed 0"]
    for paragraph in ("A VAE on digits.", "First paragraph.", "Second one.", "Nothing to see."):
        assert paragraph in page.text("p")


def test_curves_are_svg_with_text_and_pixels_are_images(whole):
    page = Page(whole.read_text("utf-8"))

    (image,) = page.find("img")
    assert image["alt"] == "Samples"
    assert image["src"].startswith("data:image/png;base64,iVBOR")
    assert [svg["aria-label"] for svg in page.find("svg")] == ["Training", "Latents", "KL"]
    assert "Log-likelihood term" in page.text("text")
    # The scatter of 2500 points is an image within its figure.
    assert len(page.find("image")) == 1
    assert len(page.find("use")) < 1000


def test_no_id_is_used_twice_and_every_reference_has_one(whole):
    text = whole.read_text("utf-8")
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    used = re.findall(r"url\(#([^)]*)\)", text)
    used += [a["xlink:href"][1:] for tag, a in page.tags if tag == "use"]

    assert len(ids) == len(set(ids))
    assert used
    assert set(used) <= set(ids)


def test_text_from_outside_is_inert(tmp_path):
    labelled = plots.grid(torch.rand(2, 2, 3), rows=[EVIL, 'id="a"'])
    path = write(
        tmp_path / "report.html",
        title=EVIL,
        lead=EVIL,
        facts={EVIL: EVIL},
        numbers=[(EVIL, EVIL, EVIL)],
        sections=[
            Section(EVIL, EVIL, plots.grid(torch.rand(1, 1, 1, 8, 8))),
            Section(EVIL, EVIL, labelled),
        ],
        provenance={EVIL: EVIL, "command": EVIL},
    )
    page = Page(path.read_text("utf-8"))

    assert not page.find("script")
    assert len(page.find("img")) == 1
    assert all("onerror" not in attributes for _, attributes in page.tags)
    for tag in ("title", "h1", "dt", "dd", "h2", "th", "td", "code", "text"):
        assert EVIL in page.text(tag), tag
    assert 'id="a"' in page.text("text")
    assert page.find("img")[0]["alt"] == EVIL


def test_an_empty_report_is_a_page(tmp_path):
    path = write(tmp_path / "r.html", lead="", facts={}, numbers=[], sections=[], provenance={})
    page = Page(path.read_text("utf-8"))

    assert page.text("h1") == ["digits-vae"]
    assert not page.find("section")
    assert not page.find("dl")
    assert not page.find("table")


def test_a_command_alone_is_provenance(tmp_path):
    page = Page(write(tmp_path / "r.html", provenance={"command": "ls"}).read_text("utf-8"))

    assert page.text("code") == ["ls"]
    assert not page.find("table")


def test_equal_reports_are_equal_bytes(tmp_path):
    first, second = (
        write(tmp_path / f"{name}.html", sections=[Section("Training", "", curves())])
        for name in "ab"
    )

    assert first.read_bytes() == second.read_bytes()


def test_folders_are_made_and_names_may_be_odd(tmp_path):
    path = write(tmp_path / "a" / "b" / "r.html", title="run-\udcff")

    assert "run-?" in path.read_text("utf-8")


def test_a_write_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device") as caught:
        write(path, sections=[])

    assert str(path) in caught.value.cause
    assert caught.value.remedy
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "report.html", sections=[])


def test_a_heavy_figure_is_compressed(tmp_path):
    noise = plots.grid(torch.rand(10, 10, 3, 64, 64))
    lines = plots.grid(torch.randn(20, 20, 64))
    path = write(tmp_path / "r.html", sections=[Section("A", "", noise), Section("B", "", lines)])

    assert path.stat().st_size < 3e6
    assert Page(path.read_text("utf-8")).find("img")[0]["src"].startswith("data:image/jpeg")


def test_a_report_changes_no_global_setting(tmp_path):
    before = dict(matplotlib.rcParams)
    write(tmp_path / "r.html")

    assert dict(matplotlib.rcParams) == before

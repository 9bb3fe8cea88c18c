"""The tutorial says what its code does, in formulas that can be shown and of names that exist."""

import importlib.util
import re
from pathlib import Path

import documents
import pytest
from matplotlib.mathtext import MathTextParser
from mutants import MUTANTS

from pyrovae.plots import style

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
TEXT = TUTORIAL.read_text()
PROSE = documents.FENCED.sub("", TEXT)
DISPLAYED = re.findall(r"^\$\$(.*)\$\$$", PROSE, re.M)
INLINE = re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", PROSE)


@pytest.fixture(scope="module")
def found():
    return documents.run(TUTORIAL)


def test_the_code_prints_what_the_tutorial_says(found):
    outputs, _ = found
    assert len(outputs) > 15
    differences = [
        f"docs/tutorial.md:{line} {documents.difference(printed, written or '')}"
        for line, printed, written in outputs
        if documents.difference(printed, written or "")
    ]
    assert not differences, "\n".join(differences)


def test_every_output_that_is_shown_is_that_of_a_block():
    pairs = [block["text"] for block in documents.BLOCK.finditer(TEXT)]
    shown = documents.blocks(TEXT, "text")
    assert shown == [text for text in pairs if text is not None]


@pytest.mark.parametrize(
    ("printed", "written", "agree"),
    [
        ("ELBO -25.1, K 10", "ELBO -25.1, K 10", True),
        ("ELBO -25.1", "ELBO -25.3", True),
        ("ELBO -25.1", "ELBO -25.4", False),
        ("ELBO -25.1", "ELBO 25.1", False),
        ("1 of 20", "2 of 20", False),
        ("ELBO -25.1", "bound -25.1", False),
        ("a\nb", "a", False),
        ("a", "a\nb", False),
        ("1 x 28", "1  x 28", True),
    ],
)
def test_outputs_agree_in_words_and_to_rounding(printed, written, agree):
    assert (documents.difference(printed, written) is None) is agree


def test_what_the_code_prints_is_written_into_a_document(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(
        "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n\nend\n"
    )
    before = documents.run(path)[0]
    documents.rewrite(path)
    after = documents.run(path)[0]
    assert [(o.printed, o.written) for o in before] == [("", None), ("1\n", "2\n")]
    assert [(o.printed, o.written) for o in after] == [("", None), ("1\n", "1\n")]
    assert path.read_text().endswith("```text\n1\n```\n\nend\n")


def test_the_numbers_in_the_prose_are_those_of_the_code(found):
    names = found[1]
    scale, beta = names["meaning"](0.00025, 3 * 64 * 64, reduction="mean")
    assert f"{beta:.3f}" == "1.536"
    assert f"{scale:.2f}" == "1.24"
    assert all(number in PROSE for number in ("1.536", "1.24", "12288", "0.0000016"))
    assert names["meaning"](2 * 0.1**2 / 12288, 12288, reduction="mean")[0] == pytest.approx(0.1)
    assert f"{2 * 0.1**2 / 12288:.7f}" == "0.0000016"
    assert len(names["grid"]()[0]) == 90_601
    assert "90,601" in PROSE


def test_the_tests_and_the_bugs_that_it_names_exist():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    rows = re.findall(r"^\| .* \| (.*) \| `(test_\w+)` \|$", PROSE, re.M)
    assert len(rows) > 15
    for bug, test in rows:
        assert bug in {mutant.name for mutant in MUTANTS}
        assert f"def {test}(" in tests


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", PROSE)
    headings = re.findall(r"^#+ (.*)$", PROSE, re.M)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    assert len(links) > 15
    for link in links:
        assert link[1:] in anchors if link[0] == "#" else (DOCS / link).exists(), link


def test_every_section_is_in_the_contents():
    sections = re.findall(r"^## (\d+)\. (.*)$", PROSE, re.M)
    contents = re.findall(r"^(\d+)\. \[(.*)\]\(", PROSE, re.M)
    assert sections == contents


@pytest.mark.parametrize("formula", sorted({*DISPLAYED, *INLINE}))
def test_a_formula_can_be_shown(formula):
    # Markdown takes a backslash before punctuation away; GitHub knows no macros of ours.
    assert not re.search(r"\\[^a-zA-Z]", formula)
    assert not re.search(r"\\(operatorname|mbox|phantom|newcommand|def)\b", formula)
    assert "|" not in formula
    drawn = formula.replace(r"\parallel", r"\Vert").replace(r"\qquad", r"\quad")
    MathTextParser("agg").parse(f"${drawn}$")


def test_no_formula_is_left_open():
    text = re.sub(r"`[^`\n]*`", "", PROSE)
    assert all(line.count("$") % 2 == 0 for line in text.splitlines())


def test_its_pictures_are_drawn_from_its_code(found):
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    t = found[1]
    tools = t["log_joint"], t["grid"], t["kl_to_posterior_on_grid"]
    images = t["test"].x[list(figures.SHOWN)]
    first = figures.posteriors(*tools, t["vae"], images)
    kls = t["kl_to_posterior_on_grid"](t["vae"], images)
    assert [axes.get_title(loc="right") for axes in first.axes[3:]] == [f"KL {k:.1f}" for k in kls]
    for picture in (first, figures.latent_space(t["vae"], t["test"])):
        assert len(style.png(picture)) > 10_000
    pictures = re.findall(r"\]\((.*\.png)\)", PROSE)
    assert pictures == ["tutorial-posteriors.png", "tutorial-latents.png"]
    for name in pictures:
        assert (DOCS / name).stat().st_size < 150_000

"""A translation has the commands, code, numbers and links of its original, section by section.

Where README.md has changed, these tests name what README.ko.md has to follow.
"""

import re
from collections import Counter
from pathlib import Path

import documents
import pytest

ROOT = Path(__file__).parent.parent
ORIGINAL = (ROOT / "README.md").read_text()
TRANSLATED = (ROOT / "README.ko.md").read_text()
# What stands in both, word for word: code spans, the addresses of links, and numbers.
KEPT = {
    "code": r"`([^`]+)`",
    "links": r"\]\(([^)]+)\)",
    "numbers": r"(?<![\w.])[+-]?\d+(?:[.,]\d+)*",
}


def sections(text):
    """The parts of a document under its headings of the second level, the first without one."""
    parts, fenced = [[]], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            parts.append([])
        parts[-1].append(line)
    return ["\n".join(lines) for lines in parts]


def tables(text):
    """The tables of a document, each a list of rows of cells."""
    found = re.findall(r"(?:^\|.*\|\n?)+", documents.FENCED.sub("", text), re.M)
    rows = [[line.strip()[1:-1].split("|") for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in table] for table in rows]


def kept(text, kind):
    """What of a kind a translation keeps, and how often; a line may be broken elsewhere."""
    text = documents.FENCED.sub("", text)
    if kind == "numbers":
        text = re.sub(r"`[^`]+`|\]\([^)]+\)", " ", text)
    return Counter(" ".join(found.split()) for found in re.findall(KEPT[kind], text))


def difference(original, translated, kind, place):
    """What a translation lacks or has too much of, in words; an empty text where nothing."""
    a, b = kept(original, kind), kept(translated, kind)
    lacks, more = sorted((a - b).elements()), sorted((b - a).elements())
    return f"README.ko.md, {place}: lacks the {kind} {lacks}, has too many {more}" * (a != b)


def languages(text):
    """A text in which the links to the document's other languages are one."""
    return re.sub(r"^\[.*\]\(README(\.ko)?\.md\)$", "", text, flags=re.M)


def pairs():
    originals, translations = sections(languages(ORIGINAL)), sections(languages(TRANSLATED))
    names = [part.splitlines()[0] for part in originals]
    return list(zip(names, originals, translations, strict=False))


def test_the_sections_are_those_of_the_original():
    headings = [
        [part.splitlines()[0] for part in sections(text)[1:]] for text in (ORIGINAL, TRANSLATED)
    ]
    assert len(headings[0]) == len(headings[1]), f"{headings[0]} beside {headings[1]}"


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("pair", pairs(), ids=lambda pair: pair[0].strip("# "))
def test_a_section_keeps(pair, kind):
    name, original, translated = pair
    found = difference(original, translated, kind, f"section {name!r}")
    assert not found, found


def test_the_blocks_of_code_are_those_of_the_original():
    originals, translations = (documents.FENCED.findall(t) for t in (ORIGINAL, TRANSLATED))
    lacks = [code for code in originals if code not in translations]
    more = [code for code in translations if code not in originals]
    assert not lacks, f"README.ko.md lacks the block {lacks[0][1]}"
    assert not more, f"README.ko.md has a block that README.md lacks: {more[0][1]}"
    assert originals == translations, "the blocks of README.ko.md are in another order"


def test_the_tables_are_those_of_the_original():
    originals, translations = tables(ORIGINAL), tables(TRANSLATED)
    assert len(originals) == len(translations) > 5
    for number, (a, b) in enumerate(zip(originals, translations, strict=True), 1):
        sizes = [[len(row) for row in table] for table in (a, b)]
        assert sizes[0] == sizes[1], f"README.ko.md, table {number}: {a[0]}"
        for row, other in zip(a, b, strict=True):
            for cell, cell_there in zip(row, other, strict=True):
                for kind in KEPT:
                    place = f"table {number}, row {row[0]!r}"
                    found = difference(cell, cell_there, kind, place)
                    assert not found, found


def test_each_leads_to_the_other():
    assert "[한국어](README.ko.md)" in ORIGINAL.splitlines()[:4]
    assert "[English](README.md)" in TRANSLATED.splitlines()[:4]


def test_the_prose_is_translated():
    prose = re.sub(r"`[^`]*`|\([^)]*\)", "", documents.FENCED.sub("", TRANSLATED))
    assert len(re.findall(r"[가-힣]", prose)) > 3000
    for part in sections(TRANSLATED)[1:]:
        assert re.search(r"[가-힣]", part.splitlines()[0]), part.splitlines()[0]


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("numbers", "-84.43", "-84.34"),
        ("numbers", "1,797", "1797"),
        ("numbers", "+- 0.25", "+- 0.26"),
        ("code", "`--trust-source`", "`--trust`"),
        ("links", "(docs/variants.md)", "(docs/variant.md)"),
    ],
)
def test_what_differs_is_named(kind, old, new):
    assert old in ORIGINAL
    found = difference(ORIGINAL, ORIGINAL.replace(old, new), kind, "here")
    assert found.startswith("README.ko.md, here: lacks")
    assert re.sub(r"[`()+ ]|\+-", "", old).lstrip("-") in found
    assert difference(ORIGINAL, ORIGINAL.replace("a", "A"), "numbers", "here") == ""

"""The pages made from the docstrings have every public name, and its formulas as they are."""

import html
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import pyrovae

pytest.importorskip("pdoc")

SCRIPT = Path(__file__).parent.parent / "docs" / "api.py"


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("api", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(api, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    api.write(folder)
    return folder


def page(folder, name):
    return (folder / name.replace(".", "/")).with_suffix(".html").read_text()


@pytest.mark.parametrize("name", pyrovae.__all__)
def test_every_public_name_is_there(name, pages):
    home = pyrovae._HOME[name]
    assert f'<section id="{name}">' in page(pages, home)
    link = f'href="{home.replace(".", "/")}.html#{name}"'
    assert link in page(pages, "pyrovae")


@pytest.mark.parametrize("name", pyrovae.__all__)
def test_its_formulas_are_left_to_mathjax(name, pages):
    doc = inspect.getdoc(getattr(pyrovae, name))
    formulas = re.findall(r"\$\$[^$]+\$\$|(?<!\$)\$[^$]+\$(?!\$)", re.sub("`[^`]*`", "", doc))
    shown = re.sub(r"\s+", " ", html.unescape(page(pages, pyrovae._HOME[name])))
    assert [f for f in formulas if re.sub(r"\s+", " ", f) not in shown] == []


def test_formulas_were_looked_for():
    docs = [inspect.getdoc(getattr(pyrovae, name)) for name in pyrovae.__all__]
    assert sum("$" in doc for doc in docs) > 60


def test_markdown_leaves_formulas_and_code_alone(api):
    class Page(str):
        toc_html = None

    seen = []

    def to_html(text):
        seen.append(text)
        page = Page(text.replace("*", "<em>").replace("`", "<code>"))
        page.toc_html = "contents"
        return page

    found = api.keeping_maths(to_html)("*a* $(*, x) < y$ `$HOME` $$\n*\n$$ and `$`")
    code = ("<code>$HOME<code>", "<code>$<code>")
    assert found == f"<em>a<em> $(*, x) &lt; y$ {code[0]} $$\n*\n$$ and {code[1]}"
    assert found.toc_html == "contents"
    assert "(" not in seen[0]


def test_the_first_page_leads_to_the_list_and_the_search_has_its_index(pages):
    assert "./pyrovae.html" in (pages / "index.html").read_text()
    assert "GaussianMixture" in (pages / "search.js").read_text()
    assert "MathJax" in page(pages, "pyrovae")


def test_no_placeholder_of_a_formula_is_left(pages):
    for path in pages.rglob("*.html"):
        assert not re.search(r"formula\d+held", path.read_text()), path


def test_attributes_without_words_and_inherited_words_are_left_out(pages):
    models = page(pages, "pyrovae.models")
    assert 'id="VAE.encoder"' not in models
    assert 'id="VAE.__init__"' in models
    assert "Initialize internal Module state" not in models
    assert 'id="Bound.needs_gradients"' in page(pages, "pyrovae.bounds")


def test_the_pages_are_not_kept_in_the_repository():
    assert "docs/api/" in (SCRIPT.parent.parent / ".gitignore").read_text().splitlines()

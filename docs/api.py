"""The pages of the public names, made from their docstrings by pdoc.

python docs/api.py

writes them to docs/api; index.html is the first. Their formulas are set by MathJax, from the net.
"""

import html
import inspect
import re
from pathlib import Path

import pdoc

import pyrovae

HERE = Path(__file__).parent
# In code a dollar is a dollar.
MATHS = re.compile(r"(?P<code>```.*?```|`[^`\n]*`)|\$\$.+?\$\$|\$[^$\n]+(?:\n[^$\n]+)?\$", re.S)
HELD = "formula{}held"


def contents():
    """The public names by their home, each with the first paragraph of its docstring."""
    lines, before = [], None
    for name, home in pyrovae._HOME.items():
        if home != before:
            lines += ["", f"## {home.removeprefix('pyrovae.')}", ""]
        first = inspect.getdoc(getattr(pyrovae, name)).split("\n\n")[0]
        lines.append(f"- `{home}.{name}`: {' '.join(first.split())}")
        before = home
    return "\n".join(lines)


def keeping_maths(to_html):
    """A filter from Markdown to HTML that leaves the formulas to MathJax."""

    def convert(text):
        formulas = []

        def hold(found):
            if found["code"]:
                return found[0]
            formulas.append(html.escape(found[0]))
            return HELD.format(len(formulas) - 1)

        page = to_html(MATHS.sub(hold, text))
        given = re.sub(HELD.format(r"(\d+)"), lambda number: formulas[int(number[1])], page)
        restored = type(page)(given)
        restored.toc_html = page.toc_html
        return restored

    return convert


def without_noise(module):
    """Without attributes that have nothing to say, and constructors' words of other classes."""
    for each in (member for member in module.members.values() if member.kind == "class"):
        each.members = {
            name: member
            for name, member in each.members.items()
            if member.docstring or member.kind != "variable"
        }
        if "__init__" in each.members:
            each.members["__init__"].docstring = each.obj.__init__.__doc__ or ""
    return module


def write(folder):
    """Writes a page for each module where public names live, and a first one that lists them."""
    pdoc.render.configure(docformat="google", math=True)
    homes = dict.fromkeys(pyrovae._HOME.values())
    pages = {"pyrovae": pdoc.doc.Module.from_name("pyrovae")}
    pages["pyrovae"].docstring += "\n" + contents()
    pages["pyrovae"].members = {}
    pages |= {home: without_noise(pdoc.doc.Module.from_name(home)) for home in homes}

    filters = pdoc.render.env.filters
    before = filters["to_html"]
    filters["to_html"] = keeping_maths(before)
    try:
        for name, module in pages.items():
            path = (folder / name.replace(".", "/")).with_suffix(".html")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pdoc.render.html_module(module, pages))
    finally:
        filters["to_html"] = before
    (folder / "index.html").write_text(pdoc.render.html_index(pages))
    (folder / "search.js").write_text(pdoc.render.search_index(pages))


if __name__ == "__main__":
    write(HERE / "api")
    print(HERE / "api" / "index.html")

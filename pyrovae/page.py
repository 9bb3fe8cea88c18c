"""A page: one HTML file that needs nothing else, to read, print or send.

Curves are inline SVG, grids of images are PNG within the page; there is no script, and every
text that comes from outside is escaped.
"""

__all__ = ["Section", "write_page"]

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from pyrovae import plots
from pyrovae.errors import InputError, unwritable
from pyrovae.plots.style import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What one figure may weigh, in bytes; heavier ones are compressed further.
FIGURE_LIMIT = 400_000


class Section(NamedTuple):
    """A card of the report.

    Attributes:
        title: Its heading.
        text: Its caption, or all its text; blank lines part paragraphs.
        figure: Its figure, if it has one.
    """

    title: str
    text: str
    figure: "Figure | None" = None


def write_page(
    path: str | Path,
    *,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    numbers: Sequence[tuple[str, str, str]],
    sections: Sequence[Section],
    provenance: Mapping[str, str],
) -> Path:
    """Writes a report in one file. An older one stands until the new one is whole.

    Args:
        path: The file, ending in .html.
        title: The name of the run.
        lead: One sentence beneath it.
        facts: What the run was: the program, the data and so on.
        numbers: What it found: a label, a value and a note each, which may be empty.
        sections: The cards, in order.
        provenance: Where the numbers come from; the value of "command" has a block of its own.

    Raises:
        InputError: If the file cannot be written.
    """
    command = provenance.get("command", "")
    others = {name: value for name, value in provenance.items() if name != "command"}
    page = PAGE.substitute(
        style=STYLE,
        title=escape(title),
        lead=f'<p class="lead">{escape(lead)}</p>' if lead else "",
        facts=_facts(facts),
        numbers=_numbers(numbers),
        sections="\n".join(_section(index, section) for index, section in enumerate(sections)),
        provenance=_provenance(others, command),
    )
    return _write(Path(path), page)


def _write(path: Path, page: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of a file may hold bytes that are no text.
        temporary.write_bytes(page.encode("utf-8", "replace"))
        os.replace(temporary, path)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        instead = "another path; an earlier report is untouched"
        raise unwritable(InputError, f"The report {path}", error, instead) from error
    return path


# ── Pieces of the page ───────────────────────────────────────────────────────────────────────


def _facts(facts: Mapping[str, str]) -> str:
    items = (f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in facts.items())
    return f'<dl class="facts">{"".join(items)}</dl>' if facts else ""


def _numbers(numbers: Sequence[tuple[str, str, str]]) -> str:
    def tile(label: str, value: str, note: str) -> str:
        below = f'<dd class="note">{escape(note)}</dd>' if note else ""
        return f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd>{below}</div>"

    tiles = "\n".join(tile(*number) for number in numbers)
    return f'<dl class="numbers">\n{tiles}\n</dl>' if numbers else ""


def _section(index: int, section: Section) -> str:
    heading = f"<h2>{escape(section.title)}</h2>"
    paragraphs = re.split(r"\n\s*\n", section.text.strip())
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs if paragraph)
    if section.figure is not None:
        drawing = _drawing(section.figure, section.title, f"figure-{index}")
        text = f"<figure>\n{drawing}\n<figcaption>{text}</figcaption>\n</figure>"
    return f'<section class="card">\n{heading}\n{text}\n</section>'


def _provenance(rows: Mapping[str, str], command: str) -> str:
    def row(name: str, value: str) -> str:
        return f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'

    table = "\n".join(row(name, value) for name, value in rows.items())
    parts = [
        f"<table>\n<tbody>\n{table}\n</tbody>\n</table>" if rows else "",
        f"<h3>Command</h3>\n<pre><code>{escape(command)}</code></pre>" if command else "",
    ]
    if not any(parts):
        return ""
    return '<section class="card">\n<h2>Provenance</h2>\n' + "\n".join(parts) + "\n</section>"


# ── Figures ──────────────────────────────────────────────────────────────────────────────────


def _drawing(figure: "Figure", title: str, name: str) -> str:
    """A figure as inline SVG, or as an image where it consists of pixels."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    # Scrolled rather than shrunk further: its labels could not be read.
    size = f'width="{width}" height="{height}"'
    if figure.texts or any(axes.axison for axes in figure.axes):
        size += f' style="min-width: {0.62 * width:.0f}px"'

    if not any(axes.images for axes in figure.axes):
        drawing = _svg(figure, name, f'role="img" aria-label="{escape(title)}" {size}')
        if len(drawing) <= FIGURE_LIMIT:
            return f'<div class="plate">{drawing}</div>'

    kind, content = _pixels(figure)
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return f'<div class="plate"><img alt="{escape(title)}" {size} src="{source}"></div>'


def _pixels(figure: "Figure") -> tuple[str, bytes]:
    """The kind and the content of an image file: a large photograph is no PNG."""
    from PIL import Image

    content = plots.png(figure)
    if len(content) <= FIGURE_LIMIT:
        return "png", content

    image = Image.open(io.BytesIO(content)).convert("RGB")
    for quality in (90, 75, 60):
        file = io.BytesIO()
        image.save(file, "jpeg", quality=quality, optimize=True)
        if file.tell() <= FIGURE_LIMIT:
            break
    return "jpeg", file.getvalue()


def _svg(figure: "Figure", name: str, attributes: str) -> str:
    """A figure as SVG within HTML: text as text, and no id that another figure has."""
    import matplotlib

    file = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", dpi=DPI, facecolor="none", metadata=empty)

    def local(tag: re.Match[str]) -> str:
        return re.sub(r'(\bid="|url\(#|\bhref="#)', rf"\g<1>{name}-", tag[0])

    body = re.sub(r"^.*?<svg[^>]*>", "", file.getvalue(), count=1, flags=re.DOTALL)
    # Its style sheet would hold for the whole page.
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", local, body)
    width, height = (72 * inches for inches in figure.get_size_inches())
    return f'<svg viewBox="0 0 {width:.6g} {height:.6g}" {attributes}>{body.strip()}'


# ── The page ─────────────────────────────────────────────────────────────────────────────────

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --ink: #1d2128; --muted: #616875; --rule: #e3e5e9;
  --code: #f4f5f7; --shadow: 0 1px 2px rgb(20 24 32 / 6%);
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #111317; --card: #1a1d23; --ink: #e6e8ec; --muted: #9aa1ad; --rule: #2c3038;
    --code: #111317; --shadow: none;
  }
}
@media screen and (prefers-color-scheme: dark) {
  .plate { padding: 0.75rem; border-radius: 0.5rem; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100%;
}
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.25rem 4rem; }
h1, h2, h3, p, dl, dd, figure { margin: 0; padding: 0; }
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; letter-spacing: -0.02em; }
h2 { font-size: 1.15rem; line-height: 1.3; letter-spacing: -0.01em; margin-bottom: 1rem; }
h3 { font-size: 0.85rem; font-weight: 600; color: var(--muted); margin: 1.5rem 0 0.5rem; }
.lead { max-width: 42rem; margin-top: 0.75rem; font-size: 1.15rem; color: var(--muted); }
.facts { display: flex; flex-wrap: wrap; gap: 0.75rem 2rem; margin-top: 1.5rem; }
.facts dt { font-size: 0.8rem; color: var(--muted); }
.facts dd { font-weight: 500; }
.card, .numbers div {
  background: var(--card); border: 1px solid var(--rule); border-radius: 0.75rem;
  box-shadow: var(--shadow);
}
.numbers {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.75rem;
  margin-top: 2rem;
}
.numbers div { padding: 1rem 1.1rem; }
.numbers dt { font-size: 0.85rem; font-weight: 500; color: var(--muted); }
.numbers dd {
  font-size: 1.7rem; font-weight: 600; line-height: 1.35; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums;
}
.numbers .note {
  font-size: 0.8rem; font-weight: 400; line-height: 1.4; letter-spacing: 0; color: var(--muted);
  text-wrap: balance;
}
.card { margin-top: 1.25rem; padding: 1.5rem; }
.card p { max-width: 42rem; }
.card p + p { margin-top: 0.75rem; }
/* The shadows show at an edge beyond which there is more of a curve to scroll to. */
.plate {
  width: fit-content; max-width: 100%; margin: 0 auto; overflow-x: auto; background:
    linear-gradient(to right, #fff 40%, transparent) left / 2rem 100% no-repeat local,
    linear-gradient(to left, #fff 40%, transparent) right / 2rem 100% no-repeat local,
    linear-gradient(to right, rgb(20 24 32 / 16%), transparent) left / 0.7rem 100% no-repeat,
    linear-gradient(to left, rgb(20 24 32 / 16%), transparent) right / 0.7rem 100% no-repeat,
    #fff;
}
.plate img, .plate svg { display: block; max-width: 100%; height: auto; }
.plate svg text { font-family: system-ui, "Segoe UI", Roboto, Arial, sans-serif !important; }
.plate svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin-top: 1rem; font-size: 0.925rem; color: var(--muted); }
table { width: 100%; border-collapse: collapse; font-size: 0.925rem; }
th, td { padding: 0.5rem 0; border-top: 1px solid var(--rule); vertical-align: top; }
tr:first-child > * { border-top: 0; }
th { width: 34%; padding-right: 1rem; text-align: left; font-weight: 400; color: var(--muted); }
pre {
  margin: 0; padding: 0.9rem 1rem; background: var(--code); border-radius: 0.5rem;
  font: 0.85rem/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
}
code { font: inherit; }
footer { margin-top: 2rem; font-size: 0.8rem; color: var(--muted); }
@media (max-width: 34rem) {
  main { padding: 2rem 0.9rem 3rem; }
  .card { padding: 1.1rem; }
  .numbers { grid-template-columns: 1fr 1fr; }
  .numbers dd:not(.note) { font-size: 1.4rem; }
}
@media print {
  :root { --page: #fff; --shadow: none; }
  main { max-width: none; padding: 0; }
  .card, .numbers div { break-inside: avoid; }
}
"""

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
$lead
$facts
</header>
$numbers
$sections
$provenance
<footer>Written by pyrovae.</footer>
</main>
</body>
</html>
""")

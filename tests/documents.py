r"""Documents whose code runs, and prints what they say it prints.

The blocks marked `python` of a document run one after the other, in one namespace. Where a block
marked `text` follows directly, it is what the code printed: the same words, and the same numbers
to within two units of their last digit, which is what another machine's rounding may change.

`python tests/documents.py docs/tutorial.md` writes what the code prints now into a document.
"""

import contextlib
import io
import re
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<text>.*?)^```\n)?", re.M | re.S
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)")


class Output(NamedTuple):
    """What a block of code printed, and what the document says: None if nothing."""

    line: int
    printed: str
    written: str | None


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [block for name, block in FENCED.findall(text) if name == language]


def run(path: Path) -> tuple[list[Output], dict[str, Any]]:
    """What the code blocks of a document print, and the names that they define."""
    names: dict[str, Any] = {"__name__": path.stem}
    text, found = path.read_text(), []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        # The line numbers of a traceback are those of the document.
        code = compile("\n" * line + block["code"], str(path), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, names)
        found.append(Output(line, output.getvalue(), block["text"]))
    return found, names


def difference(printed: str, written: str) -> str | None:
    """The first line in which two outputs differ by more than rounding, or None."""
    pairs = zip_longest(printed.splitlines(), written.splitlines(), fillvalue="nothing at all")
    for said, expected in pairs:
        words = [NUMBER.sub("#", line).split() for line in (said, expected)]
        numbers = zip(NUMBER.findall(said), NUMBER.findall(expected), strict=False)
        if words[0] != words[1] or not all(agree(a, b) for a, b in numbers):
            return f"prints {said!r}, and the document says {expected!r}"
    return None


def agree(a: str, b: str) -> bool:
    """Whether two numbers are the same: if they are no whole numbers, to two units at the end."""
    if "." not in b:
        return a == b
    unit = 10.0 ** -len(b.partition(".")[2])
    return abs(float(a) - float(b)) < 2.5 * unit


def rewrite(path: Path) -> None:
    """Writes what the code prints into the document."""
    outputs = iter(run(path)[0])

    def updated(block: re.Match[str]) -> str:
        shown = f"```python\n{block['code']}```\n"
        printed = next(outputs).printed
        return f"{shown}\n```text\n{printed}```\n" if printed else shown

    path.write_text(BLOCK.sub(updated, path.read_text()))


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]))

"""Tables: columns of numbers and of categories, from text to rows of numbers, and back."""

__all__ = ["SUFFIXES", "Column", "Table", "as_config", "from_config", "read", "summary", "write"]

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyrovae.errors import InputError

SUFFIXES = (".csv", ".tsv")
KINDS = ("numeric", "whole", "binary", "categorical", "ignore")
OF_NUMBERS = ("numeric", "whole")
# What stands for a missing entry: the marks of pandas.read_csv, and two more.
MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a"
    "|nan|null|?|NAN".split("|")
)
DELIMITERS = ",;\t|"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
HANGUL = re.compile("[가-힣]")
LARGEST = float(np.finfo(np.float32).max)
# Texts of more kinds than this are names or sentences, unless the user says otherwise.
MOST_CATEGORIES = 1000
# So are more than these, where there are more of them than half the entries.
MOST_UNREPEATED = 50
# Where more of a column's entries than this are numbers, the others are slips.
MOSTLY_NUMBERS = 0.8
# How many names, and how many slips, a line mentions.
NAMED_COLUMNS = 12
NAMED_SLIPS = 3


@dataclass(frozen=True)
class Column:
    """A column of a table, numbers or categories.

    Attributes:
        name: Its name.
        categories: What its codes 0, 1, ... stand for; none where it holds numbers.
        whole: Whether its numbers are written as whole ones, as those were that it was made of.

    Example:
        >>> job = Column("job", ("clerk", "farmer", "nurse"))
        >>> age = Column("age", whole=True)
        >>> job.codes, job.text(1.0), Column("size").text(1.5), age.text(38.4)
        (3, 'farmer', '1.5', '38')
    """

    name: str
    categories: tuple[str, ...] = ()
    whole: bool = False

    @property
    def codes(self) -> int:
        """The number of codes, 0 for real numbers, as `TabularDecoder` takes it."""
        return len(self.categories)

    @property
    def kind(self) -> str:
        """Numeric, whole, binary or categorical."""
        return {0: OF_NUMBERS[self.whole], 2: "binary"}.get(self.codes, "categorical")

    def numbers(self, texts: Sequence[str], path: Path) -> np.ndarray:
        """What its entries are as numbers, NaN where one is missing.

        Raises:
            InputError: If one is neither missing nor what the column holds.
        """
        if self.categories:
            code = {text: float(i) for i, text in enumerate(self.categories)}
        else:
            code = {text: float(text) for text in set(texts) if NUMBER.fullmatch(text)}
            code = {text: number for text, number in code.items() if abs(number) <= LARGEST}
        code |= dict.fromkeys(MISSING - code.keys(), np.nan)
        wrong = next((text for text in texts if text not in code), None)
        if wrong is not None:
            what = "one of its categories" if self.categories else "a number of float32"
            raise InputError(
                f"The column {self.name!r} of {path} holds {wrong!r}, which is not {what}.",
                "Mend the entry, leave it empty, or say what the column holds with --columns.",
            )
        return np.array([code[text] for text in texts])

    def text(self, number: float) -> str:
        """An entry as text: the digits of a float32, or the nearest whole number or category."""
        if np.isnan(number):
            return ""
        if self.whole:
            return str(round(number))
        if not self.categories:
            # By way of a float, which is written without an exponent up to 1e16.
            return str(float(str(np.float32(number)))).removesuffix(".0")
        return self.categories[int(np.clip(round(number), 0, self.codes - 1))]


class Table(NamedTuple):
    """A table as it was read.

    Attributes:
        columns: The columns that are used.
        rows: Their entries, (N, X), as numbers and codes; NaN where one is missing.
        notes: What is to be known of how it was read.
    """

    columns: tuple[Column, ...]
    rows: np.ndarray
    notes: tuple[str, ...]


Asked = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Column] | None


def read(path: Path, asked: Asked = None) -> Table:
    """Reads a file of comma- (or semicolon-, tab- or bar-) separated values.

    The first line names the columns. An entry that is empty, ?, or one of the marks of pandas
    (NA, NaN, null, None, N/A, ...) is missing. A column of two different texts is binary, of
    whole numbers whole, of other numbers numeric, and of other texts categorical; one of a single
    value, or of none, is left out.

    Args:
        path: The file, as UTF-8, UTF-16 or CP949, or else as Latin-1.
        asked: What columns hold, by name: one of `KINDS`, or the list of their categories; or the
            path of a JSON file that says so. Others are inferred. Or the columns themselves: then
            these alone are read, in their order.

    Raises:
        InputError: If it cannot be read, is no table, or a column is not what it is to be.
    """
    texts, notes = _texts(path)
    if isinstance(asked, list | tuple) and all(isinstance(c, Column) for c in asked):
        columns = tuple(asked)
        _check_names([column.name for column in columns], texts, path)
    else:
        kinds = _kinds(asked)
        _check_names(kinds, texts, path)
        found = {name: _column(name, texts[name], kinds.get(name), path) for name in texts}
        columns = tuple(column for column in found.values() if isinstance(column, Column))
        left_out = [f"{name} ({why})" for name, why in found.items() if isinstance(why, str)]
        notes += [f"left out: {_listed(left_out)}"] if left_out else []
    if not columns:
        raise InputError(f"{path} has no column to learn from.", "Give one of several values.")
    rows = np.stack([column.numbers(texts[column.name], path) for column in columns], 1)
    return Table(columns, rows, tuple(notes))


def write(
    columns: Sequence[Column],
    rows: np.ndarray,
    labels: Mapping[str, "Sequence[Any] | np.ndarray"] | None = None,
) -> str:
    """Rows (N, X) as comma-separated text under the names of their columns.

    Args:
        columns: What the rows hold.
        rows: Their entries, as numbers and codes.
        labels: What stands before them: columns of N texts or numbers that say which row is which,
            by name; an underscore is added to one that the table has.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [column.name for column in columns]
    labels = labels or {}
    writer.writerow([name + "_" * (name in names) for name in labels] + names)
    said = zip(*labels.values(), strict=True) if labels else [()] * len(rows)
    for first, row in zip(said, rows.tolist(), strict=True):
        texts = [c.text(number) for c, number in zip(columns, row, strict=True)]
        writer.writerow([*first, *texts])
    return file.getvalue()


def summary(columns: Sequence[Column]) -> str:
    """How many columns there are of each kind, and which.

    Example:
        >>> summary([Column("age"), Column("sex", ("f", "m")), Column("size")])
        '2 numeric (age, size), 1 binary (sex)'
    """
    of = {kind: [c for c in columns if c.kind == kind] for kind in KINDS}
    named = {
        kind: [f"{c.name}: {c.codes}" if kind == "categorical" else c.name for c in those]
        for kind, those in of.items()
    }
    return ", ".join(f"{len(n)} {kind} ({_listed(n)})" for kind, n in named.items() if n)


def as_config(columns: Sequence[Column]) -> dict[str, Any]:
    """Columns as plain data, which `read` takes as it takes a user's."""
    return {column.name: list(column.categories) or column.kind for column in columns}


def from_config(config: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns that `as_config` described.

    Raises:
        InputError: If it describes none.

    Example:
        >>> from_config({"age": "whole", "sex": ["f", "m"]}) == (
        ...     Column("age", whole=True), Column("sex", ("f", "m"))
        ... )
        True
    """
    kinds = _kinds(config)
    if wrong := [name for name, k in kinds.items() if k in KINDS and k not in OF_NUMBERS]:
        raise InputError(f"The categories of {wrong[0]!r} are not told.", "Give a list of them.")
    return tuple(
        Column(name, whole=kind == "whole") if kind in OF_NUMBERS else Column(name, tuple(kind))
        for name, kind in kinds.items()
    )


# ── From bytes to columns of text ────────────────────────────────────────────────────────────


def _texts(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The entries of each column, without the blanks around them."""
    content, notes = _decoded(path)
    first = next((line for line in content.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row and len(row) != len(rows[0] if rows else row):
                raise InputError(
                    f"Line {reader.line_num} of {path} has {len(row)} entries, and the first "
                    f"line has {len(rows[0])}.",
                    "Give every row one entry for each column.",
                )
            # An empty line, of a single column, is an empty entry.
            row = row or ([""] if rows and len(rows[0]) == 1 else [])
            rows += [[text.strip() for text in row]] if row else []
    except csv.Error as error:
        raise InputError(
            f"Line {reader.line_num} of {path} cannot be read ({error}).", "Mend its quotes."
        ) from error
    if len(rows) < 2:
        raise InputError(f"{path} has no rows.", "Give a line of names, and rows below it.")
    _check_header(rows[0], path)
    columns = zip(*rows[1:], strict=True)
    return dict(zip(rows[0], map(list, columns), strict=True)), notes


def _decoded(path: Path) -> tuple[str, list[str]]:
    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Check the path.")
    content, notes = path.read_bytes(), []
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        korean = _as_cp949(content)
        text, name = (korean, "CP949") if korean else (content.decode("latin-1"), "Latin-1")
        notes = [f"it is no UTF-8, and was read as {name}"]
    if "\0" in text:
        raise InputError(f"{path} is no text.", "Write the table as UTF-8.")
    return text, notes


def _as_cp949(content: bytes) -> str | None:
    """What it says in Korean, or None where it is none.

    Of what CP949 adds to EUC-KR, rare syllables, one alone may be two letters of Latin-1.
    """
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError:
        return None
    # EUC-KR spells those in eight bytes.
    common = (len(found.encode("euc_kr")) == 2 for found in HANGUL.findall(text))
    return text if any(common) else None


def _check_header(names: list[str], path: Path) -> None:
    for place, name in enumerate(names, start=1):
        if name in MISSING or NUMBER.fullmatch(name):
            raise InputError(
                f"The first line of {path} is to name its columns, and has {name!r} for column "
                f"{place}.",
                "Put a line of names above the rows; a column of row numbers is best left out.",
            )
        if names.index(name) < place - 1:
            raise InputError(
                f"Two columns of {path} are named {name!r}.", "Give each a name of its own."
            )


def _check_names(asked: "Sequence[str] | Mapping[str, Any]", texts: Any, path: Path) -> None:
    if lacking := [name for name in asked if name not in texts]:
        raise InputError(
            f"{path} has no column {lacking[0]!r}.",
            f"It has {_listed(list(texts))}: name these.",
        )


# ── What columns hold ────────────────────────────────────────────────────────────────────────


def _kinds(asked: Asked) -> dict[str, Any]:
    """What the user, or a run, says of columns: a kind or the list of categories of each."""
    if isinstance(asked, str | os.PathLike):
        try:
            asked = json.loads(Path(asked).read_text())
        except FileNotFoundError as error:
            raise InputError(f"There is no file {asked}.", "Check the path.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{asked} cannot be read ({type(error).__name__}: {error}).",
                'Write it as JSON, such as {"age": "numeric", "code": "ignore"}.',
            ) from error
    if not isinstance(asked, Mapping | None):
        raise InputError("What columns hold is no mapping.", 'Give {"age": "numeric", ...}.')
    for name, kind in (asked or {}).items():
        listed = isinstance(kind, list | tuple) and all(isinstance(k, str) for k in kind)
        if not (listed and len(set(kind)) == len(kind) >= 2) and kind not in KINDS:
            raise InputError(
                f"The column {name!r} is to be {kind!r}.",
                f"Take one of {', '.join(KINDS)}, or a list of two or more different categories.",
            )
    return dict(asked or {})


def _column(name: str, texts: list[str], asked: Any, path: Path) -> Column | str:
    """A column as it was asked for or as its entries are, or why it is left out."""
    if asked == "ignore":
        return "ignored"
    if isinstance(asked, list | tuple):
        return Column(name, tuple(asked))
    seen = set(texts) - MISSING
    if asked is not None and (not seen or (asked not in OF_NUMBERS and len(seen) < 2)):
        raise InputError(
            f"The column {name!r} of {path} is to be {asked}, and has {len(seen)} different "
            "values.",
            'Say "ignore" of it.',
        )
    are_numbers = all(NUMBER.fullmatch(text) for text in seen)
    if asked == "numeric":
        return Column(name)
    if asked == "whole":
        return _whole_column(name, seen, path)
    if asked == "binary" and len(seen) != 2:
        raise InputError(
            f"The column {name!r} of {path} is to be binary, and has {len(seen)} different "
            "values.",
            'Say "categorical" or "numeric" of it.',
        )
    if asked is None:
        if len(seen) < 2 or (are_numbers and len({float(text) for text in seen}) < 2):
            return "a single value" if seen else "all missing"
        if are_numbers and len(seen) > 2:
            return Column(name, whole=all(map(_is_whole, seen)))
        _check_categories(name, Counter(t for t in texts if t not in MISSING), path)
    return Column(name, tuple(sorted(seen, key=float if are_numbers else None)))


def _whole_column(name: str, seen: set[str], path: Path) -> Column:
    """A column that is to be of whole numbers; what is no number at all, its entries will say."""
    if parts := sorted(text for text in seen if NUMBER.fullmatch(text) and not _is_whole(text)):
        raise InputError(
            f"The column {name!r} of {path} is to be whole, and holds {parts[0]!r}.",
            'Say "numeric" of it.',
        )
    return Column(name, whole=True)


def _is_whole(text: str) -> bool:
    return float(text).is_integer()


def _check_categories(name: str, found: Mapping[str, int], path: Path) -> None:
    """Refuses texts, of so many entries each, that are most probably no categories."""
    entries = sum(found.values())
    others = {text: count for text, count in found.items() if not NUMBER.fullmatch(text)}
    have_commas = all(DECIMAL_COMMA.fullmatch(text) for text in others)
    if have_commas and len(others) == len(found):
        raise InputError(
            f"The column {name!r} of {path} holds numbers with decimal commas, such as "
            f"{min(others)!r}.",
            'Write them with points, or say "categorical" of it with --columns.',
        )
    are_few = sum(others.values()) < (1 - MOSTLY_NUMBERS) * entries
    if others and len(found) > 2 and (are_few or have_commas):
        raise InputError(
            f"The column {name!r} of {path} holds numbers, and {_slips(others)} of {entries:,} "
            "entries.",
            'Mend these, leave them empty, or say "categorical" of the column with --columns.',
        )
    if len(found) > MOST_CATEGORIES or len(found) > max(MOST_UNREPEATED, entries / 2):
        raise InputError(
            f"The column {name!r} of {path} holds {len(found):,} different texts in {entries:,} "
            f"entries, such as {min(found)!r}.",
            'Say "ignore" of it, or "categorical", in a file that --columns names.',
        )


def _slips(counts: Mapping[str, int]) -> str:
    """The most frequent of some texts, with their numbers.

    Example:
        >>> _slips({"-": 1, "1,234": 30})
        "'1,234' in 30, '-' in 1"
    """
    often = sorted(counts.items(), key=lambda item: -item[1])
    more = len(often) - NAMED_SLIPS
    listed = ", ".join(f"{text!r} in {count:,}" for text, count in often[:NAMED_SLIPS])
    return listed + (f" and {more:,} more" if more > 0 else "")


def _listed(names: Sequence[str]) -> str:
    """Names, the first of them where they are many."""
    more = len(names) - NAMED_COLUMNS
    return ", ".join(names[:NAMED_COLUMNS]) + (f" and {more:,} more" if more > 0 else "")

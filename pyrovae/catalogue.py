"""The parts that a word can name, and their options, read from their source.

The command line must answer `--help` before torch could be imported. What a part takes is
therefore read from its source rather than from the class: the arguments of its constructor
that have defaults are its options, the others are what the rest of a program supplies.
A new class in a folder's `__all__` is in the catalogue without another line.
"""

__all__ = ["KINDS", "Entry", "Option", "entries", "find", "read_class", "shorter"]

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pyrovae.errors import InputError

ROOT = Path(__file__).parent
# Where the classes of each kind are, and what their names end in.
KINDS: Mapping[str, tuple[str, str]] = {
    "prior": ("priors", "Prior"),
    "encoder": ("encoders", "Encoder"),
    "decoder": ("decoders", "Decoder"),
    "bound": ("bounds", ""),
    "kl": ("bounds/controls.py", ""),
}
# What the rest of a program can supply, by the name of the argument.
SUPPLIED = frozenset(
    {"net", "latent_dim", "x_shape", "prior", "encoder", "decoder", "exemplars", "columns"}
)
_WORDS = {"DReG": "dreg"}
# What a word without further choice stands for: of the flows the one that is fast both ways.
_SHORT = {"flow": "spline-flow"}
# What a program is, not what its user chooses.
_INTERNAL = frozenset({"vectorize_particles", "max_plate_nesting"})
_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "int | None": int | None,
    "float | None": float | None,
    "float | Tensor": float,
    "Sequence[int]": tuple[int, ...],
    "tuple[int, ...]": tuple[int, ...],
}


@dataclass(frozen=True)
class Option:
    """An argument that has a default.

    Attributes:
        name: Its name in the constructor.
        kind: Its type.
        default: Its default.
        help: What its docstring says, in one line.
    """

    name: str
    kind: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Entry:
    """A class that a word can name.

    Attributes:
        class_name: Its name.
        summary: The first line of its docstring.
        needs: The arguments without a default.
        options: The arguments with one that a command line can give.
    """

    class_name: str
    summary: str
    needs: tuple[str, ...]
    options: tuple[Option, ...]


@cache
def entries(kind: str) -> Mapping[str, Entry]:
    """The classes of a kind under the words that name them.

    Example:
        >>> entries("prior")["gaussian-mixture"].class_name
        'GaussianMixture'
        >>> [option.name for option in entries("prior")["gaussian-mixture"].options]
        ['components', 'spread']
    """
    place, suffix = KINDS[kind]
    classes, public = _classes(ROOT / place)
    found = {}
    for name in public & classes.keys():
        entry = _entry(_with_bases(classes[name], classes))
        # An encoder may be given a simpler one; no other part is made of one of its own kind.
        supplied = SUPPLIED if kind == "encoder" else SUPPLIED - {kind}
        if set(entry.needs) <= supplied and _is_of(kind, classes[name]):
            found[_word(name, suffix)] = entry
    return dict(sorted(found.items()))


def find(kind: str, word: str) -> Entry:
    """The class that a word names.

    Raises:
        InputError: If there is none.

    Example:
        >>> find("encoder", "flow").class_name
        'SplineFlowEncoder'
    """
    known = entries(kind)
    entry = known.get(_SHORT.get(word, word))
    if entry is None:
        raise InputError(
            f"There is no {kind} {word!r}.",
            f"Take one of {', '.join(known)}, or a class of your own as file.py:Class.",
        )
    return entry


def shorter(word: str) -> Sequence[str]:
    """The other words that name the same class."""
    return [short for short, long in _SHORT.items() if long == word]


def read_class(path: Path, name: str, kind: str) -> Entry | None:
    """What a class in a file of the user's own takes, or None where the file has none.

    Its bases are looked for in the file, and among the classes of the kind.
    """
    own = {n.name: n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)}
    ours, _ = _classes(ROOT / KINDS[kind][0])
    dotted = {f"pyrovae.{name}": node for name, node in ours.items()}
    return _entry(_with_bases(own[name], ours | dotted | own)) if name in own else None


def _classes(place: Path) -> tuple[dict[str, ast.ClassDef], set[str]]:
    """The classes of a folder, or of a file, by name, and which names are public."""
    index = place if place.is_file() else place / "__init__.py"
    files = [place] if place.is_file() else sorted(place.glob("[!_]*.py"))
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    return {n.name: n for n in nodes if isinstance(n, ast.ClassDef)}, _public_names(index)


def _public_names(file: Path) -> set[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def _is_of(kind: str, node: ast.ClassDef) -> bool:
    """Whether a class is a part, a bound or a control rather than a type beside them."""
    bases = [ast.unparse(base) for base in node.bases]
    if kind == "kl":
        return "_Control" in bases
    return "Bound" in bases if kind == "bound" else True


def _word(name: str, suffix: str) -> str:
    """GaussianMixture becomes gaussian-mixture, IAFEncoder iaf."""
    if name in _WORDS:
        return _WORDS[name]
    stem = name.removesuffix(suffix) or name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", stem).lower()


def _with_bases(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Sequence[ast.ClassDef]:
    """A class and those of its bases that are beside it, nearest first."""
    named = [classes.get(ast.unparse(base), node) for base in node.bases]
    bases = [base for base in named if base is not node]
    return [node, *(ancestor for base in bases for ancestor in _with_bases(base, classes))]


def _entry(lineage: Sequence[ast.ClassDef]) -> Entry:
    texts = [ast.get_docstring(node) or "" for node in lineage]
    told: dict[str, str] = {}
    for text in reversed(texts):
        told |= _told(text)
    needs, options = [], []
    for argument, default in next((list(_arguments(n)) for n in lineage if _init(n)), []):
        if default is None:
            needs.append(argument.arg)
        elif (option := _option(argument, default, told)) is not None:
            options.append(option)
    summary = _plain(texts[0].partition("\n\n")[0])
    return Entry(lineage[0].name, summary, tuple(needs), tuple(options))


def _init(node: ast.ClassDef) -> ast.FunctionDef | None:
    functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
    return next((f for f in functions if f.name == "__init__"), None)


def _arguments(node: ast.ClassDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """The arguments of a constructor behind self, with their defaults."""
    init = _init(node)
    assert init is not None
    positional = init.args.args[1:]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults))
    yield from zip(positional, [*missing, *init.args.defaults], strict=True)
    yield from zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)


def _option(argument: ast.arg, default: ast.expr, told: Mapping[str, str]) -> Option | None:
    """An argument as an option, where its type and default can be typed by a person."""
    if argument.arg in _INTERNAL:
        return None
    text = "" if argument.annotation is None else ast.unparse(argument.annotation)
    kind = _TYPES.get(text)
    if text.startswith("Literal["):
        kind = Literal[ast.literal_eval(text.removeprefix("Literal[").removesuffix("]"))]
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return None
    if kind is None or (value is None and "None" not in text):
        return None
    return Option(argument.arg, kind, value, told.get(argument.arg, ""))


def _told(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument, up to its first full stop."""
    _, _, section = docstring.partition("Args:\n")
    section = section.split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.M)
    return {name: _plain(text.partition(". ")[0]) for name, text in found}


def _plain(text: str) -> str:
    """A sentence of a docstring in plain characters."""
    text = re.sub(r"\s+", " ", text).strip().rstrip(".")
    text = re.sub(r"\\(?:mathrm|mathcal|text|tilde|hat)\b", "", text)
    text = re.sub(r"\\tfrac(\w)(\w)", r"\1/\2", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
    text = re.sub(r"\\[,;!|]", "", text).replace("\\", "")
    text = re.sub(r"[${}`]", "", text)
    return text[:1].lower() + text[1:]

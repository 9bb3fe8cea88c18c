"""The parts that a word can name, and their options, read from their source.

The command line must answer `--help` before torch could be imported. What a part takes is
therefore read from its source rather than from the class: the arguments of its constructor
that have defaults are its options, the others are what the rest of a program supplies.
A new class in a folder's `__all__` is in the catalogue without another line.
"""

__all__ = [
    "ACTIVATIONS",
    "FROM_DATA",
    "KINDS",
    "NETWORKS",
    "SET_BY_KIND",
    "SET_BY_WORD",
    "Entry",
    "Option",
    "entries",
    "find",
    "read_class",
    "shorter",
]

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pyrovae.errors import InputError

ROOT = Path(__file__).parent
# Where the classes of each kind are, and what their names end in.
KINDS: Mapping[str, tuple[str, str]] = {
    "prior": ("priors", "Prior"),
    "encoder": ("encoders", "Encoder"),
    "decoder": ("decoders", "Decoder"),
    "bound": ("bounds", ""),
    "kl": ("bounds/controls.py", ""),
    "network": ("networks", ""),
}
# The networks of an encoder and of a decoder that a word stands for.
NETWORKS: Mapping[str, tuple[str, str]] = {
    "mlp": ("MLP", "MLP"),
    "gated": ("GatedMLP", "GatedMLP"),
    "residual": ("ResidualMLP", "ResidualMLP"),
    "conv": ("ConvNet", "DeconvNet"),
    "residual-conv": ("ResidualConvNet", "ResidualDeconvNet"),
    "gru": ("RecurrentEncoderNet", "RecurrentDecoderNet"),
    "lstm": ("RecurrentEncoderNet", "RecurrentDecoderNet"),
}
# What a word says of its networks that is no default of theirs.
SET_BY_WORD: Mapping[str, Mapping[str, Any]] = {
    "gru": {"cell": "gru", "bidirectional": True},
    "lstm": {"cell": "lstm", "bidirectional": True},
}
# What a program of words has instead of a constructor's default: a scale that is learned.
SET_BY_KIND: Mapping[str, Mapping[str, Any]] = {"decoder": {"scale": 0.5, "learn_scale": True}}
# What it works out of the data instead, by the kind, or of a decoder by what its values are.
FROM_DATA: Mapping[str, Mapping[str, str]] = {
    "prior": {"bounded": "whether they lie within [0, 1]"},
    "network": {"missing": "whether entries are missing"},
    "real": {"min_scale": "the standard deviation within one of their levels, or within 1/256"},
    "levels": {"levels": "the largest + 1", "classes": "the largest + 1"},
    "symbols": {"symbols": "the largest + 1"},
}
# The classes of nonlinearities by their words.
ACTIVATIONS = ("elu", "gelu", "leakyrelu", "relu", "silu", "softplus", "tanh")
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
    "Sequence[float]": tuple[float, ...],
    "tuple[float, ...]": tuple[float, ...],
    "str | None": str | None,
    "type[nn.Module]": Literal[ACTIVATIONS],
}


@dataclass(frozen=True)
class Option:
    """An argument that has a default.

    Attributes:
        name: Its name in the constructor.
        kind: Its type.
        default: Its default.
        help: What its docstring says, in one line.
        from_data: What of the data is used where nothing is said, instead of the default.
    """

    name: str
    kind: Any
    default: Any
    help: str
    from_data: str = ""


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
    if kind == "network":
        return {word: _pair(word) for word in NETWORKS}
    place, suffix = KINDS[kind]
    classes, public = _classes(ROOT / place)
    found = {}
    for name in public & classes.keys():
        entry = _entry(_with_bases(classes[name], classes), kind)
        # An encoder may be given a simpler one; no other part is made of one of its own kind.
        supplied = SUPPLIED if kind == "encoder" else SUPPLIED - {kind}
        if set(entry.needs) <= supplied and _is_of(kind, classes[name]):
            found[_word(name, suffix)] = entry
    return dict(sorted(found.items()))


def _pair(word: str) -> Entry:
    """Two networks as one: the options of the encoder's, where they mean the same of both.

    They do where the decoder's has none of that name, the same default, or layers of its own, to
    which those of the encoder are given backwards.
    """
    classes, _ = _classes(ROOT / KINDS["network"][0])
    first, second = (_entry([classes[name]], "network") for name in NETWORKS[word])
    others = {option.name: option.default for option in second.options}
    told = SET_BY_WORD.get(word, {})
    options = [
        replace(option, default=told.get(option.name, option.default))
        for option in first.options
        if option.name != "cell"
        and (
            isinstance(option.default, tuple)
            or others.get(option.name, option.default) == option.default
        )
    ]
    return replace(first, options=tuple(options))


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

    Its bases are looked for in the file, and among the classes of the kind, under whatever names
    the file imports them. Nothing is run.

    Raises:
        InputError: If the file is no Python, or the class has options without names.
    """
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).", "Mend the file.") from error
    own = _defined(tree.body)
    if name not in own:
        return None
    return _entry(_lineage(own[name], own, _imported(tree), kind), kind, own=own.values())


def _lineage(
    node: ast.ClassDef, own: Mapping[str, ast.ClassDef], imported: Mapping[str, str], kind: str
) -> Sequence[ast.ClassDef]:
    """A class of the user's and its bases, nearest first: those in its file, and ours."""
    ours, _ = _classes(ROOT / KINDS[kind][0])
    found = [node]
    for base in node.bases:
        first, *rest = ast.unparse(base).split(".")
        root, *inner = ".".join([imported.get(first, first), *rest]).split(".")
        last = [root, *inner][-1]
        if not inner and own.get(root, node) is not node:
            found += _lineage(own[root], own, imported, kind)
        elif last in ours and (root == "pyrovae" or not inner):  # bare, as import * leaves it
            found += _with_bases(ours[last], ours)
    return found


def _imported(tree: ast.Module) -> Mapping[str, str]:
    """What the names that a file imports stand for: pv for pyrovae, where it says so."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.asname: name.name for name in node.names if name.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    return found


def _classes(place: Path) -> tuple[dict[str, ast.ClassDef], set[str]]:
    """The classes of a folder, or of a file, by name, and which names are public."""
    index = place if place.is_file() else place / "__init__.py"
    files = [place] if place.is_file() else sorted(place.glob("[!_]*.py"))
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    return _defined(nodes), _public_names(index)


def _defined(nodes: Iterable[ast.stmt]) -> dict[str, ast.ClassDef]:
    """The classes among statements, by name."""
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


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


def _entry(
    lineage: Sequence[ast.ClassDef], kind: str, *, own: Collection[ast.ClassDef] = ()
) -> Entry:
    """What is known of a class by it and its bases, of which some may be the user's own."""
    texts = [ast.get_docstring(node) or "" for node in lineage]
    told: dict[str, str] = {}
    for text in reversed(texts):
        told |= _told(text)
    needs, options = [], []
    made_by = next((node for node in lineage if _init(node)), None)
    for argument, default in [] if made_by is None else _arguments(made_by):
        if default is None:
            needs.append(argument.arg)
        elif (option := _option(argument, default, told)) is not None:
            options.append(option)
    # What another constructor than ours says of its defaults holds; all networks are told alike.
    if made_by not in own or kind == "network":
        options = [_as_used(option, kind, _values(lineage)) for option in options]
    summary = _plain(texts[0].partition("\n\n")[0])
    return Entry(lineage[0].name, summary, tuple(needs), tuple(options))


def _as_used(option: Option, kind: str, values: str) -> Option:
    """An option with what a program of words has instead of its constructor's default."""
    default = SET_BY_KIND.get(kind, {}).get(option.name, option.default)
    from_data = FROM_DATA.get(values if kind == "decoder" else kind, {}).get(option.name, "")
    return replace(option, default=default, from_data=from_data)


def _values(lineage: Sequence[ast.ClassDef]) -> str:
    """What the values of a decoder are, as the nearest of its classes says; real by default."""
    for line in (line for node in lineage for line in node.body):
        match line:
            case (
                ast.AnnAssign(target=ast.Name("values"), value=ast.Constant(str(said)))
                | ast.Assign(targets=[ast.Name("values")], value=ast.Constant(str(said)))
            ):
                return said
    return "real"


def _init(node: ast.ClassDef) -> ast.FunctionDef | None:
    functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
    return next((f for f in functions if f.name == "__init__"), None)


def _arguments(node: ast.ClassDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """The arguments of a constructor behind self, with their defaults.

    Raises:
        InputError: If one cannot be given by its name.
    """
    init = _init(node)
    assert init is not None
    placed = init.args.posonlyargs
    if len(placed) > 1:
        raise InputError(
            f"The constructor of {node.name} takes {placed[-1].arg!r} by its place alone.",
            "Leave out the / behind it: options are given by name.",
        )
    positional = [*placed, *init.args.args][1:]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults))
    yield from zip(positional, [*missing, *init.args.defaults], strict=True)
    yield from zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)


def _option(argument: ast.arg, default: ast.expr, told: Mapping[str, str]) -> Option | None:
    """An argument as an option, where its type and default can be typed by a person."""
    if argument.arg in _INTERNAL:
        return None
    try:
        value = ast.literal_eval(default)
        kind = _type_of(value) if argument.annotation is None else _type_named(argument.annotation)
    except ValueError:  # a class, maybe
        value = ast.unparse(default).rpartition(".")[2].lower()
        if value not in ACTIVATIONS:
            return None
        kind = Literal[ACTIVATIONS]
    if kind is None or (value is None and type(None) not in get_args(kind)):
        return None
    return Option(argument.arg, kind, value, told.get(argument.arg, ""))


def _type_named(annotation: ast.expr) -> Any:
    """The type that an annotation says, if it is one that can be typed."""
    text = ast.unparse(annotation)
    if isinstance(annotation, ast.Constant):  # in quotes
        text = str(annotation.value)
    if text.startswith("Literal["):
        return Literal[ast.literal_eval(text.removeprefix("Literal[").removesuffix("]"))]
    return _TYPES.get(text)


def _type_of(value: Any) -> Any:
    """The type of a default that nothing is said of, if it is one that can be typed."""
    if isinstance(value, tuple) and {int, float} >= {type(v) for v in value} > set():
        return tuple[float, ...] if float in map(type, value) else tuple[int, ...]
    return type(value) if type(value) in (bool, int, float, str) else None


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

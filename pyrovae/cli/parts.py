"""The options of the parts that are named, and the list of all of them."""

__all__ = ["chosen", "list_parts", "own_files", "train_type"]

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pyrovae import catalogue, user_files
from pyrovae.catalogue import Entry, Option
from pyrovae.cli.options import Train, Training
from pyrovae.errors import InputError

if TYPE_CHECKING:
    from pyrovae.building import Choice

PARTS = ("prior", "encoder", "decoder", "network", "bound", "kl")
OF_ANY_PROGRAM = ("bound", "kl")


def train_type(words: list[str], program: str | None) -> type:
    """The options of train: those of the parts that the words name, or of a user's program."""
    kinds = PARTS if program is None else OF_ANY_PROGRAM
    named = [field for kind in kinds for field in _fields(kind, words)]
    if program is None:
        return make_dataclass(
            "Train", named, bases=(Train,), namespace={"__doc__": Train.__doc__}, kw_only=True
        )

    from pyrovae.user_programs import keyword_arguments, load_builder

    build = make_dataclass("Build", keyword_arguments(load_builder(program)), kw_only=True)
    required = any(f.default is MISSING for f in fields(build))
    default = field() if required else field(default_factory=build)
    return make_dataclass(
        "TrainProgram",
        [("build", build, default), *named],
        bases=(Training,),
        namespace={"__doc__": f"Train {program}, measure it, and write a report."},
        kw_only=True,
    )


def chosen(kind: str, options: Any, words: list[str]) -> "Choice | None":
    """The part of a kind that a command names, with the options that were typed.

    So are those that differ from their default, as a run that is gone on with may have had them.
    """
    from pyrovae.building import Choice

    name = getattr(options, kind)
    if name is None:
        return None
    values = {o: getattr(options, f"{kind}_{o.name}") for o in _entry(kind, name).options}
    typed = {
        option.name: value
        for option, value in values.items()
        if _is_typed(f"{kind}.{option.name}", words) or value != option.default
    }
    return Choice(name, typed)


def own_files(options: Any, program: str | None) -> list[tuple[Path, str]]:
    """What a command takes out of files of the user's own, as its parser has understood it."""
    named = [(program, "build"), *((getattr(options, k, None), k.capitalize()) for k in PARTS)]
    return [
        user_files.split(word, default)
        for word, default in named
        if word and user_files.is_own_file(word)
    ]


def list_parts() -> str:
    """Every part that a word can name, with its options and their defaults."""
    lines = []
    for kind in PARTS:
        lines.append(f"\n--{kind}")
        for word, entry in catalogue.entries(kind).items():
            lines.append("  " + ", or ".join([word, *catalogue.shorter(word)]))
            for option in entry.options:
                flag = f"--{kind}.{_dashed(option.name)}"
                text = f"{flag} (default: {_default(option)})  {option.help}"
                lines += textwrap.wrap(
                    text, 96, initial_indent="    ", subsequent_indent="        "
                )
    return "\n".join(lines)


def _fields(kind: str, words: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """The options of the part of a kind that the words name."""
    name = _named(kind, words)
    if name is None:
        return
    for option in _entry(kind, name).options:
        flag = tyro.conf.arg(
            name=f"{kind}.{_dashed(option.name)}",
            help=option.help or None,
            help_behavior_hint=f"(default: {_default(option)})",
        )
        kept = f"{kind}_{option.name}"
        yield kept, Annotated[option.kind, flag], field(default=option.default)


def _entry(kind: str, name: str) -> Entry:
    """What is known of a part by its word, or of a class by its file.

    Raises:
        InputError: If there is no such part, file or class.
    """
    if user_files.is_own_file(name):
        path, cls = user_files.split(name, kind.capitalize())
        if not path.is_file():
            raise InputError(f"There is no file {path}.", f"Name it as file.py:{cls}.")
        entry = catalogue.read_class(path, cls, kind)
        if entry is None:
            raise InputError(f"There is no class {cls} in {path}.", "Name it as file.py:Class.")
        return entry
    return catalogue.find(kind, name)


def _named(kind: str, words: list[str]) -> str | None:
    """The word behind the last --KIND, or its default."""
    found = getattr(Train, kind, None)
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == f"--{kind}" and not (following or "--").startswith("--"):
            found = following
        if word.startswith(f"--{kind}="):
            found = word.partition("=")[2]
    return found


def _is_typed(name: str, words: list[str]) -> bool:
    kind, _, option = name.partition(".")
    flags = {f"--{kind}.{_dashed(option)}", f"--{kind}.no-{_dashed(option)}"}
    return any(word.partition("=")[0].replace("_", "-") in flags for word in words)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _default(option: Option) -> str:
    """What is used where an option is not given."""
    if option.from_data:
        return f"from the data: {option.from_data}"
    if isinstance(option.default, tuple):
        return " ".join(map(str, option.default)) or "none"
    return str(option.default)

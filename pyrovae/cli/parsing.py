"""From the words of a command to its options."""

__all__ = ["name_data", "parse", "split_program"]

from typing import Any

import tyro

from pyrovae.cli.options import VERBS
from pyrovae.cli.parts import list_parts, train_type
from pyrovae.errors import InputError
from pyrovae.user_files import is_own_file


def parse(given: list[str]) -> tuple[Any, str | None]:
    """The options of a command, and the program `file.py:build` where train is given one.

    It ends the process where they cannot be understood, or help is asked for.
    """
    program, words = split_program(name_data(given))
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            {**VERBS, "train": train_type(words, program)},
            prog="pyrovae",
            description="Variational autoencoders as probabilistic programs, in Pyro.",
            args=words,
        )
    except SystemExit as stop:
        if not stop.code and words[:1] == ["train"] and {"-h", "--help"} & set(words):
            print(list_parts())
        raise
    return command, program


def name_data(words: list[str]) -> list[str]:
    """`encode RUN DATA` as `encode RUN --data DATA`."""
    if words[:1] != ["encode"] or len(words) < 3 or any(w.startswith("-") for w in words[1:3]):
        return words
    verb, run, data, *options = words
    if any(word.partition("=")[0] == "--data" for word in options):
        raise InputError("Data are named twice.", f"Leave out {data}, or --data.")
    return [verb, run, "--data", data, *options]


def split_program(words: list[str]) -> tuple[str | None, list[str]]:
    """Takes the program `file.py:build` out of `train file.py:build --options`.

    Any other first word, as in `train photos/`, names the data.
    """
    if len(words) < 2 or words[0] != "train" or words[1].startswith("-"):
        return None, words
    _, first, *options = words
    if is_own_file(first):
        return first, ["train", *options]
    if any(word.partition("=")[0] == "--data" for word in options):
        raise InputError("Data are named twice.", f"Leave out {first}, or --data.")
    return None, ["train", "--data", first, *options]

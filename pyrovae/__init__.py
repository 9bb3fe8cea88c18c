"""Variational autoencoders as probabilistic programs, in Pyro.

A part is a module whose forward pass returns a distribution; a model is a Pyro program that
samples from parts; everything else works on any (model, guide) pair. The public names are listed
in `__init__.pyi`, beside this file, for people and type checkers alike. They are imported when
they are first used, so that importing pyrovae is fast and changes nothing.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _homes() -> dict[str, str]:
    """The module that each public name is imported from."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {name.name: str(node.module) for node in imports for name in node.names}


_HOME = _homes()
__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

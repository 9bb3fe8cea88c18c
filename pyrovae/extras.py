"""Libraries that one thing needs and the rest does not: each is an extra of its own."""

__all__ = ["require"]

from importlib import import_module
from typing import Any

from pyrovae.errors import InputError


def require(module: str, extra: str) -> Any:
    """Imports a module of an optional library.

    Raises:
        InputError: If it cannot be imported, with what to install.

    Example:
        >>> require("json", "onnx").dumps([1])
        '[1]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module} cannot be imported ({error}).", f"Take pip install 'pyrovae[{extra}]'."
        ) from error

"""Files that the user names: pictures, and the numbers behind them."""

__all__ = ["save_arrays", "save_png", "save_text"]

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrovae.errors import InputError, unwritable
from pyrovae.plots.style import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(path: str | Path, figure: "Figure") -> Path:
    """Writes a figure as a PNG of 150 dots per inch.

    Raises:
        InputError: If the file is named otherwise, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(
            f"{path} is no .png file, and a picture is written as one.",
            "Name it FILE.png, or FILE.npz for the numbers in it, or of a table FILE.csv.",
        )
    return _write(path, png(figure))


def save_arrays(path: str | Path, arrays: Mapping[str, Tensor | np.ndarray]) -> Path:
    """Writes tensors and arrays under their names into an .npz file.

    Raises:
        InputError: If it is named otherwise, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"{path} is no .npz file.", "Name it FILE.npz.")
    content = io.BytesIO()
    as_arrays: dict[str, Any] = {
        name: x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        for name, x in arrays.items()
    }
    np.savez_compressed(content, **as_arrays)
    return _write(path, content.getvalue())


def save_text(path: str | Path, text: str) -> Path:
    """Writes text as UTF-8.

    Raises:
        InputError: If it cannot be written.
    """
    return _write(Path(path), text.encode())


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise unwritable(InputError, path, error, "another path") from error
    return path

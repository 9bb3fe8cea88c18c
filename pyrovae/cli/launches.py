"""Several processes of one command, as `torchrun` starts them."""

__all__ = ["begun_before", "together"]

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.run_folder import CONFIG, ENVIRONMENT, RUNS, read_json

if TYPE_CHECKING:
    from pyrovae.ranks import Ranks


@contextmanager
def together() -> "Iterator[Ranks | None]":
    """Joins the other processes, if there are any; the first alone speaks."""
    if "WORLD_SIZE" not in os.environ:
        yield None  # torch is imported by the verbs
        return
    from pyrovae.ranks import joined

    with joined() as ranks:
        if ranks.is_first:
            yield ranks
            return
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            warnings.catch_warnings(action="ignore"),
        ):
            yield ranks


def begun_before(options: Any, ranks: "Ranks | None") -> Path | None:
    """The run that these processes had begun when `torchrun` had to start them anew.

    Args:
        options: Those of `train`.
        ranks: The processes.
    """
    from pyrovae.ranks import launch, restarts

    if ranks is None or restarts() == 0:
        return None
    folders = [options.run_dir] if options.run_dir else RUNS.glob("*")
    begun = [
        folder / CONFIG
        for folder in folders
        if read_json(folder / ENVIRONMENT).get("launch") == launch()
    ]
    newest = max(begun, key=lambda config: config.stat().st_mtime, default=None)
    found = ranks.text_of_first("" if newest is None else str(newest.parent))
    return Path(found) if found else None

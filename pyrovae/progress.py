"""Progress: a bar over all steps on a terminal, a line per epoch elsewhere."""

__all__ = ["Progress"]

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar over all steps on a terminal, a line per epoch elsewhere."""

    def __init__(self, epochs: int, steps: int, *, shown: bool) -> None:
        self.epochs = epochs
        self.on_terminal = shown and sys.stderr.isatty()
        self.as_lines = shown and not self.on_terminal
        self.bar = tqdm(total=epochs * steps, unit="step", disable=not self.on_terminal)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def note(self, line: str) -> None:
        """A line between those of the epochs."""
        if self.on_terminal or self.as_lines:
            tqdm.write(line)

    def step(self, count: int = 1) -> None:
        """One more step, or those of a run that is continued."""
        self.bar.update(count)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """One more epoch."""
        names = {
            "train_elbo": "train ELBO",
            "valid_elbo": "valid ELBO",
            "kl": "KL",
            "global_kl": "shared KL",
        }
        words = [f"{name} {record[key]:.2f}" for key, name in names.items() if key in record]
        line = ", ".join(words) or f"loss {record['loss']:.2f}"
        self.bar.set_postfix_str(line)
        if self.as_lines:
            rate = record["examples_per_second"]
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            number = f"{record['epoch']:>3}/{self.epochs}"
            print(f"epoch {number}: {line} ({speed} examples/s)", flush=True)

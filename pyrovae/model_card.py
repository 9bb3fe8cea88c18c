"""The model card of a pretrained program: what it is, in the form that the Hugging Face hub reads.

All of it is written from the run. What the run does not know, as the licence or who is in the
data, is left to its author.
"""

__all__ = ["write_card"]

import json
from collections.abc import Mapping
from typing import Any

from pyrovae.parts import from_config

FRONT = """\
---
library_name: pyrovae
tags:
- pyrovae
- pyro
- variational-autoencoder
- probabilistic-programming
---
"""
USE = """\
```python
import pyrovae

run = pyrovae.from_pretrained({arguments})
run.sample(16)
run.on(data).evaluate()  # an array, a file or a named set, in the units of the training data
```
"""
# The numbers of an evaluation, and what they are called.
NUMBERS = {"elbo": "ELBO", "log_evidence": "log p(x)"}


def write_card(config: Mapping[str, Any], *, program: str) -> str:
    """The text of a model card.

    Args:
        config: What the run was told, with its `environment` and its `evaluation`.
        program: The program in words, as its modules show themselves.
    """
    sections = {
        "Use": _use(config["program"]),
        "Program": f"{config['parameters']:,} parameters.\n\n```\n{program}\n```\n",
        "Data": _table(_data(config["data"])),
        "Numbers": _numbers(config),
        "Training": _table(_training(config)),
    }
    title = f"# {_name(config['program'])} on {_cell(config['data']['name'])}\n"
    lead = (
        "A model and a guide in [Pyro](https://pyro.ai), trained with pyrovae by stochastic "
        "variational inference.\n"
    )
    return "\n".join(
        [FRONT + title, lead, *(f"## {head}\n\n{text}" for head, text in sections.items())]
    )


def _name(program: Mapping[str, Any]) -> str:
    return _cell(program.get("part") or program.get("function") or program.get("class"))


def _use(program: Mapping[str, Any]) -> str:
    if "class" in program:
        remark = "\nNo configuration names all of it: the program is given by whoever loads it.\n"
        return USE.format(arguments='"folder or user/name", program=...') + remark
    if '"sha256":' not in json.dumps(program):
        return USE.format(arguments='"folder or user/name"')
    remark = "\nIt is made of the files in `source`: read them before you say so.\n"
    return USE.format(arguments='"folder or user/name", trust_source=True') + remark


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    preprocessing = data["preprocessing"] and from_config(data["preprocessing"]).summary
    contents = data["contents"].items()
    return {
        "name": data["name"],
        "shape of one": " x ".join(map(str, data["x_shape"])),
        "preprocessing": preprocessing,
        "examples": ", ".join(f"{name} {split['examples']:,}" for name, split in contents),
        "sha256": data["fingerprint"],
    }


def _numbers(config: Mapping[str, Any]) -> str:
    found = config["evaluation"]
    if not found:
        return "Not measured.\n"
    rows = {name: _with_error(found, key) for key, name in NUMBERS.items()}
    if found.get("bits_per_dim") is not None:
        rows["bits per dim"] = f"{found['bits_per_dim']:.3f}"
    rows["active units"] = found["active_units"]
    if "global_kl" in found:
        rows["KL of what all examples share"] = f"{found['global_kl']:.2f} in all"
    count, samples = found["num_examples"], found["num_samples"]
    examples = f"{found.get('split') or 'given'} examples"
    if found.get("of"):
        examples = f"examples of other data, {_cell(found['of'])}"
    return (
        f"{_table(rows)}\nNats per example, over {count:,} {examples}, by {samples:,} "
        "importance samples each: `pyrovae evaluate RUN "
        f"--num-samples {samples} --limit {count}`; ± is one standard error over examples.\n"
    )


def _with_error(found: Mapping[str, Any], key: str) -> str:
    error = found[f"{key}_se"]
    return f"{found[key]:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in config["training"].items() if value is not None}
    optimizer = told["optimizer"]
    told["optimizer"] = f"{optimizer['class']}, lr {optimizer['lr']:g}"
    command = f"`{config.get('command', 'pyrovae.fit(...)')}`"
    return {"command": command, **told, **config["environment"]}


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _cell(value: object) -> str:
    """A value on one line of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")

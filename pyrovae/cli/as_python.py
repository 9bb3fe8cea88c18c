"""A command of `train` as the Python that does the same, to the same bits."""

__all__ = ["as_python"]

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from pyrovae.cli.planning import KINDS, Plan
from pyrovae.user_files import defined_in, split

# What `fit` does where it is told nothing.
DEFAULTS = {
    "bound": None,
    "kl_warmup": 0,
    "clip_norm": None,
    "patience": None,
    "seed": 0,
    "engine": None,
    "steps_per_replay": 1,
    "precision": "float32",
}
KEYWORD_ONLY = Parameter.KEYWORD_ONLY
PARTIAL = "from functools import partial"
INDENT, WIDTH = "    ", 99


def as_python(plan: Plan) -> str:
    """The source of a script that loads, builds and trains what a command does."""
    return _Script(plan).text()


class _Script:
    """A script while it is written: its lines, and the imports that they turn out to need."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.lines: list[str] = []
        self.imports = {"import torch", "import pyrovae"}
        # The parts that have a variable, and those that have it already.
        self.parts: dict[int, str] = {}
        self.named: set[int] = set()

    def text(self) -> str:
        """All of it."""
        options = self.plan.options
        self._write("data = ", "pyrovae.load_data", [self._code(options.data)], self._loading())
        if self.plan.is_standardized:
            self.lines.append("data = data.standardized()")
        self.lines.append(f"torch.manual_seed({options.seed})")
        if self.plan.spec is None:
            self._vae(self.plan.program)
        else:
            self._own_program(self.plan.spec)
        if options.init_from:
            self.lines.append(f"pyrovae.start_from(program, {self._code(options.init_from)})")
        self._fit()
        self.lines.append("print(run.evaluate(num_samples=500, limit=1000).summary())")
        self.lines.append("run.report()")

        imports = sorted(self.imports, key=lambda line: (line.startswith("from"), line))
        return "\n".join([PARTIAL, "", *imports, "", *self.lines])

    # ── Data ──

    def _loading(self) -> dict[str, str]:
        given = {k: v for k, v in self.plan.loading.items() if v not in (None, False)}
        return {name: self._code(value) for name, value in given.items()}

    # ── The program ──

    def _vae(self, vae: Any) -> None:
        self.parts = {id(getattr(vae, kind)): kind for kind in KINDS}
        parts = {k: self._code(getattr(vae, k)) for k in ("prior", "decoder", "encoder")}
        beta = {} if vae.beta == 1 else {"beta": repr(vae.beta)}
        self._write("program = ", "pyrovae.VAE", [], {**parts, **beta})

    def _own_program(self, spec: str) -> None:
        from pyrovae.user_programs import supplied

        path, name = split(spec, "build")
        options = {k: self._code(v) for k, v in asdict(self.plan.options.build).items()}
        options |= dict.fromkeys(supplied(spec, 0), "len(data.train)")
        self._import_own(path, name)
        self._write("program = ", name, ["data.x_shape"], options)

    def _code(self, value: Any) -> str:
        """What makes a value; a part of the program is made on a line before."""
        if id(value) in self.parts:
            return self._variable(value)
        if isinstance(value, tuple | list):
            items = [self._code(item) for item in value]
            return f"({', '.join(items)}{',' * (len(items) == 1)})"
        if isinstance(value, type):
            return self._imported(value)
        if value is None or isinstance(value, bool | int | float):
            return repr(value)
        if isinstance(value, str | Path):
            return _quoted(str(value))
        return self._call(value)

    def _variable(self, part: Any) -> str:
        name = self.parts[id(part)]
        if id(part) not in self.named:
            # The order of these lines is that of the command's own random numbers.
            made = self._call(part)
            if getattr(part, "start_at", None) is not None:
                made += f".start_at({self._examples(10_000)})"
            self.lines.append(f"{name} = {made}")
            self.named.add(id(part))
        return name

    def _call(self, value: Any) -> str:
        """An object by its constructor: what it needs by place, what is no default by name."""
        arguments = []
        for name, parameter in signature(type(value)).parameters.items():
            given = getattr(value, name)
            if name == "exemplars":
                arguments.append(self._examples(len(self.plan.data.train)))
            elif parameter.default is parameter.empty and parameter.kind is not KEYWORD_ONLY:
                arguments.append(self._code(given))
            elif given != parameter.default:
                arguments.append(f"{name}={self._code(given)}")
        return f"{self._imported(type(value))}({', '.join(arguments)})"

    def _examples(self, most: int) -> str:
        """Training examples for a part to begin at."""
        count = len(self.plan.data.train)
        if count <= most:
            return f"data.train.head({count}).x"
        return f"next(data.train.chosen(torch.randperm({count})[:{most}], {most})).x"

    # ── The training ──

    def _fit(self) -> None:
        told = self.plan.for_fit()
        options = self.plan.options
        changed = {k: v for k, v in told.items() if k in DEFAULTS and v != DEFAULTS[k]}
        arguments = {
            "optimizer": f"partial(torch.optim.Adam, lr={options.lr}, fused=True)",
            "epochs": repr(self.plan.epochs),
            "batch_size": repr(options.batch_size),
            **{k: self._bound() if k == "bound" else self._code(v) for k, v in changed.items()},
        }
        if options.lr_schedule == "cosine":
            self.imports.add("from pyrovae.schedules import cosine")
            arguments["lr_schedule"] = f"cosine(1.0, 0.0, {self.plan.epochs * self.plan.steps})"
        if options.device:
            arguments["device"] = self._code(options.device)
        arguments["run_dir"] = self._code(self.plan.path)
        if options.tensorboard:
            arguments["on_epoch"] = "pyrovae.TensorBoard()"
        self._write("run = ", "pyrovae.fit", ["program", "data"], arguments)

    def _bound(self) -> str:
        """The bound as it shows itself, its names those of the package or of the user's file."""
        bound: Any = self.plan.bound
        own = [b for b in (bound, getattr(bound, "kl", None)) if defined_in(type(b))]
        for part in own:
            self._imported(type(part))
        known = {type(part).__name__ for part in own}
        return re.sub(
            r"[A-Z]\w*(?=\()",
            lambda found: found[0] if found[0] in known else f"pyrovae.{found[0]}",
            repr(bound),
        )

    # ── Names and lines ──

    def _imported(self, cls: type) -> str:
        """What a class is called in the script."""
        if path := defined_in(cls):
            self._import_own(path, cls.__name__)
            return cls.__name__
        if cls.__name__ in dir(import_module("pyrovae")):
            return f"pyrovae.{cls.__name__}"
        home = "torch.nn" if cls.__module__.startswith("torch.") else cls.__module__
        self.imports.add(f"from {_public(home)} import {cls.__name__}")
        return cls.__name__

    def _import_own(self, path: Path, name: str) -> None:
        if path.parent == Path.cwd() and path.stem.isidentifier():
            self.imports.add(f"from {path.stem} import {name}")
            return
        self.imports |= {"from pathlib import Path", "from pyrovae.user_files import load"}
        line = f"{name} = load(Path({self._code(path)}), {self._code(name)})"
        if line not in self.lines:
            self.lines.insert(0, line)

    def _write(
        self, left: str, call: str, places: Iterable[str], names: Mapping[str, str]
    ) -> None:
        """A call on one line, or on a line for each argument where that is too long."""
        arguments = [*places, *(f"{name}={value}" for name, value in names.items())]
        line = f"{left}{call}({', '.join(arguments)})"
        if len(line) > WIDTH:
            inner = "".join(f"{INDENT}{argument},\n" for argument in arguments)
            line = f"{left}{call}(\n{inner})"
        self.lines.append(line)


def _quoted(text: str) -> str:
    """A string in double quotes, as this project writes them, where that changes nothing else."""
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in text else plain


def _public(module: str) -> str:
    """The folder that a module's public names are imported from: pyrovae.data for its files."""
    return ".".join(module.split(".")[:2])

r"""ONNX files of a program's two halves, for whatever runs without Python.

The encoder maps x to the parameters of $q(z \mid x)$, its mean and where there is one its scale;
the decoder maps z to the mean of $p(x \mid z)$. Of a `VAE` the parts themselves are exported. Any
other program is run on one example at a time, under `torch.vmap`: so that its `len(x)`, a number
that Python must know, is one, and the number of examples stays free.
"""

__all__ = ["export"]

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.data import Batch
from pyrovae.encoding import shared_latents
from pyrovae.errors import CheckpointError, InputError, first_line, unwritable
from pyrovae.extras import require
from pyrovae.handlers import unconditioned
from pyrovae.models import VAE
from pyrovae.programs import (
    Program,
    as_module,
    data_frame,
    device_of,
    evaluating,
    examples_first,
    is_auxiliary,
    observation_site,
    sites,
    takes_labels,
    trace_pair,
    with_latents,
)

ENCODER, DECODER, ABOUT = "encoder.onnx", "decoder.onnx", "metadata.json"
# How far the files may be from the program.
TOLERANCE = 1e-5
# The numbers of examples that they are compared at, none of them the one they are traced with.
TRACED, COUNTS = 3, (1, 5)


def export(
    program: Program, x: Tensor, folder: Path, *, preprocessing: Any, about: Mapping[str, Any]
) -> Path:
    r"""Writes `encoder.onnx`, `decoder.onnx` and `metadata.json` into a folder.

    Args:
        program: The program, with one latent site.
        x: Examples of the program's x: the files are compared with it on these.
        folder: The folder, made where it is not there.
        preprocessing: How the data become the program's x, as plain data.
        about: What else to record.

    Raises:
        InputError: If a library is missing, or the program has several latents, needs labels,
            has a likelihood without a mean, or cannot be exported.
        CheckpointError: If the files cannot be written.
    """
    for module in ("onnx", "onnxscript"):
        require(module, "onnx")
    runtime = require("onnxruntime", "onnx")
    # A size of one would be taken for a constant.
    x = _rows(x, TRACED).cpu()
    with _on_cpu(program), evaluating(program):
        halves = _Halves.of(program, x)
        files = {ENCODER: _file(halves.encoder, x, "x", halves.outputs)}
        z = halves.encoder(x)[0].contiguous()
        files[DECODER] = _file(halves.decoder, z, "z", ("mean",))
        _compare(runtime, files[ENCODER], halves.encoder, x)
        _compare(runtime, files[DECODER], halves.decoder, z)
        mean = halves.decoder(z[:1])[0]

    told = {
        "encoder": {"file": ENCODER, "input": _axes("x", x), "outputs": list(halves.outputs)},
        "decoder": {"file": DECODER, "input": _axes("z", z), "output": _axes("mean", mean)},
        "x": "the program's x: data after the preprocessing, float32",
        "preprocessing": preprocessing,
        **about,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / ABOUT).write_text(json.dumps(told, indent=1) + "\n")
    except OSError as error:
        raise unwritable(CheckpointError, folder, error, "another folder") from error
    return folder


def _rows(x: Tensor, count: int) -> Tensor:
    """So many examples, the given ones again and again."""
    return x[torch.arange(count, device=x.device) % len(x)]


@contextmanager
def _on_cpu(program: Program) -> Iterator[None]:
    """Where the files are compared with the program."""
    module, device = as_module(program), device_of(program)
    module.cpu()
    try:
        yield
    finally:
        module.to(device)


def _axes(name: str, value: Tensor) -> dict[str, Any]:
    return {"name": name, "shape": ["batch", *value.shape[1:]]}


# ── The two halves as functions of tensors ───────────────────────────────────────────────────


class _Halves:
    """A program as two modules: x to the parameters of q, and z to the mean of x."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, outputs: tuple[str, ...]) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self.outputs = outputs

    @classmethod
    def of(cls, program: Program, x: Tensor) -> "_Halves":
        """The halves of a program, within `evaluating`.

        Raises:
            InputError: If it has labels or several latents, or one of them has no mean.
        """
        if takes_labels(program.guide) or takes_labels(program.model):
            raise InputError(
                "A program that takes labels cannot be exported.",
                "Export one whose model and guide are functions of x alone.",
            )
        model_trace, guide_trace = trace_pair(program, Batch(x))
        latents = {
            name: site
            for name, site in sites(guide_trace, observed=False).items()
            if data_frame(site) and not is_auxiliary(site)
        }
        if len(latents) != 1:
            raise InputError(
                f"The latent sites of an example are {', '.join(latents) or 'none'}.",
                "Export a program with one latent site inside the plate 'data'.",
            )
        name, site = next(iter(latents.items()))
        observed = observation_site(model_trace)
        _check_mean(site["fn"], f"latent {name!r}")
        _check_mean(observed["fn"], "observation")
        outputs = ("mean", "scale") if _has_scale(site["fn"]) else ("mean",)

        shared = shared_latents(program, Batch(x))
        if isinstance(program, VAE) and not shared:
            return cls(_Part(program.encoder, outputs), _Part(program.decoder), outputs)
        return cls(
            _Guide(program, name, outputs),
            _Model(program, name, observed["name"], x[:1], shared),
            outputs,
        )


def _check_mean(distribution: Any, what: str) -> None:
    try:
        _ = distribution.mean
    except NotImplementedError as error:
        raise InputError(
            f"The distribution of the {what}, {distribution}, has no mean to export.",
            "Export a program whose encoder and decoder have means.",
        ) from error


def _has_scale(distribution: Any) -> bool:
    try:
        return distribution.stddev.isfinite().all().item()
    except NotImplementedError:
        return False


def _read(distribution: Any, outputs: tuple[str, ...]) -> tuple[Tensor, ...]:
    found = {"mean": lambda: distribution.mean, "scale": lambda: distribution.stddev}
    return tuple(found[name]() for name in outputs)


class _Part(nn.Module):
    """A part, and what is read of the distribution that it returns."""

    def __init__(self, part: nn.Module, outputs: tuple[str, ...] = ("mean",)) -> None:
        super().__init__()

        self.part = part
        self.outputs = outputs

    def forward(self, value: Tensor) -> tuple[Tensor, ...]:
        return _read(self.part(value), self.outputs)


class _Means(Messenger):
    """Gives every site its mean instead of a draw: of no use here, and no part of a file."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not site_is_subsample(msg):
            msg["value"] = msg["fn"].mean


class _Guide(nn.Module):
    """A guide, one example at a time."""

    def __init__(self, program: Program, name: str, outputs: tuple[str, ...]) -> None:
        super().__init__()

        self.module = as_module(program)
        self.program = program
        self.name = name
        self.outputs = outputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.vmap(self._one)(x)

    def _one(self, x: Tensor) -> tuple[Tensor, ...]:
        with _Means():
            trace = poutine.trace(self.program.guide).get_trace(x[None])
        site: Any = trace.nodes[self.name]
        return tuple(examples_first(v, site)[0] for v in _read(site["fn"], self.outputs))


class _Model(nn.Module):
    """The likelihood of a model, one latent at a time."""

    def __init__(
        self,
        program: Program,
        name: str,
        observed: str,
        x: Tensor,
        shared: Mapping[str, Tensor],
    ) -> None:
        super().__init__()

        self.module = as_module(program)
        self.program = program
        self.name = name
        self.observed = observed
        self.register_buffer("x", torch.zeros_like(x))
        self.shared = list(shared)
        for number, value in enumerate(shared.values()):
            self.register_buffer(f"shared_{number}", value)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        return torch.vmap(self._one)(z)

    def _one(self, z: Tensor) -> tuple[Tensor, ...]:
        free = unconditioned(self.program.model)
        with _Means():
            shared = {n: getattr(self, f"shared_{i}") for i, n in enumerate(self.shared)}
            model = with_latents(free, {self.name: z[None], **shared})
            trace = poutine.trace(model).get_trace(self.x)
        site: Any = trace.nodes[self.observed]
        return (examples_first(site["fn"].mean, site)[0],)


# ── Files ────────────────────────────────────────────────────────────────────────────────────


def _file(module: nn.Module, given: Tensor, name: str, outputs: tuple[str, ...]) -> bytes:
    """A function of one tensor as the bytes of an ONNX file, for any number of examples."""
    batch = ({0: torch.export.Dim.DYNAMIC},)
    try:
        # The exporter tells of its steps, and warns of its own parts.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            with redirect_stderr(StringIO()):
                made: Any = torch.onnx.export(
                    module.eval(),
                    (given,),
                    input_names=[name],
                    output_names=[*outputs],
                    dynamic_shapes=batch,
                    dynamo=True,
                    verbose=False,
                )
        return made.model_proto.SerializeToString()
    except Exception as error:  # whatever an operation raises that the exporter does not know
        cause = error.__cause__ or error
        raise InputError(
            f"The program cannot be exported: its function of {name} is not one of tensors alone, "
            f"for any number of examples ({type(cause).__name__}: {first_line(cause)}).",
            "Export networks alone, without decompositions of matrices, loops over examples or "
            "branches on values; with convolutions, a pyrovae.VAE.",
        ) from error


def _compare(runtime: Any, content: bytes, module: nn.Module, given: Tensor) -> None:
    """Refuses a file that does not compute what the program does.

    Raises:
        InputError: If it does not.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    [name] = [value.name for value in session.get_inputs()]
    for count in COUNTS:
        rows = _rows(given, count)
        expected = module(rows)
        found = [torch.from_numpy(value) for value in session.run(None, {name: rows.numpy()})]
        for a, b in zip(found, expected, strict=True):
            if a.shape != b.shape or not torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE):
                raise InputError(
                    f"The ONNX file of {name} does not compute what the program does.",
                    f"Export it with another version of torch or onnxruntime (these are "
                    f"{torch.__version__} and {runtime.__version__}).",
                )

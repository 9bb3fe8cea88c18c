"""The command line: a thin shell over the Python API.

torch is imported by the verbs, not by the parser, so that `--help` answers at once.
"""

__all__ = ["main"]

import json
import os
import shlex
import shutil
import signal
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pyrovae.errors import PyrovaeError

if TYPE_CHECKING:
    from pyrovae.data import Data
    from pyrovae.evaluation import Evaluation
    from pyrovae.plots import Picture
    from pyrovae.programs import Program
    from pyrovae.runs import Run


def _auto(metavar: str, default: str) -> Any:
    """An option whose default is not a value but a rule."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


Names = Annotated[str, tyro.conf.arg(metavar="NAME|PATH")]
DataDir = Annotated[Path | None, _auto("PATH", "$PYROVAE_DATA, or the user's cache folder")]
OtherData = Annotated[str | None, _auto("NAME|PATH", "the run's own")]
OldDataDir = Annotated[Path | None, _auto("PATH", "where they lay in training")]
Device = Annotated[str | None, _auto("NAME", "cuda where there is one, else cpu")]
RunPath = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
Prior = Literal["standard-normal", "diagonal-gaussian", "gaussian-mixture"]
Encoder = Literal["gaussian"]
Decoder = Literal["bernoulli", "continuous-bernoulli", "gaussian", "pixelwise-gaussian"]
Network = Literal["mlp", "conv"]
Binarization = Literal["none", "threshold", "static", "dynamic"]

# Small data are visited more often: about so many steps make a VAE of their size.
DEFAULT_STEPS = 3000
DEFAULT_EPOCHS, MOST_EPOCHS = 20, 300
# What `train` measures at its end: enough for an error bar well under a nat in a few seconds.
FINAL_SAMPLES, FINAL_EXAMPLES = 500, 1000
COLLAPSE = (
    "the latents carry no information (posterior collapse); try a longer --kl-warmup, a lower "
    "--lr or a smaller --beta"
)


@dataclass(kw_only=True)
class _Training:
    data: Names = "digits"
    """digits, mnist, fashion-mnist, kmnist, binarized-mnist, frey-faces, or a .npy or .npz file"""
    data_dir: DataDir = None
    """where named data sets lie"""
    binarize: Annotated[
        Binarization | None,
        _auto(
            "none|threshold|static|dynamic",
            "dynamic for digits and the MNIST family, unless a decoder of grey values is given",
        ),
    ] = None
    """how grey values become binary"""
    kl_warmup: Annotated[float | None, _auto("FLOAT", "a tenth of the epochs")] = None
    """the epochs over which the weight of the KL term rises from 0; without it latents may
    never come to be used"""
    epochs: Annotated[
        int | None, _auto("INT", "20, or as many as make 3000 steps, at most 300")
    ] = None
    """how often to visit every training example"""
    batch_size: int = 128
    """the examples of one step"""
    lr: float = 2e-3
    """Adam's learning rate at the start"""
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    """what becomes of the learning rate: cosine takes it to zero over the epochs"""
    clip_norm: Annotated[float | None, _auto("FLOAT", "no clipping")] = None
    """the norm that gradients are scaled down to where they exceed it"""
    patience: Annotated[int | None, _auto("INT", "train all epochs")] = None
    """stop after so many epochs without a better validation ELBO, and keep the best weights"""
    seed: int = 0
    """the seed of weights, order and noise"""
    engine: Annotated[
        Literal["eager", "graph", "inductor", "auto"] | None,
        _auto("eager|graph|inductor|auto", "what so many steps are worth"),
    ] = None
    """how steps are run: in Python, captured as a graph, compiled, or as is fastest"""
    precision: Literal["float32", "bf16"] = "float32"
    """the precision of the networks' matrix products while training"""
    device: Device = None
    """cpu or cuda"""
    run_dir: Annotated[Path | None, _auto("PATH", "runs/DATA-DATE-TIME")] = None
    """a new folder for the run"""


@dataclass(kw_only=True)
class Train(_Training):
    """Train a VAE, measure it, and write a report.

    `pyrovae train my_model.py:build` trains a program of your own: build is called with the
    shape of one observation, and its keyword arguments become options, --build.NAME.
    """

    prior: Prior = "standard-normal"
    """p(z)"""
    encoder: Encoder = "gaussian"
    """q(z|x)"""
    decoder: Annotated[
        Decoder | None,
        _auto(
            "bernoulli|continuous-bernoulli|gaussian|pixelwise-gaussian",
            "bernoulli for binary data, else gaussian, with a learned shared scale",
        ),
    ] = None
    """p(x|z)"""
    network: Network = "mlp"
    """the networks of encoder and decoder"""
    hidden: Annotated[int | None, _auto("INT", "400 for mlp, 32 for conv")] = None
    """the width of the hidden layer"""
    latent_dim: int = 50
    """the number of latent dimensions"""
    beta: float = 1.0
    """the weight of the KL term in the training loss"""


@dataclass
class Evaluate:
    """Measure a run: ELBO, log p(x) and their errors, in nats per example."""

    run: RunPath
    num_samples: int = 5000
    """the importance samples of each example"""
    limit: Annotated[int | None, _auto("INT", "all")] = None
    """how many examples, the first ones"""
    data: OtherData = None
    """other data to measure it on, preprocessed as the run's own were"""
    json: bool = False
    """print one JSON object and nothing else"""
    seed: int = 0
    """the seed of the samples"""
    data_dir: OldDataDir = None
    """where named data sets lie"""
    device: Device = None
    """cpu or cuda"""


@dataclass
class _Draws:
    run: RunPath
    data: OtherData = None
    """other data to show it on, preprocessed as the run's own were"""
    output: Annotated[Path | None, _auto("PATH", "RUN/VERB.png")] = None
    """the picture to write"""
    data_dir: OldDataDir = None
    """where named data sets lie"""
    device: Device = None
    """cpu or cuda"""


@dataclass
class Sample(_Draws):
    """Draw new examples from the prior."""

    count: int = 64
    """how many"""
    seed: int = 0
    """the seed of the samples"""
    draw: bool = False
    """draw x from its likelihood, rather than show its mean"""


@dataclass
class Reconstruct(_Draws):
    """Show held-out examples above their reconstructions."""

    count: int = 10
    """how many"""


@dataclass
class Traverse(_Draws):
    """Move single latent dimensions of one held-out example."""

    example: int = 0
    """the index of the example"""
    dims: Annotated[tuple[int, ...] | None, _auto("INT [INT ...]", "the ten that vary most")] = (
        None
    )
    """the dimensions"""
    site: Annotated[str | None, _auto("NAME", "z")] = None
    """the latent site"""


@dataclass
class Interpolate(_Draws):
    """Go from one held-out example to another in latent space."""

    start: int = 0
    """the index of the first example"""
    end: int = 1
    """the index of the last example"""
    steps: int = 10
    """the number of pictures"""


@dataclass
class Report:
    """Write a run's report.html anew."""

    run: RunPath
    data_dir: OldDataDir = None
    """where named data sets lie"""
    device: Device = None
    """cpu or cuda"""


VERBS = {
    "train": Train,
    "evaluate": Evaluate,
    "sample": Sample,
    "reconstruct": Reconstruct,
    "traverse": Traverse,
    "interpolate": Interpolate,
    "report": Report,
}


def main(arguments: list[str] | None = None) -> None:
    """Parses a command, runs it, and turns every error into one line and an exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        program, words = _split_program(given)
        command = tyro.extras.subcommand_cli_from_dict(
            {**VERBS, "train": _train_type(program)},
            prog="pyrovae",
            description="Variational autoencoders as probabilistic programs, in Pyro.",
            args=words,
        )
        if isinstance(command, _Training):
            _train(command, program, given)
        else:
            _with_run(command)
    except PyrovaeError as error:
        sys.exit(_fail(str(error), 2))
    except _Terminated:
        sys.exit(_fail("Terminated.", 128 + signal.SIGTERM))
    except KeyboardInterrupt:
        sys.exit(_fail("Interrupted.", 128 + signal.SIGINT))
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to say, or to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which saves what there is as an interrupt does."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _fail(message: str, code: int) -> int:
    print(f"pyrovae: {message}", file=sys.stderr)
    return code


# ── train ────────────────────────────────────────────────────────────────────────────────────


def _split_program(words: list[str]) -> tuple[str | None, list[str]]:
    """Takes the program `file.py:build` out of `train file.py:build --options`."""
    if len(words) > 1 and words[0] == "train" and not words[1].startswith("-"):
        return words[1], [words[0], *words[2:]]
    return None, words


def _train_type(program: str | None) -> type:
    """The options of train: with a user's program, its own take the place of our parts'."""
    if program is None:
        return Train

    from pyrovae.user_programs import keyword_arguments, load_builder

    build = make_dataclass("Build", keyword_arguments(load_builder(program)), kw_only=True)
    required = any(f.default is MISSING for f in fields(build))
    default = field() if required else field(default_factory=build)

    return make_dataclass(
        "TrainProgram",
        [("build", build, default)],
        bases=(_Training,),
        namespace={"__doc__": f"Train {program}, measure it, and write a report."},
        kw_only=True,
    )


def _train(options: Any, program_spec: str | None, words: list[str]) -> None:
    from functools import partial

    import torch

    from pyrovae.data import load_data
    from pyrovae.devices import describe_environment, resolve_device
    from pyrovae.preparation import check_options
    from pyrovae.schedules import constant, cosine
    from pyrovae.training import fit

    check_options(lr=options.lr, epochs=options.epochs, batch_size=options.batch_size)
    device = resolve_device(options.device)
    binarize = options.binarize
    if binarize is None and getattr(options, "decoder", None) not in (None, "bernoulli"):
        binarize = "none"
    data = load_data(options.data, data_dir=options.data_dir, binarize=binarize)
    torch.manual_seed(options.seed)
    program, about, record = _build(options, program_spec, data)

    steps = -(-len(data.train) // options.batch_size)
    epochs = options.epochs
    if epochs is None:
        epochs = min(max(DEFAULT_EPOCHS, -(-DEFAULT_STEPS // steps)), MOST_EPOCHS)
    kl_warmup = epochs / 10 if options.kl_warmup is None else options.kl_warmup
    path = options.run_dir or _new_path(data.name)
    _print_start(describe_environment(device)["hardware"], device, data, about)
    print(
        f"training {epochs} epochs of batches of {options.batch_size}, KL warm-up over "
        f"{kl_warmup:g}, seed {options.seed}"
    )

    schedule = cosine(1.0, 0.0, epochs * steps) if options.lr_schedule == "cosine" else constant()
    run = fit(
        program,
        data,
        optimizer=partial(torch.optim.Adam, lr=options.lr, fused=True),
        epochs=epochs,
        batch_size=options.batch_size,
        kl_warmup=kl_warmup,
        lr_schedule=schedule,
        clip_norm=options.clip_norm,
        patience=options.patience,
        seed=options.seed,
        engine=options.engine,
        precision=options.precision,
        device=device,
        run_dir=path,
        config={"command": shlex.join(["pyrovae", *words]), **record},
    )
    found = run.evaluate(num_samples=FINAL_SAMPLES, limit=FINAL_EXAMPLES)
    print()
    _print_numbers(found, _noun(data.x_shape))
    print(f"\nrun      {path}", flush=True)
    print(f"report   {run.report()}\n\nNext:")
    name = shlex.quote(str(path))
    for verb in (f"evaluate {name} --num-samples 5000", f"sample {name}", f"traverse {name}"):
        print(f"  {_own_name()} {verb}")


def _build(
    options: Any, program_spec: str | None, data: "Data"
) -> "tuple[Program, str, dict[str, Any]]":
    """The program, a line about it, and what the run's configuration says of it."""
    if program_spec is None:
        from pyrovae.building import build_vae, default_decoder

        decoder = options.decoder or default_decoder(data)
        vae = build_vae(
            data,
            prior=options.prior,
            encoder=options.encoder,
            decoder=decoder,
            network=options.network,
            hidden=options.hidden,
            latent_dim=options.latent_dim,
            beta=options.beta,
        )
        about = (
            f"{options.latent_dim} latents, {options.prior} prior, {options.encoder} encoder, "
            f"{decoder} decoder, {options.network}"
        )
        return vae, f"{about}, {_count(vae)} parameters", {}

    from pyrovae import user_programs

    record = user_programs.describe(program_spec, asdict(options.build))
    program = user_programs.build(record, data.x_shape)
    about = f"{program_spec}, {_count(user_programs.as_module(program))} parameters"
    return program, about, {"program": record}


def _count(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def _new_path(data: str) -> Path:
    """runs/DATA-DATE-TIME, with a number behind it where that exists."""
    stem = f"{Path(data).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(path for name in names if not (path := Path("runs") / name).exists())


def _print_start(hardware: str, device: Any, data: "Data", about: str) -> None:
    splits = data.splits.values()
    shape = " x ".join(map(str, data.x_shape))
    print(f"device   {device}: {hardware}")
    print(f"data     {data.name}, {shape}, {data.values} values, {data.preprocessing.summary}")
    print(f"splits   {' / '.join(f'{len(s):,}' for s in splits)} ({data.split_rule})")
    print(f"model    {about}")


def _own_name() -> str:
    """What to type to call this command: "pyrovae" where the shell would find it."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m pyrovae"
    found = shutil.which("pyrovae")
    if called.name != "pyrovae" or (found and Path(found).resolve() == called.resolve()):
        return "pyrovae"
    return shlex.quote(str(called))


def _noun(x_shape: tuple[int, ...]) -> str:
    return "image" if len(x_shape) == 3 else "example"


def _print_numbers(found: "Evaluation", noun: str) -> None:
    numbers = found.summary()
    heavy = numbers["pareto_k_above_0.7"]
    for label, key in (("test ELBO", "elbo"), ("log p(x)", "log_evidence")):
        error = "" if numbers[f"{key}_se"] is None else f"+- {numbers[f'{key}_se']:.2f} "
        print(f"{label:12} {numbers[key]:10.2f} {error}nats per {noun}")
    print(f"{'active units':12} {found.active_units:7d} of {found.latent_dims}")
    if found.collapsed:
        print(f"             warning: {COLLAPSE}")
    if found.bits_per_dim is not None:
        kind = "" if found.log_cell_volume == 0 else " (of the dequantised data: an upper bound)"
        print(f"{'bits per dim':12} {found.bits_per_dim:10.3f}{kind}")
    print(
        f"             by {found.num_samples} importance samples for each of "
        f"{found.num_examples} {noun}s, in {found.seconds:.1f} s; +- is one standard error "
        "over them"
    )
    print(
        f"             Monte Carlo error of log p(x) {found.monte_carlo_error:.3f}; "
        + (
            "k-hat: too few samples to tell"
            if heavy is None
            else f"k-hat above 0.7 for {heavy:.0%}"
        )
    )


# ── The verbs that take a run ────────────────────────────────────────────────────────────────


def _with_run(command: Any) -> None:
    from pyrovae.runs import load

    run = load(command.run, data_dir=command.data_dir, device=command.device)
    if getattr(command, "data", None) is not None:
        run = run.on(command.data, data_dir=command.data_dir)
    if isinstance(command, Evaluate):
        _evaluate(run, command)
    elif isinstance(command, Report):
        print(run.report())
    else:
        verb = type(command).__name__.lower()
        print(_draw(run, command).save(command.output or command.run / f"{verb}.png"))


def _evaluate(run: "Run", command: Evaluate) -> None:
    found = run.evaluate(num_samples=command.num_samples, limit=command.limit, seed=command.seed)
    if command.json:
        print(json.dumps(found.summary()))
    else:
        _print_numbers(found, _noun(tuple(run.config["data"]["x_shape"])))


def _draw(run: "Run", command: Any) -> "Picture":
    if isinstance(command, Sample):
        return run.sample(command.count, draw=command.draw, seed=command.seed)
    if isinstance(command, Reconstruct):
        return run.reconstruct(command.count)
    if isinstance(command, Interpolate):
        return run.interpolate(command.start, command.end, steps=command.steps)
    dims = None if command.dims is None else list(command.dims)
    return run.traverse(command.example, site=command.site, dims=dims)

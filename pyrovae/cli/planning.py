"""What a command of `train` amounts to: the data, the program and all that `fit` is told."""

__all__ = ["KINDS", "Plan", "claim", "plan"]

import shlex
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.cli.parts import chosen, own_files
from pyrovae.errors import InputError
from pyrovae.run_folder import find
from pyrovae.user_files import describe

if TYPE_CHECKING:
    import torch

    from pyrovae.bounds import Bound
    from pyrovae.building import Choice
    from pyrovae.data import Data
    from pyrovae.programs import Program
    from pyrovae.resuming import Matched

KINDS = ("prior", "encoder", "decoder")
# Small data are visited more often: about so many steps make a VAE of their size.
DEFAULT_STEPS = 3000
DEFAULT_EPOCHS, MOST_EPOCHS = 20, 300


@dataclass
class Plan:
    """A training before it starts.

    Attributes:
        options: What was typed, and the defaults of all else.
        spec: The user's own program, `file.py:build`, or None.
        loading: The arguments of `load_data`.
        data: What it gave.
        program: What is trained.
        about: A line about it.
        bound: What is maximised, or None for Pyro's `Trace_ELBO`.
        matched: What of the program begins at another run's weights, if any does.
        device: Where it is trained.
        epochs: How often every example is visited.
        kl_warmup: The epochs over which the weight of the KL term rises.
        path: The folder of the run.
        record: What its configuration says of where it comes from.
    """

    options: Any
    spec: str | None
    loading: dict[str, Any]
    data: "Data"
    program: "Program"
    about: str
    bound: "Bound | None"
    matched: "Matched | None"
    device: "torch.device"
    epochs: int
    kl_warmup: float
    path: Path
    record: dict[str, Any]

    @property
    def steps(self) -> int:
        """The steps of an epoch."""
        return -(-len(self.data.train) // self.options.batch_size)

    @property
    def is_standardized(self) -> bool:
        """Whether counts are standardised, for a decoder of real values."""
        from pyrovae.data import Standardize

        return self.data.values == "counts" and isinstance(self.data.preprocessing, Standardize)

    def for_fit(self) -> dict[str, Any]:
        """The arguments of `fit` behind the program and the data."""
        from functools import partial

        import torch

        from pyrovae.schedules import constant, cosine

        options = self.options
        cools = options.lr_schedule == "cosine"
        return {
            "bound": self.bound,
            "optimizer": partial(torch.optim.Adam, lr=options.lr, fused=True),
            "epochs": self.epochs,
            "batch_size": options.batch_size,
            "kl_warmup": self.kl_warmup,
            "lr_schedule": cosine(1.0, 0.0, self.epochs * self.steps) if cools else constant(),
            "clip_norm": options.clip_norm,
            "patience": options.patience,
            "seed": options.seed,
            "engine": options.engine,
            "steps_per_replay": options.steps_per_replay,
            "precision": options.precision,
            "device": self.device,
        }


def plan(options: Any, spec: str | None, words: list[str]) -> Plan:
    """Loads the data and builds the program that a command describes.

    Raises:
        InputError: If it describes none.
    """
    import torch
    from pyro.infer import Trace_ELBO

    from pyrovae.building import build_bound, values_of
    from pyrovae.data import AsIs, load_data
    from pyrovae.devices import resolve_device
    from pyrovae.inspection import inspect_program
    from pyrovae.preparation import check_bound, check_options, check_replays
    from pyrovae.resuming import start_from

    check_options(
        lr=options.lr,
        epochs=options.epochs,
        batch_size=options.batch_size,
        kl_warmup=options.kl_warmup,
        clip_norm=options.clip_norm,
        patience=options.patience,
        seed=options.seed,
    )
    check_replays(options.steps_per_replay, options.engine)
    device = resolve_device(options.device)
    decoder = chosen("decoder", options, words) if spec is None else None
    loading = _loading(options, decoder)
    data = load_data(options.data, **loading)
    if data.values == "counts" and decoder is not None and values_of(decoder) == "real":
        data = data.standardized()
    if decoder is not None and _loses_its_range(data, decoder):
        loading |= {"binarize": None, "preprocessing": AsIs()}
        data = data.preprocessed(AsIs())
    torch.manual_seed(options.seed)
    bound = build_bound(chosen("bound", options, words), chosen("kl", options, words))
    has_kl = _weighs_kl(bound, options)
    program, about, record = _build(options, spec, words, data)
    # What three examples show to be wrong is said before a word of the training.
    few = data.train.head(3)
    check_bound(program, inspect_program(program, few), bound or Trace_ELBO(), few)
    matched = start_from(program, options.init_from) if options.init_from else None

    steps = -(-len(data.train) // options.batch_size)
    epochs = options.epochs
    if epochs is None:
        epochs = min(max(DEFAULT_EPOCHS, -(-DEFAULT_STEPS // steps)), MOST_EPOCHS)
    warmup = epochs / 10 if has_kl else 0
    return Plan(
        options=options,
        spec=spec,
        loading=loading,
        data=data,
        program=program,
        about=about,
        bound=bound,
        matched=matched,
        device=device,
        epochs=epochs,
        kl_warmup=warmup if options.kl_warmup is None else options.kl_warmup,
        path=options.run_dir or _new_path(data.name),
        record={**_origin(options, spec, words), **record},
    )


def _weighs_kl(bound: "Bound | None", options: Any) -> bool:
    """Whether the bound has a KL to weigh.

    Raises:
        InputError: If it has none, and a weight was given.
    """
    from pyrovae.bounds.base import weighs_kl

    if weighs_kl(bound):
        return True
    given = {"--beta": getattr(options, "beta", 1) != 1, "--kl-warmup": bool(options.kl_warmup)}
    for name, is_given in given.items():
        if is_given:
            raise InputError(
                f"{name} weighs the KL, and {bound} leaves none.",
                f"Leave {name} out, or give an alpha below 1.",
            )
    return False


def _origin(options: Any, spec: str | None, words: list[str]) -> dict[str, Any]:
    """What the run was begun by: enough to begin it again, and to see that it is the same."""
    files = own_files(options, spec)
    init = options.init_from and str(find(options.init_from).resolve())
    return {
        "init_from": init,
        "command": shlex.join(["pyrovae", *words]),
        "folder": str(Path.cwd()),
        "files": [{**describe(path), "name": name} for path, name in files],
    }


def _loading(options: Any, decoder: "Choice | None") -> dict[str, Any]:
    """How the data are loaded: as the decoder that was named takes them, or by their default."""
    from pyrovae.building import OF_SEQUENCES, WHOLE, values_of
    from pyrovae.data import AsIs

    binarize, preprocessing = options.binarize, None
    if decoder is not None:
        values = values_of(decoder)
        if values in WHOLE and binarize in (None, "none"):
            binarize, preprocessing = None, AsIs()
        elif values != "binary" and binarize is None:
            binarize = "none"
    return {
        "data_dir": options.data_dir,
        "binarize": binarize,
        "preprocessing": preprocessing,
        "missing": options.missing,
        "columns": options.columns,
        # A program of the user's own has no network of ours.
        "sequences": options.sequences or getattr(options, "network", None) in OF_SEQUENCES,
        "size": options.size,
        "pad": options.pad,
        "grey": options.grey or None,
        "skip_bad": options.skip_bad,
    }


def _loses_its_range(data: "Data", decoder: "Choice") -> bool:
    """Whether numbers were standardised, of which a likelihood takes none outside [0, 1].

    Codes of a table stay as they are.
    """
    from pyrovae.building import values_of
    from pyrovae.data import Standardize

    has_numbers = data.columns is None or not all(column.codes for column in data.columns)
    is_standardized = isinstance(data.preprocessing, Standardize)
    return is_standardized and has_numbers and values_of(decoder) in ("unit", "binary")


def _build(
    options: Any, spec: str | None, words: list[str], data: "Data"
) -> "tuple[Program, str, dict[str, Any]]":
    """The program, a line about it, and what the run's configuration says of it."""
    if spec is None:
        from pyrovae.building import Choice, build_vae, default_decoder
        from pyrovae.decoders import NanMaskedDecoder
        from pyrovae.parts import to_config

        prior, encoder, decoder, network = (
            chosen(kind, options, words) for kind in (*KINDS, "network")
        )
        assert prior is not None
        assert encoder is not None
        assert network is not None
        decoder = decoder or Choice(default_decoder(data))
        vae = build_vae(
            data,
            prior=prior,
            encoder=encoder,
            decoder=decoder,
            network=network,
            hidden=options.hidden,
            latent_dim=options.latent_dim,
            beta=options.beta,
        )
        to_config(vae)  # a class that cannot be built again is refused before it is trained
        masked = ", missing entries left out" * isinstance(vae.decoder, NanMaskedDecoder)
        about = (
            f"{options.latent_dim} latents, {prior.name} prior, {encoder.name} encoder, "
            f"{decoder.name} decoder{masked}, {options.network}"
        )
        return vae, f"{about}, {_count(vae)} parameters", {}

    from pyrovae import user_programs

    arguments = asdict(options.build) | user_programs.supplied(spec, len(data.train))
    record = user_programs.describe(spec, arguments)
    program = user_programs.make(record, data.x_shape, Path(record["file"]))
    about = f"{spec}, {_count(user_programs.as_module(program))} parameters"
    return program, about, {"program": record}


def _count(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def claim(plan: Plan) -> None:
    """Makes the folder of a run that was given none, so that two which start at once have two."""
    while plan.options.run_dir is None:
        try:
            plan.path.mkdir(parents=True)
        except FileExistsError:
            plan.path = _new_path(plan.data.name)
            continue
        except OSError:
            pass  # what cannot be written is said where it is written to
        return


def _new_path(data: str) -> Path:
    """runs/DATA-DATE-TIME, with a number behind it where that exists."""
    stem = f"{Path(data).resolve().stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(path for name in names if not (path := Path("runs") / name).exists())

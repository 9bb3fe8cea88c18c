"""The verb `train`."""

__all__ = ["train"]

import shlex
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.cli.parts import chosen, own_files
from pyrovae.cli.printing import noun, print_numbers
from pyrovae.run_folder import find
from pyrovae.user_files import digest

if TYPE_CHECKING:
    from pyrovae.building import Choice
    from pyrovae.data import Data
    from pyrovae.programs import Program

KINDS = ("prior", "encoder", "decoder")
# Small data are visited more often: about so many steps make a VAE of their size.
DEFAULT_STEPS = 3000
DEFAULT_EPOCHS, MOST_EPOCHS = 20, 300
# What `train` measures at its end: enough for an error bar well under a nat in a few seconds.
FINAL_SAMPLES, FINAL_EXAMPLES = 500, 1000


def train(
    options: Any, program_spec: str | None, words: list[str], *, resume: bool = False
) -> None:
    """Trains what the options say, measures it, and prints what it found and what comes next."""
    from functools import partial

    import torch

    from pyrovae.building import build_bound
    from pyrovae.devices import describe_environment, resolve_device
    from pyrovae.preparation import check_options
    from pyrovae.resuming import start_from
    from pyrovae.schedules import constant, cosine
    from pyrovae.training import fit

    check_options(lr=options.lr, epochs=options.epochs, batch_size=options.batch_size)
    device = resolve_device(options.device)
    data = _load(options, chosen("decoder", options, words) if program_spec is None else None)
    torch.manual_seed(options.seed)
    bound = build_bound(chosen("bound", options, words), chosen("kl", options, words))
    program, about, record = _build(options, program_spec, words, data)
    matched = start_from(program, options.init_from) if options.init_from else None

    steps = -(-len(data.train) // options.batch_size)
    epochs = options.epochs
    if epochs is None:
        epochs = min(max(DEFAULT_EPOCHS, -(-DEFAULT_STEPS // steps)), MOST_EPOCHS)
    kl_warmup = epochs / 10 if options.kl_warmup is None else options.kl_warmup
    path = options.run_dir or _new_path(data.name)
    _print_start(describe_environment(device)["hardware"], device, data, about)
    if matched is not None:
        print(f"weights  {_by_module(matched.taken)} from {options.init_from}")
        if matched.left:
            print(f"         {_by_module(matched.left)} new")
    if bound is not None:
        print(f"bound    {bound}")
    print(
        f"training {epochs} epochs of batches of {options.batch_size}, KL warm-up over "
        f"{kl_warmup:g}, seed {options.seed}"
    )

    schedule = cosine(1.0, 0.0, epochs * steps) if options.lr_schedule == "cosine" else constant()
    try:
        run = fit(
            program,
            data,
            bound=bound,
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
            resume=resume,
            config={**_origin(options, program_spec, words), **record},
        )
    except KeyboardInterrupt:
        print(f"\nTo go on with it: {_own_name()} resume {shlex.quote(str(path))}", flush=True)
        raise
    print()
    if run.structure.has_bound:
        found = run.evaluate(num_samples=FINAL_SAMPLES, limit=FINAL_EXAMPLES)
        print_numbers(found, noun(data.x_shape))
    else:
        print("The program has no log p(x) to measure: see pyrovae.Autoencoder.")
    print(f"\nrun      {path}", flush=True)
    print(f"report   {run.report()}\n\nNext:")
    name = shlex.quote(str(path))
    measured = (f"evaluate {name} --num-samples 5000", f"sample {name}", f"traverse {name}")
    shown = (f"reconstruct {name}", f"interpolate {name}", f"traverse {name}")
    for verb in measured if run.structure.has_bound else shown:
        print(f"  {_own_name()} {verb}")


def _origin(options: Any, program_spec: str | None, words: list[str]) -> dict[str, Any]:
    """What the run was begun by: enough to begin it again, and to see that it is the same."""
    files = own_files(options, program_spec)
    init = options.init_from and str(find(options.init_from).resolve())
    return {
        "init_from": init,
        "command": shlex.join(["pyrovae", *words]),
        "folder": str(Path.cwd()),
        "files": [{"file": str(path), "sha256": digest(path)} for path in files],
    }


def _load(options: Any, decoder: "Choice | None") -> "Data":
    """The data as the decoder that was named takes them, or as they are by default."""
    from pyrovae.building import WHOLE, values_of
    from pyrovae.data import AsIs, load_data

    binarize, preprocessing = options.binarize, None
    if decoder is not None:
        values = values_of(decoder)
        if values in WHOLE and binarize in (None, "none"):
            binarize, preprocessing = None, AsIs()
        elif values != "binary" and binarize is None:
            binarize = "none"
    data = load_data(
        options.data,
        data_dir=options.data_dir,
        binarize=binarize,
        preprocessing=preprocessing,
        columns=options.columns,
        size=options.size,
        pad=options.pad,
        grey=options.grey or None,
        skip_bad=options.skip_bad,
    )
    is_real = decoder is not None and values_of(decoder) == "real"
    return data.standardized() if data.values == "counts" and is_real else data


def _build(
    options: Any, program_spec: str | None, words: list[str], data: "Data"
) -> "tuple[Program, str, dict[str, Any]]":
    """The program, a line about it, and what the run's configuration says of it."""
    if program_spec is None:
        from pyrovae.building import Choice, build_vae, default_decoder

        prior, encoder, decoder = (chosen(k, options, words) for k in KINDS)
        assert prior is not None
        assert encoder is not None
        decoder = decoder or Choice(default_decoder(data))
        vae = build_vae(
            data,
            prior=prior,
            encoder=encoder,
            decoder=decoder,
            network=options.network,
            hidden=options.hidden,
            latent_dim=options.latent_dim,
            beta=options.beta,
        )
        about = (
            f"{options.latent_dim} latents, {prior.name} prior, {encoder.name} encoder, "
            f"{decoder.name} decoder, {options.network}"
        )
        return vae, f"{about}, {_count(vae)} parameters", {}

    from pyrovae import user_programs

    record = user_programs.describe(program_spec, asdict(options.build))
    program = user_programs.build(record, data.x_shape)
    about = f"{program_spec}, {_count(user_programs.as_module(program))} parameters"
    return program, about, {"program": record}


def _count(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def _by_module(names: list[str]) -> str:
    """Tensors counted by the module that they are in: prior 1, decoder.net 4."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items())


def _new_path(data: str) -> Path:
    """runs/DATA-DATE-TIME, with a number behind it where that exists."""
    stem = f"{Path(data).resolve().stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(path for name in names if not (path := Path("runs") / name).exists())


def _print_start(hardware: str, device: Any, data: "Data", about: str) -> None:
    from pyrovae.data.tables import summary

    splits = data.splits.values()
    shape = " x ".join(map(str, data.x_shape))
    print(f"device   {device}: {hardware}")
    in_colour = data.values == "grey" and len(data.x_shape) == 3 and data.x_shape[0] > 1
    values = "colour" if in_colour else data.values
    kind = "a table" if data.columns else f"{values} values"
    print(f"data     {data.name}, {shape}, {kind}, {data.preprocessing.summary}")
    print(f"splits   {' / '.join(f'{len(s):,}' for s in splits)} ({data.split_rule})")
    if data.cache is not None:
        print(f"cache    {data.cache}")
    if data.columns is not None:
        print(f"columns  {summary(data.columns)}")
    for note in data.notes:
        print(f"         {note}")
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

"""The verb `doctor`: what there is to work with, and what to do about what is not."""

__all__ = ["doctor"]

import os
from pathlib import Path

from pyrovae.errors import InputError


def doctor() -> None:
    """Prints versions, devices, compiler, folders, and which named data sets are at hand."""
    import torch

    from pyrovae.capture import has_compiler
    from pyrovae.data.raw import cache_folder, data_folder
    from pyrovae.devices import cuda_problem, describe_environment, resolve_device
    from pyrovae.run_folder import RUNS

    device = torch.device("cuda" if cuda_problem() is None else "cpu")
    found = describe_environment(resolve_device(device))
    hardware, _ = found.pop("hardware"), found.pop("device")
    _print("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
    _print("device", f"{device}: {hardware}")
    _print("cuda", _about_cuda(cuda_problem()))
    compiler = "found: long trainings are compiled on the CPU"
    missing = "not found: steps are captured, and not compiled; install g++ or clang++"
    _print("compiler", compiler if has_compiler() else missing)
    _print("cache", _about_folder(cache_folder()))
    _print("runs", _about_folder(RUNS.resolve()))
    folder = data_folder()
    _print("data", f"{folder}{'' if folder.is_dir() else ', not there yet'}")
    for name, state in _about_data(folder):
        print(f"  {name:<16} {state}")


def _print(label: str, text: str) -> None:
    print(f"{label:<9} {text}")


def _about_cuda(problem: str | None) -> str:
    if problem is None:
        return "works"
    if problem == "":
        return "no GPU is to be seen"
    return (
        f"there is a GPU that torch cannot use ({problem}): update the NVIDIA driver, or install "
        "a torch built for it"
    )


def _about_folder(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}, not there yet"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{folder}, {sum(path.stat().st_size for path in files) / 2**20:,.0f} MiB"


def _about_data(folder: Path) -> "list[tuple[str, str]]":
    """Each named set, and whether it can be read without a network."""
    from pyrovae.data.downloads import OFFLINE
    from pyrovae.data.named import NAMED

    offline = os.environ.get(OFFLINE)
    os.environ[OFFLINE] = offline or "by doctor"
    try:
        return [(name, _state_of(name, folder, offline)) for name in NAMED]
    finally:
        del os.environ[OFFLINE]
        if offline is not None:
            os.environ[OFFLINE] = offline


def _state_of(name: str, folder: Path, offline: str | None) -> str:
    from pyrovae.data.downloads import OFFLINE
    from pyrovae.data.sources import read

    try:
        splits = read(name, folder).splits.values()
    except InputError as error:
        if OFFLINE in error.cause and not offline:
            return "downloaded when it is first named"
        return f"not at hand. {error.remedy}"
    shape = " x ".join(map(str, next(iter(splits))[0].shape[1:]))
    return f"{sum(len(x) for x, _ in splits):,} images of {shape}"

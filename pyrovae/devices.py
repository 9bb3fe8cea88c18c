"""The device that a command runs on, and what a run says of its machine."""

__all__ = ["count_idle", "cuda_problem", "describe_environment", "resolve_device", "send"]

import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from pyrovae.errors import InputError, first_line


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """The device asked for, or else CUDA where it works, or else the CPU.

    A GPU that this torch cannot use is a warning with its remedy.

    Raises:
        InputError: If a device was asked for by name and cannot be used.
    """
    if name is not None:
        try:
            # Torch would name a dozen others that it has words for.
            if str(name).split(":")[0] not in ("cpu", "cuda"):
                raise RuntimeError("it is neither cpu nor cuda")
            device = torch.device(name)
            torch.zeros(1, device=device).add_(1).item()
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"The device {str(name)!r} cannot be used ({first_line(error)}).",
                "Take --device cpu.",
            ) from error
        return device

    problem = cuda_problem()
    if problem is None:
        return _own_gpu()
    if problem:
        warnings.warn(
            f"There is a GPU that torch {torch.__version__} cannot use ({problem}), so the CPU is "
            "used. Update the NVIDIA driver, or install a torch built for it.",
            stacklevel=2,
        )
    return torch.device("cpu")


def _own_gpu() -> torch.device:
    """The GPU of this process: of several on one machine each has another.

    Raises:
        InputError: If there are more processes than GPUs.
    """
    number, count = os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
    if number is None:
        return torch.device("cuda")
    if int(number) >= count:
        raise InputError(
            f"Process {int(number) + 1} of this machine has no GPU: there are {count}.",
            f"Start torchrun with --nproc-per-node {count}, or give --device cpu.",
        )
    return torch.device("cuda", int(number))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device.

    On its way to a GPU it is not waited for, nor is what the GPU has still to do: one that leaves
    the CPU's own memory has been read when this returns. On its way from there it has to be.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def count_idle(device: torch.device) -> int:
    """How many GPUs stand idle beside the one that is used."""
    return torch.cuda.device_count() - 1 if device.type == "cuda" else 0


def cuda_problem() -> str | None:
    """None where CUDA works, "" where there is no GPU, and else what is wrong with it."""
    if not torch.cuda.is_available():
        return "no usable driver" if Path("/dev/nvidia0").exists() else ""
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return first_line(error)
    return None


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, as a run records them."""
    packages = ("pyrovae", "torch", "pyro-ppl", "numpy")
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    return {
        "device": str(device),
        "hardware": hardware,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]

    return names[0] if names else platform.processor() or platform.machine()

"""What a piece of Python costs in a process of its own: seconds, and peak memory on Linux."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Seconds; the peak of all resident memory in GB, and of what is not mapped from files."""

    seconds: float
    resident: float
    own: float


def measured(code, *words):
    """Runs a piece of code with arguments, asking a few times a second what it holds."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)])
    resident = own = 0.0
    while process.poll() is None:
        resident = max(resident, _kept(process.pid, "VmHWM"))
        own = max(own, _kept(process.pid, "RssAnon"))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"it ended with {process.returncode}")
    return Cost(time.perf_counter() - start, resident, own)


def _kept(pid, name):
    try:
        found = re.search(rf"{name}:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e9 if found else 0.0

"""How the cost of a step grows: with the batch, the particles, the latents, the rows of data.

The program is the dense VAE of `vae.py`, under Pyro's SVI and under CompiledSVI, compiled by
Inductor, or recorded as a CUDA graph on a GPU. Of batch 128, one particle, 50 latents and 1,000
rows one is changed at a time; particles are vectorised. The rows lie in memory, a byte per pixel,
and a step takes a random batch of them, which its time includes.

Every point is a process of its own, so that no peak of memory hides in another's; Pyro's SVI and
CompiledSVI take turns, point by point. The first steps are not counted: they compile. Then come
`repeats` rounds of steps, each about a second long, of which the table has the median, the
smallest and the largest. The peak is the largest resident set of the process: imports, data and,
for CompiledSVI, Inductor are in it. On a GPU it is that of what torch holds there, the data among
it. A slope is that of the logarithm of the time, or of the peak beyond the imports, over the
logarithm of the size: by least squares over all sizes, and in brackets between the last two. An
axis ends when its share of the budget is spent.

    python benchmarks/growth.py [--budget 1800] [--device cuda] [--repeats 5] [--out FILE]
"""

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

from timing import add_device, lines_of, number, parse, parser, provenance, publish

KINDS = ("Pyro SVI", "CompiledSVI")
AXES = {
    "batch": (32, 128, 512, 2048, 8192),
    "particles": (1, 8, 64, 512),
    "latents": (2, 16, 128, 1024),
    "rows": (1_000, 10_000, 100_000, 1_000_000),
}
SMOKE_AXES = {"batch": (2, 4), "particles": (2,), "latents": (3,), "rows": (200,)}


def measure(kind, axis, size, given, until):
    """What a point found, or why it found nothing."""
    command = [sys.executable, str(Path(__file__).with_name("growth_point.py"))]
    command += ["--kind", kind, f"--{axis}", str(size), "--repeats", str(given.repeats)]
    command += ["--device", given.device]
    command += ["--round-seconds", "0.01" if given.smoke_test else "1"]
    left = until - time.monotonic()
    try:
        if left <= 0:
            raise subprocess.TimeoutExpired(command, left)
        print(f"{axis} {size}, {kind}", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return "over the budget"
    return json.loads(done.stdout) if done.returncode == 0 else f"exit status {done.returncode}"


def measure_axis(axis, sizes, given, until):
    return {
        size: {kind: measure(kind, axis, size, given, until) for kind in KINDS} for size in sizes
    }


def slope(points):
    """The slope of log y over log x, of all points and of the last two."""
    if len(points) < 2:
        return ""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    (x0, y0), (x1, y1) = logs[-2:]
    overall = statistics.linear_regression(*zip(*logs, strict=True)).slope
    return f"{overall:.2f} ({(y1 - y0) / (x1 - x0):.2f})"


def cells(point):
    """A point's time, its range and its peak."""
    if isinstance(point, str):
        return [f"not measured ({point})", "", ""]
    times = [1e3 * s for s in point["seconds"]]
    spread = f"{number(min(times))} - {number(max(times))}"
    return [number(statistics.median(times)), spread, f"{point['peak']:.0f}"]


def quotient(above, below):
    """The ratio of the median times of two points."""
    if isinstance(above, str) or isinstance(below, str):
        return ""
    return f"{statistics.median(above['seconds']) / statistics.median(below['seconds']):.2f}"


def slopes(kind, found):
    measured = {size: row[kind] for size, row in found.items() if not isinstance(row[kind], str)}
    times = [(size, statistics.median(p["seconds"])) for size, p in measured.items()]
    peaks = [(size, p["peak"] - p["imported"]) for size, p in measured.items()]
    return [slope(times), "", slope(peaks)]


def table(axis, found):
    headings = [axis]
    for kind in KINDS:
        headings += [f"{kind}, ms", "from - to", "peak, MiB"]
    headings.append(" / ".join(KINDS))
    rows = [headings, ["---"] * len(headings)]
    for size, points in found.items():
        of_point = [cell for point in points.values() for cell in cells(point)]
        rows.append([f"{size:,}", *of_point, quotient(*points.values())])
    rows.append(["slope", *(c for kind in KINDS for c in slopes(kind, found)), ""])
    return lines_of(rows)


def remarks(found):
    """The peak of a process that has done nothing yet, and the back ends that were used."""
    points = [p for axis in found.values() for row in axis.values() for p in row.values()]
    measured = [point for point in points if not isinstance(point, str)]
    if not measured:
        return ""
    imported = statistics.median(point["imported"] for point in measured)
    engines = sorted({engine for point in measured for engine in point["engines"]})
    used = f" CompiledSVI ran as {', '.join(engines)}." if engines else ""
    return f"Imports alone take {imported:.0f} MiB.{used}" if imported else used.strip()


def main():
    options = parser(__doc__, repeats=5)
    options.add_argument("--budget", type=float, default=1800.0, help="seconds for everything")
    add_device(options)
    given = parse(options)
    axes = SMOKE_AXES if given.smoke_test else AXES

    found, end = {}, time.monotonic() + given.budget
    for index, (axis, sizes) in enumerate(axes.items()):
        share = (end - time.monotonic()) / (len(axes) - index)
        found[axis] = measure_axis(axis, sizes, given, time.monotonic() + share)

    lines = [line for axis, points in found.items() for line in (*table(axis, points), "")]
    source = provenance(given, f"growth.py --budget {given.budget:.0f}")
    publish("growth", [*lines, remarks(found), "", source], given.out, given.device)


if __name__ == "__main__":
    main()

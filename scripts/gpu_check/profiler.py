"""The slowest kernels of one step, seen from outside: by Nsight Systems or Nsight Compute, where one of them is.

One step of one picture of 1024², after a step that warms up; each kernel's time on the card, summed by its name.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_check import lines  # noqa: E402

SLOWEST = 15
MOST_LAUNCHES = 6000
"""Kernels that Nsight Compute looks at: each takes it milliseconds."""


def slowest(kernels: Iterable[tuple[str, float, int]]) -> dict[str, Any]:
    """The sums by name, of `(name, nanoseconds, times)`."""
    sums: dict[str, list[float]] = {}
    for name, nanoseconds, times in kernels:
        entry = sums.setdefault(name, [0.0, 0])
        entry[0] += nanoseconds
        entry[1] += times
    whole = sum(entry[0] for entry in sums.values())
    if not whole:
        raise ValueError("the profiler saw no kernel")
    rows = sorted(sums.items(), key=lambda row: -row[1][0])[:SLOWEST]
    return {
        "kernels": int(sum(entry[1] for entry in sums.values())),
        "kernel_ms": lines.rounded(whole / 1e6),
        "slowest": [
            {"name": name[:160], "times": int(entry[1]), "ms": lines.rounded(entry[0] / 1e6), "share": lines.rounded(entry[0] / whole)}
            for name, entry in rows
        ],
    }


def of_ncu(text: str) -> list[tuple[str, float, int]]:
    """Rows of `ncu --csv --page raw`: a line of titles, a line of units, then a line a kernel."""
    start = next((at for at, line in enumerate(text.splitlines()) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError(f"no table in what ncu said: {text[-400:]}")
    rows = list(csv.DictReader(io.StringIO("\n".join(text.splitlines()[start:]))))
    found = []
    units = rows[0]["gpu__time_duration.sum"] if rows else ""
    factor = {"nsecond": 1.0, "ns": 1.0, "usecond": 1e3, "us": 1e3, "msecond": 1e6, "ms": 1e6}.get(units, 1.0)
    for row in rows:
        if row.get("ID"):
            found.append((row["Kernel Name"], float(row["gpu__time_duration.sum"].replace(",", "")) * factor, 1))
    return found


def of_nsys(text: str) -> list[tuple[str, float, int]]:
    """Rows of `nsys stats --report cuda_gpu_kern_sum --format csv`."""
    all_lines = text.splitlines()
    start = next((at for at, line in enumerate(all_lines) if line.startswith("Time (%)")), None)
    if start is None:
        raise ValueError(f"no table in what nsys said: {text[-400:]}")
    rows = csv.DictReader(io.StringIO("\n".join(all_lines[start:])))
    return [(row["Name"], float(row["Total Time (ns)"]), int(row["Instances"])) for row in rows if row.get("Instances")]


def run(command: list[str], seconds: float) -> str:
    """What it printed; an error where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1), check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def main() -> None:
    """Tries one after the other."""
    parser = lines.parser(__doc__ or "")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--root", default=".")
    options = parser.parse_args()
    record = lines.Record(options)
    if not options.device.startswith("cuda"):
        record.skipped("kernels of a step", "these profilers look at GPUs")
        return
    with tempfile.TemporaryDirectory() as folder:
        step = [options.binary, "step", "--device", options.device, "--work", str(options.work), "--root", options.root]
        step += ["--lines", str(Path(folder) / "lines"), *(["--quick"] if options.quick else [])]

        def nsys() -> dict[str, Any]:
            out = str(Path(folder) / "step")
            capture = ["--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--cuda-graph-trace=node"]
            run(["nsys", "profile", "-t", "cuda", *capture, "-o", out, *step], record.left())
            stats = ["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", f"{out}.nsys-rep"]
            return {"by": "nsys", **slowest(of_nsys(run(stats, record.left())))}

        def ncu() -> dict[str, Any]:
            asks = ["--metrics", "gpu__time_duration.sum", "--clock-control", "none", "--cache-control", "none"]
            shape = ["--csv", "--page", "raw", "--profile-from-start", "off", "--launch-count", str(MOST_LAUNCHES)]
            return {"by": "ncu", **slowest(of_ncu(run(["ncu", *asks, *shape, *step], record.left())))}

        for name, way in (("nsys", nsys), ("ncu", ncu)):
            if not shutil.which(name):
                record.skipped(f"kernels of a step, {name}", f"{name} is not on the PATH")
            elif record.case(f"kernels of a step, {name}", 10, way):
                return


if __name__ == "__main__":
    main()

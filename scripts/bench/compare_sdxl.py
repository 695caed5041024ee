"""Times SDXL text-to-image on the CPU: diffusers against Darkroom, same machine, same run, same threads, same weights.

Weights are random ones of SDXL's real size (`make_random_sdxl.py`; made if they are not there: 6.9 GB for each side's
layout). Runs alternate, each side in its own process and never both at once: diffusers in f32 holds about 14 GB.
Reported: the fastest and the median step, loading, encoding, decoding, and peak memory; as a table, and as JSON.

    python compare_sdxl.py --darkroom target/release/darkroom --weights /data/random_sdxl
    python compare_sdxl.py --weights /data/random_sdxl --only diffusers --compute bf16 --steps 1

Peak memory is the process's largest resident size; "own" leaves out pages of mapped files, which the system can take
back at any time. Figures from a busy machine mean little: the load average at each run's start is in the report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEFAULT_RESULTS = HERE.parents[1] / "benches/results"
NEEDED_GB = {
    ("diffusers", "f32"): 16.0,
    ("diffusers", "bf16"): 9.0,
    ("darkroom", "f32"): 9.0,
    ("darkroom", "bf16"): 9.0,
}
POLL_SECONDS = 0.1


@dataclass
class Run:
    """One process's figures. Memory in GB (10^9 bytes)."""

    side: str
    load_average: float
    wall_seconds: float
    peak_gb: float
    peak_own_gb: float
    load_seconds: float
    encode_seconds: float
    step_seconds: list[float]
    decode_seconds: float | None


class RunFailed(Exception):
    """A process that gave no figures, and why."""


def proc_values(path: Path) -> dict[str, int]:
    """The sizes (in bytes) in /proc/PID/status or /proc/meminfo; empty when the process is gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields}


def child_environment(threads: int) -> dict[str, str]:
    """The same number of threads, however a program asks for it."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return os.environ | {name: str(threads) for name in names} | {"HF_HUB_OFFLINE": "1"}


def measure(side: str, command: list[str], timings: Path, threads: int, timeout: float) -> Run:
    """Runs the command on `threads` cores, watches its memory, and reads the timings that it wrote."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    load, begin = os.getloadavg()[0], time.monotonic()
    process = subprocess.Popen(
        command,
        env=child_environment(threads),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    peak = peak_own = 0
    try:
        while process.poll() is None:
            memory = proc_values(Path(f"/proc/{process.pid}/status"))
            peak = max(peak, memory.get("VmHWM", 0))
            peak_own = max(peak_own, memory.get("RssAnon", 0))
            if time.monotonic() - begin > timeout:
                raise RunFailed(f"not done after {timeout:.0f} s (--timeout)")
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wall = time.monotonic() - begin
    if process.returncode != 0:
        reason = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        hint = " (killed: out of memory?)" if process.returncode == -signal.SIGKILL else ""
        raise RunFailed(f"ended with {reason}{hint}: {' '.join(command)}")
    try:
        written = json.loads(timings.read_text())
        figures = {name: written[name] for name in ("load_seconds", "encode_seconds", "step_seconds", "decode_seconds")}
    except (OSError, ValueError, KeyError) as error:
        raise RunFailed(f"wrote no usable timings to {timings}: {error!r}") from error
    if not figures["step_seconds"]:
        raise RunFailed("reported no steps")
    return Run(side, load, wall, peak / 1e9, peak_own / 1e9, **figures)


def command_of(side: str, arguments: argparse.Namespace, scratch: Path, timings: Path) -> list[str]:
    """The command line of one side."""
    shared = ["--prompt", arguments.prompt, "--negative", arguments.negative, "--width", str(arguments.width)]
    shared += ["--height", str(arguments.height), "--steps", str(arguments.steps), "--cfg", str(arguments.cfg)]
    shared += ["--timings", str(timings)]
    if side == "diffusers":
        command = [sys.executable, str(HERE / "diffusers_sdxl.py"), str(arguments.weights / "diffusers"), *shared]
        command += ["--threads", str(arguments.threads), "--compute", arguments.compute]
        return command + (["--skip-decode"] if arguments.skip_decode else [])
    command = [
        str(arguments.darkroom),
        "generate",
        "--model",
        str(arguments.weights / "sdxl_random.safetensors"),
        *shared,
    ]
    command += ["--sampler", "euler", "--scheduler", "normal", "--seed", "0", "--count", "1", "--out", str(scratch)]
    return command + arguments.darkroom_args.split()


def make_weights(arguments: argparse.Namespace, sides: list[str]) -> None:
    """Makes what the sides read, where it is missing."""
    wanted = {"diffusers": (arguments.weights / "diffusers", "diffusers")}
    wanted["darkroom"] = (arguments.weights / "sdxl_random.safetensors", "single-file")
    for side in sides:
        path, layout = wanted[side]
        # Text encoder 2 is the last part written: with it the folder is whole.
        whole = path / "text_encoder_2/model.safetensors" if layout == "diffusers" else path
        if not whole.exists():
            print(f"making {path}", flush=True)
            command = [sys.executable, str(HERE / "make_random_sdxl.py"), str(path), "--layout", layout, "--force"]
            subprocess.run(command, check=True)


def enough_memory(side: str, compute: str) -> str | None:
    """What is wrong with starting this side now, if anything."""
    available = proc_values(Path("/proc/meminfo")).get("MemAvailable", 0) / 1e9
    needed = NEEDED_GB[side, compute]
    if available >= needed:
        return None
    return f"{available:.1f} GB of memory are available, about {needed:.0f} are needed (--ignore-memory tries anyway)"


def summary(runs: list[Run], skip_decode: bool) -> dict[str, float | None]:
    """One side's figures over all its runs."""
    steps = [second for run in runs for second in run.step_seconds]
    decodes = [run.decode_seconds for run in runs if run.decode_seconds is not None and not skip_decode]
    return {
        "step, fastest (s)": min(steps),
        "step, median (s)": statistics.median(steps),
        "load, fastest (s)": min(run.load_seconds for run in runs),
        "encode, fastest (s)": min(run.encode_seconds for run in runs),
        "decode, fastest (s)": min(decodes) if decodes else None,
        "peak memory (GB)": max(run.peak_gb for run in runs),
        "peak memory, own (GB)": max(run.peak_own_gb for run in runs),
    }


def table(summaries: dict[str, dict[str, float | None]]) -> str:
    """A Markdown table, one column a side, and their ratio when there are both."""
    both = len(summaries) == 2
    header = ["", *summaries, *(["darkroom / diffusers"] if both else [])]
    rows = [header, ["---"] * len(header)]
    for name in next(iter(summaries.values())):
        values = [figures[name] for figures in summaries.values()]
        row = [name, *("–" if value is None else f"{value:.2f}" for value in values)]
        if both:
            reference, ours = summaries["diffusers"][name], summaries["darkroom"][name]
            row.append(f"{ours / reference:.2f}" if reference and ours is not None else "–")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def machine(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    memory = proc_values(Path("/proc/meminfo")).get("MemTotal", 0) / 1e9
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gb": round(memory, 1),
        # Without what only the machine's owner knows the kernel by.
        "system": "-".join(
            [platform.system(), platform.release().split("-")[0], platform.machine(), "with", "".join(platform.libc_ver())]
        ),
    }


def versions(darkroom: Path | None) -> dict[str, str]:
    """Of both sides."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    if darkroom:
        answer = subprocess.run([str(darkroom), "--version"], capture_output=True, text=True, timeout=60)
        found["darkroom"] = answer.stdout.strip() or "?"
    return found


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--darkroom", type=Path, help="the darkroom program, built with --release")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the random checkpoint in both layouts")
    parser.add_argument("--only", choices=("diffusers", "darkroom"), help="measure one side alone")
    parser.add_argument(
        "--compute", choices=("f32", "bf16"), default="f32", help="diffusers' type (default: %(default)s)"
    )
    parser.add_argument("--darkroom-args", default="", metavar="'ARGS'", help="more arguments for darkroom generate")
    parser.add_argument("--steps", type=int, default=3, help="sampling steps a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="and cores (default: all, %(default)s)"
    )
    parser.add_argument("--width", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--height", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--cfg", type=float, default=7.0, help="above 1 a step is a batch of 2 (default: %(default)s)")
    parser.add_argument("--prompt", default="a red fox in a forest", help="default: %(default)s")
    parser.add_argument("--negative", default="blurry", help="default: %(default)s")
    parser.add_argument(
        "--skip-decode", action="store_true", help="leave decoding out (darkroom decodes still, uncounted)"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a run may take (default: %(default)s)")
    parser.add_argument("--ignore-memory", action="store_true", help="start even when memory looks short")
    parser.add_argument(
        "--results", type=Path, default=DEFAULT_RESULTS, help="folder of the report (default: benches/results)"
    )
    arguments = parser.parse_args()
    if arguments.only != "diffusers":
        if arguments.darkroom is None:
            parser.error("--darkroom PATH is needed (or --only diffusers)")
        found = shutil.which(arguments.darkroom)
        if found is None:
            parser.error(
                f"{arguments.darkroom} is not a program: cargo build --release, then --darkroom target/release/darkroom"
            )
        arguments.darkroom = Path(found).resolve()
    return arguments


def main() -> None:
    """Runs both sides in turn and reports."""
    arguments = parse()
    sides = [arguments.only] if arguments.only else ["diffusers", "darkroom"]
    make_weights(arguments, sides)
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    failures: list[str] = []
    plan = [(repeat, side) for repeat in range(arguments.repeats) for side in sides]
    for number, (repeat, side) in enumerate(plan, 1):
        print(f"run {number} of {len(plan)}: {side}, load average {os.getloadavg()[0]:.1f}", flush=True)
        try:
            problem = None if arguments.ignore_memory else enough_memory(side, arguments.compute)
            if problem:
                raise RunFailed(problem)
            with tempfile.TemporaryDirectory() as name:
                timings = Path(name) / "timings.json"
                command = command_of(side, arguments, Path(name) / "out", timings)
                run = measure(side, command, timings, arguments.threads, arguments.timeout)
        except RunFailed as error:
            failures.append(f"{side}, run {repeat + 1}: {error}")
            print(f"  FAILED: {error}", flush=True)
            continue
        runs[side].append(run)
        steps = ", ".join(f"{second:.2f}" for second in run.step_seconds)
        print(
            f"  load {run.load_seconds:.1f} s, steps {steps} s, peak {run.peak_gb:.1f} GB (own {run.peak_own_gb:.1f})",
            flush=True,
        )
    summaries = {side: summary(done, arguments.skip_decode) for side, done in runs.items() if done}
    if not summaries:
        sys.exit("no run succeeded")
    text = table(summaries)
    print(
        f"\nSDXL {arguments.width}×{arguments.height}, diffusers {arguments.compute}, {arguments.threads} threads\n\n{text}"
    )
    options = {
        name: getattr(arguments, name)
        for name in ("compute", "darkroom_args", "steps", "repeats", "width", "height", "cfg", "skip_decode")
    }
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(arguments.threads),
        "versions": versions(arguments.darkroom),
        "options": options,
        "summary": summaries,
        "runs": [asdict(run) for done in runs.values() for run in done],
        "failures": failures,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = (
        arguments.results / f"sdxl_{'_'.join(summaries)}_{arguments.compute}_{arguments.width}x{arguments.height}.json"
    )
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{path}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

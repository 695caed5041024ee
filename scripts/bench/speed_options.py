"""Measures what the options that trade exactness for speed gain and cost, against the same pictures without them.

Draws the same pictures (several prompts, several seeds each) plainly and with each option, each as a process of its own,
the variants one after the other in every round, and reports for each variant: how much faster the denoising was by the
clock, how much less processor time the whole processes took (which other work on the machine disturbs less, and which
counts loading, prompts and decoding as well), and how far its pictures are from the plain ones: PSNR and SSIM (Wang et
al. 2004, Gaussian window of 11, luma). As a table and as JSON. For a sense of the scale there is a row with the same
prompts and other seeds.

    python speed_options.py --darkroom target/release/darkroom
    python speed_options.py --darkroom target/release/darkroom --model sd_xl_base_1.0.safetensors --size 1024 \
        --prompt "a lighthouse at dusk" --prompt "portrait of an old sailor" --output sdxl.json

A model with random weights (`make_random_sdxl.py`) has the speed of a real one, but what its pictures are worth says
nothing: pass --speed-only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROMPTS = [
    "1girl, blonde hair, blue eyes, smile",
    "1boy, black hair, red shirt, angry",
    "1girl, red hair, green eyes, sad",
    "scenery, house, tree, sun",
]
VARIANTS: dict[str, list[str]] = {
    "fp8": ["--precision", "fp8"],
    "guidance interval 0-0.8": ["--guidance-interval", "0-0.8"],
    "guidance interval 0-0.6": ["--guidance-interval", "0-0.6"],
    "guidance interval 0.2-0.8": ["--guidance-interval", "0.2-0.8"],
    "step cache 2": ["--cache-interval", "2"],
    "step cache 3": ["--cache-interval", "3"],
    "step cache 5": ["--cache-interval", "5"],
    "step cache 2, branch 0": ["--cache-interval", "2", "--cache-branch-id", "0"],
    "step cache 3, branch 0": ["--cache-interval", "3", "--cache-branch-id", "0"],
    "step cache 5, branch 0": ["--cache-interval", "5", "--cache-branch-id", "0"],
    "step cache 3, branch 5": ["--cache-interval", "3", "--cache-branch-id", "5"],
    "step cache 2, interval 0-0.8": ["--cache-interval", "2", "--guidance-interval", "0-0.8"],
}
PLAIN = "plain"
OTHER_SEEDS = "other seeds"
# Dynamic range and constants of SSIM.
RANGE, K1, K2 = 255.0, 0.01, 0.03
WINDOW, SIGMA = 11, 1.5


@dataclass
class Drawn:
    """What one variant drew in one round."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    pictures: list[np.ndarray] = field(default_factory=list)


def command(args: argparse.Namespace, prompt: str, seed: int, out: Path, timings: Path) -> list[str]:
    """The command line of the plain pictures."""
    size = [] if args.size is None else ["--width", str(args.size), "--height", str(args.size)]
    return [
        *(str(args.darkroom), "generate", "--quiet", "--model", args.model, "--prompt", prompt),
        *("--seed", str(seed), "--count", str(args.count), "--steps", str(args.steps), *size),
        *("--out", str(out), "--timings", str(timings), "--precision", args.precision, *args.extra.split()),
    ]


def draw(args: argparse.Namespace, flags: list[str], first_seed: int) -> Drawn:
    """All prompts with these flags."""
    drawn = Drawn()
    for prompt in args.prompt or PROMPTS:
        with tempfile.TemporaryDirectory() as folder:
            timings = Path(folder) / "timings.json"
            line = [*command(args, prompt, first_seed, Path(folder), timings), *flags]
            before = processor_seconds()
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            drawn.processor_seconds += processor_seconds() - before
            if done.returncode != 0:
                sys.exit(f"{' '.join(line)}\n{done.stderr}")
            drawn.seconds += sum(json.loads(timings.read_text())["step_seconds"])
            for path in sorted(Path(folder).glob("*.png")):
                drawn.pictures.append(np.asarray(Image.open(path).convert("RGB"), dtype=np.float64))
    return drawn


def processor_seconds() -> float:
    """Processor time of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all channels; infinite for equal pictures."""
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(RANGE**2 / error)


def blurred(x: np.ndarray) -> np.ndarray:
    """Convolved with SSIM's window, without the border where it does not fit."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    rows = np.apply_along_axis(lambda line: np.convolve(line, window, "valid"), 0, x)
    return np.apply_along_axis(lambda line: np.convolve(line, window, "valid"), 1, rows)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of the luma, the mean over all places of the window."""
    a, b = (picture @ [0.299, 0.587, 0.114] for picture in (a, b))
    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(above / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))))


def likeness(pictures: list[np.ndarray], plain: list[np.ndarray]) -> dict[str, float | None]:
    """How far pictures are from the plain ones: the mean and the worst. No number stands for equal pictures."""
    pairs = list(zip(pictures, plain, strict=True))
    ratios, similar = [psnr(a, b) for a, b in pairs], [ssim(a, b) for a, b in pairs]
    finite = lambda value: None if math.isinf(value) else round(value, 2)
    return {
        "psnr_db": finite(statistics.fmean(ratios)),
        "psnr_db_worst": finite(min(ratios)),
        "ssim": round(statistics.fmean(similar), 4),
        "ssim_worst": round(min(similar), 4),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    variants = {PLAIN: [], **VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    pictures: dict[str, list[np.ndarray]] = {}
    load = os.getloadavg()[0]
    for number in range(args.rounds):
        for name, flags in variants.items():
            drawn = draw(args, flags, args.seed)
            seconds[name].append(drawn.seconds)
            processor[name].append(drawn.processor_seconds)
            pictures[name] = drawn.pictures
            told = f"{drawn.seconds:.2f} s of denoising, {drawn.processor_seconds:.2f} s of processors"
            print(f"round {number + 1}, {name}: {told}", file=sys.stderr)
    if not args.speed_only:
        pictures[OTHER_SEEDS] = draw(args, [], args.seed + 1000).pictures
    rows = []
    for name in [*variants, *([] if args.speed_only else [OTHER_SEEDS])]:
        row: dict[str, Any] = {"variant": name, "flags": variants.get(name, [])}
        if name in seconds:
            # Within a round, so that a machine that slows down does so for both.
            for label, figures in (("denoising", seconds), ("processor", processor)):
                ratios = [plain / own for plain, own in zip(figures[PLAIN], figures[name], strict=True)]
                row[f"{label}_seconds"] = [round(value, 3) for value in figures[name]]
                row[f"{label}_ratio"] = round(statistics.median(ratios), 3)
                row[f"{label}_ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        if not args.speed_only:
            row |= likeness(pictures[name], pictures[PLAIN])
        rows.append(row)
    return {
        "what": "options that trade exactness for speed, against the same pictures without them",
        "machine": {"cpu": cpu(), "cores": len(os.sched_getaffinity(0)), "load_average_before": round(load, 1)},
        "build": args.build,
        "model": args.model if args.model == "embedded" else Path(args.model).name,
        "settings": {
            "pictures": len(pictures[PLAIN]),
            "steps": args.steps,
            "size": args.size,
            "precision": args.precision,
            "extra_flags": args.extra,
            "rounds": args.rounds,
        },
        "variants": rows,
    }


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(report: dict[str, Any]) -> str:
    """The report for people, in Markdown."""
    lines = ["| | denoising | processor time | PSNR dB (worst) | SSIM (worst) |", "|---|---|---|---|---|"]
    shown = lambda value: "equal" if value is None else f"{value:.1f}"
    for row in report["variants"]:
        ratios = [f"{row[name]:.2f}" if name in row else "" for name in ("denoising_ratio", "processor_ratio")]
        if "ssim" in row:
            alike = [
                f"{shown(row['psnr_db'])} ({shown(row['psnr_db_worst'])})",
                f"{row['ssim']:.3f} ({row['ssim_worst']:.3f})",
            ]
        else:
            alike = ["", ""]
        lines.append(f"| {' | '.join([row['variant'], *ratios, *alike])} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--darkroom", type=Path, required=True, help="the program")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--prompt", action="append", help="may be repeated; default: four that the built-in model knows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=4, help="pictures of a prompt")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, help="pixels a side; default: the model's own")
    parser.add_argument("--precision", default="full")
    parser.add_argument("--extra", default="", help="more flags for every run: '--sampler euler'")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speed-only", action="store_true", help="compare no pictures")
    parser.add_argument("--build", default="release", help="how the program was built, for the report")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    report = measure(args)
    print(table(report))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Times Qwen-Image's networks on the CPU, layer by layer: diffusers and transformers against Darkroom, same machine, same
run, same threads, same weights, same inputs.

Weights are random ones of the real widths (`make_random_qwen_image.py`; made if they are not there). Both sides hold
their networks at once, each in its own process, and run in turns; one sleeps while the other runs. The time of a layer
is the difference between the medians of two depths. What comes out is compared too.

    cargo build --profile bench -p darkroom-pipelines --bench qwen_image   # says where the program is
    python compare_qwen_image.py --bench target/release/deps/qwen_image-HASH --weights /data/random_qwen_image

`bf16` is products of bfloat16 numbers in Darkroom, activations and all in torch. Darkroom's text encoder always computes
in f32, which is said in the report.

Memory is what a process grows by from before it loads the network to the end of its first run: "peak" is of its largest
resident size, with pages of mapped files, which the system can take back at any time; "own" is without them, as often
as it was looked at. Others' share of the processors during each run is in the report: seconds from a busy machine mean
little, seconds of the processor ("cpu") more, though they count what a thread spins while it waits for another.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from compare_sdxl import DEFAULT_RESULTS, HERE, child_environment, machine, proc_values, versions
from safetensors.torch import load_file, save_file

PARTS = ("transformer", "text-encoder", "vae")
SIDES = ("diffusers", "darkroom")
POLL_SECONDS = 0.01
TICKS = os.sysconf("SC_CLK_TCK")
CELL = 8
"""Pixels of a latent cell's side."""


def ticks(pid: int) -> tuple[float, float, float]:
    """Processor time in clock ticks: the machine's, what of it was busy, and this process'."""
    spent = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    # The name, in brackets, may hold anything; user and system time are 12 and 13 fields behind it.
    own = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(spent), sum(spent) - sum(spent[3:5]), sum(map(int, own))


class Worker:
    """One side's process."""

    def __init__(self, side: str, part: str, compute: str, inputs: Path, arguments: argparse.Namespace) -> None:
        threads = arguments.threads
        if side == "diffusers":
            command = [sys.executable, str(HERE / "diffusers_qwen_image.py"), str(arguments.weights)]
            command += ["--compute", compute, "--threads", str(threads)]
        else:
            command = [str(arguments.bench), "--driven", "--weights", str(arguments.weights)]
            command += ["--precision", "bf16" if compute == "bf16" else "full"]
        command += ["--part", part, "--inputs", str(inputs)]
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.side = side
        self.process = subprocess.Popen(
            command,
            env=child_environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        if side == "diffusers":
            self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.side} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, order: str) -> dict[str, Any]:
        """Does it, and waits for the answer."""
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self._answer()

    def memory(self) -> dict[str, int]:
        """In bytes, by /proc's names."""
        return proc_values(Path(f"/proc/{self.process.pid}/status"))

    def timed(self, depth: int) -> dict[str, float]:
        """A run's seconds, those of the processors that it took, and the share of them that others took meanwhile."""
        before = ticks(self.process.pid)
        seconds = self.ask(f"run {depth}")["seconds"]
        all_, busy, own = (after - then for after, then in zip(ticks(self.process.pid), before, strict=True))
        others = max(0.0, (busy - own) / max(1.0, all_))
        return {"seconds": round(seconds, 5), "cpu_seconds": own / TICKS, "others": round(others, 3)}

    def load(self, depth: int) -> dict[str, Any]:
        """Builds the network of `depth` layers and runs it once, watching the memory."""
        before, peak_own, done = self.memory(), 0, threading.Event()

        def watch() -> None:
            nonlocal peak_own
            while not done.wait(POLL_SECONDS):
                peak_own = max(peak_own, self.memory().get("RssAnon", 0))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            said = self.ask(f"load {depth}")
            self.ask(f"run {depth}")
        finally:
            done.set()
            watcher.join()
        peak = self.memory()["VmHWM"] - before["VmRSS"]
        figures = {"load_seconds": round(said["seconds"], 2), "peak_gb": peak / 1e9}
        figures["peak_own_gb"] = (peak_own - before["RssAnon"]) / 1e9
        planned = {name: said[name] for name in said if name.startswith("planned")}
        if planned:
            figures["planned_gb"] = sum(planned.values()) / 1e9
            figures["planned_weights_gb"] = planned["planned_weight_bytes"] / 1e9
        return {name: round(value, 3) for name, value in figures.items()}

    def end(self) -> None:
        """Closes its input, and waits."""
        self.process.stdin.close()
        self.process.wait()


def differences(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Of two outputs: the largest over the largest value, and the root mean squares' ratio."""
    apart = (one - other).double()
    largest = float(apart.abs().max() / other.abs().max())
    return {"largest": float(f"{largest:.2e}"), "rms": float(f"{apart.norm() / other.double().norm():.2e}")}


def layer_seconds(runs: dict[int, list[dict[str, float]]], of: Any, what: str = "seconds") -> float:
    """Of one layer: between the deepest and the shallowest; of a network of one depth, of it all."""
    by_depth = {depth: of([run[what] for run in timed]) for depth, timed in runs.items()}
    deep, shallow = max(by_depth), min(by_depth)
    if deep == shallow:
        return by_depth[deep]
    return (by_depth[deep] - by_depth[shallow]) / (deep - shallow)


def measure(
    part: str,
    compute: str,
    depths: list[int],
    inputs: Path,
    full: dict[str, torch.Tensor],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Both sides' figures of one part, in turns. `full` keeps what diffusers gives in f32."""
    load_before = os.getloadavg()[0]
    workers = {side: Worker(side, part, compute, inputs, arguments) for side in SIDES}
    figures: dict[str, Any] = {side: {} for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        outputs = {}
        for side, worker in workers.items():
            figures[side]["memory"] = worker.load(depths[0])
            path = Path(scratch) / f"{side}.safetensors"
            worker.ask(f"save {depths[0]} {path}")
            outputs[side] = load_file(path)["out"]
            for depth in depths[1:]:
                worker.ask(f"load {depth}")
                worker.ask(f"run {depth}")
    runs: dict[str, dict[int, list[dict[str, float]]]] = {side: {depth: [] for depth in depths} for side in SIDES}
    for number in range(arguments.rounds):
        for depth in depths:
            # Each side goes first as often as the other.
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                runs[side][depth].append(workers[side].timed(depth))
    for worker in workers.values():
        worker.end()
    for side in SIDES:
        figures[side]["runs"] = {str(depth): timed for depth, timed in runs[side].items()}
        figures[side]["seconds"] = {
            "median": round(layer_seconds(runs[side], statistics.median), 5),
            "fastest": round(layer_seconds(runs[side], min), 5),
            "median_cpu": round(layer_seconds(runs[side], statistics.median, "cpu_seconds"), 3),
        }
    if compute == "f32":
        full[part] = outputs["diffusers"]
    apart = {}
    if compute != "f32" and part in full:
        apart["difference_to_f32"] = {side: differences(out, full[part]) for side, out in outputs.items()}
    theirs, ours = figures["diffusers"]["seconds"], figures["darkroom"]["seconds"]
    ratio = {of: ours[of] / theirs[of] for of in theirs if theirs[of] > 0}
    return {
        "part": part,
        "compute": compute,
        "seconds_are": "of a layer" if len(depths) > 1 else "of a pass",
        "load_average_before": round(load_before, 2),
        **figures,
        "darkroom_over_diffusers": {of: round(value, 3) for of, value in ratio.items()},
        "difference": differences(outputs["darkroom"], outputs["diffusers"]),
        **apart,
    }


def make_inputs(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The same for both sides."""
    generator = torch.Generator().manual_seed(0)
    side = arguments.size // CELL
    context = json.loads((arguments.weights / "transformer/config.json").read_text())["joint_attention_dim"]
    vocabulary = json.loads((arguments.weights / "text_encoder/config.json").read_text())["text_config"]["vocab_size"]
    return {
        "latent": torch.randn((1, 16, side, side), generator=generator),
        "timesteps": torch.tensor([0.7]),
        "context": torch.randn((1, arguments.tokens, context), generator=generator),
        "tokens": torch.randint(0, vocabulary, (1, arguments.tokens), generator=generator),
    }


def row(measured: dict[str, Any]) -> list[str]:
    """Of the printed table."""
    theirs, ours = measured["diffusers"], measured["darkroom"]
    return [
        f"{measured['part']}, {measured['compute']}, {measured['seconds_are']}",
        f"{theirs['seconds']['median']:.3f}",
        f"{ours['seconds']['median']:.3f}",
        *(f"{measured['darkroom_over_diffusers'].get(of, float('nan')):.2f}" for of in ("median", "fastest", "median_cpu")),
        f"{theirs['memory']['peak_gb']:.2f}",
        f"{ours['memory']['peak_gb']:.2f}",
        f"{ours['memory']['planned_gb']:.2f}",
        f"{measured['difference']['rms']:.1e}",
    ]


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True, help="the bench qwen_image, built with --profile bench")
    parser.add_argument("--weights", type=Path, required=True, help="diffusers folder of the random Qwen-Image")
    parser.add_argument("--blocks", type=int, default=3, help="of weights that are made (default: %(default)s)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be said more than once")
    parser.add_argument("--compute", choices=("f32", "bf16"), action="append", help="default: both")
    parser.add_argument("--size", type=int, default=512, help="sides of the picture in pixels (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="of the prompt (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each side and depth (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="and cores (default: all, %(default)s)"
    )
    parser.add_argument("--name", default="qwen_image_cpu", help="of the report (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, default=DEFAULT_RESULTS, help="folder of the report (default: benches/results)"
    )
    return parser.parse_args()


def main() -> None:
    """Runs everything and reports."""
    arguments = parse()
    if not arguments.weights.exists():
        command = [sys.executable, str(HERE / "make_random_qwen_image.py"), str(arguments.weights)]
        command += ["--blocks", str(arguments.blocks), "--text-layers", str(arguments.blocks)]
        subprocess.run(command, check=True)
    config = json.loads((arguments.weights / "transformer/config.json").read_text())
    text = json.loads((arguments.weights / "text_encoder/config.json").read_text())["text_config"]
    layers = {"transformer": config["num_layers"], "text-encoder": text["num_hidden_layers"], "vae": 1}
    computes, parts = arguments.compute or ["f32", "bf16"], arguments.only or list(PARTS)
    measured: list[dict[str, Any]] = []
    full: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs.safetensors"
        save_file(make_inputs(arguments), inputs)
        for compute in computes:
            for part in parts:
                depths = [layers[part], 1] if layers[part] > 1 else [1]
                print(f"{part}, {compute}, load average {os.getloadavg()[0]:.1f}", flush=True)
                measured.append(measure(part, compute, depths, inputs, full, arguments))
                print("  " + ", ".join(row(measured[-1])[1:]), flush=True)
    header = ["", "diffusers (s)", "darkroom (s)", "ratio", "of the fastest", "of cpu seconds", "peak, diffusers (GB)", "peak, darkroom (GB)"]
    header += ["planned (GB)", "difference"]
    rows = [header, ["---"] * len(header), *map(row, measured)]
    print("\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in rows))
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(arguments.threads),
        "versions": versions(None),
        "options": {"size": arguments.size, "tokens": arguments.tokens, "rounds": arguments.rounds, "layers": layers},
        "widths": {
            "heads": config["num_attention_heads"],
            "head": config["attention_head_dim"],
            "context": config["joint_attention_dim"],
            "text_hidden": text["hidden_size"],
            "text_intermediate": text["intermediate_size"],
        },
        "measured": measured,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{arguments.name}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()

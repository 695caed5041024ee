"""A pack of expressions through the real server over HTTP: one character with a LoRA and Canny, many at once.

The server is the bench itself (`gpu_check serve …`), with the random model. What counts is the time from the request to
the last picture. The first pack also loads, compiles and warms up, and is told apart; where the second would not fit
into the time, it has fewer steps, and its time at full length is worked out and marked so.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_check import lines  # noqa: E402

EXPRESSIONS = (
    "neutral,gentle smile,smirk,laughing,sad,crying,angry,surprised,scared,blush,wink,sleepy,pout,shy,proud,bored,"
    "confused,excited,disgusted,thinking"
).split(",")
MODEL, CONTROL, LORA = "random_sdxl", "random_canny", "random_a"


def drawing(side: int, index: int) -> bytes:
    """A PNG with edges: circles that differ from picture to picture."""
    rows = bytearray()
    half, radius = side // 2, side // 3
    for y in range(side):
        rows.append(0)
        inside = radius**2 - (y - half) ** 2
        mouth = side * 3 // 5 + index * side // 200
        dark = y in range(mouth, mouth + max(1, side // 60))
        left = half - int(max(inside, 0) ** 0.5)
        face = bytes([0 if dark and half // 2 < x < half * 3 // 2 else 255 for x in range(side)]) if dark else None
        row = face or bytes([200 if left < x < side - left else 255 for x in range(side)])
        rows += row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")


class Server:
    """The program, serving on a free port of the loopback."""

    def __init__(self, binary: str, work: Path, device: str, folder: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DARKROOM_")}
        command = [binary, "serve", "--port", "0", "--data-dir", str(folder), "--models-dir", str(work / "models")]
        command += ["--model", MODEL, "--device", device]
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        if not line.startswith("listening on "):
            self.process.wait()
            said = (folder / "log").read_text(errors="replace")[-800:]
            raise RuntimeError(f"the server did not start: {line} {said}")
        self.url = line.removeprefix("listening on ")
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def ask(self, path: str, body: Any = None) -> Any:
        """A request, and its answer's JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.open(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code}: {error.read().decode(errors='replace')[:500]}") from error

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with self.open(self.url + "/metrics", timeout=60) as answer:
            text = answer.read().decode()
        found = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def card_mib(device: str) -> int | None:
    """Memory of the card in use, by all programs."""
    if not device.startswith("cuda") or not shutil.which("nvidia-smi"):
        return None
    index = device.partition(":")[2] or "0"
    asked = subprocess.run(
        ["nvidia-smi", f"--id={index}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return int(asked.stdout) if asked.returncode == 0 and asked.stdout.strip().isdigit() else None


def pack(server: Server, pictures: int, side: int, steps: int, seed: int, device: str) -> dict[str, Any]:
    """All at once; returns when the last one can be fetched."""
    template = min(side, 512)
    requests = [
        {
            "prompt": f"1girl, light blue hair, twintails, {EXPRESSIONS[index % len(EXPRESSIONS)]}",
            "negative_prompt": "blurry, low quality, worst quality, deformed",
            "width": side, "height": side, "steps": steps, "cfg": 7.5, "sampler": "dpmpp_2m", "scheduler": "karras",
            "seed": seed, "loras": [{"id": LORA}],
            "controls": [{
                "id": CONTROL, "image": base64.b64encode(drawing(template, index)).decode(),
                "preprocess": "opencv_canny", "low": 100, "high": 200, "strength": 0.8,
            }],
        }
        for index in range(pictures)
    ]  # fmt: skip
    stages = ["encode", "prepare", "step", "decode", "write"]
    spent = {name: -server.metric(f'darkroom_stage_seconds_sum{{stage="{name}"}}') for name in stages}
    counts = [-server.metric("darkroom_step_batch_size_sum"), -server.metric("darkroom_step_batch_size_count")]
    started = time.monotonic()
    tasks = [task["task_id"] for task in server.ask("/v1/images/batch", {"requests": requests})["tasks"]]
    most = card_mib(device) or 0
    looked = started
    while tasks:
        state = server.ask(f"/v1/tasks/{tasks[-1]}")
        if state["status"] == "completed":
            tasks.pop()
            continue
        if state["status"] not in ("queued", "processing"):
            raise RuntimeError(f"a picture was not drawn: {json.dumps(state)[:500]}")
        if time.monotonic() - looked > 2:
            looked, most = time.monotonic(), max(most, card_mib(device) or 0)
        time.sleep(0.02)
    seconds = time.monotonic() - started
    for name in stages:
        spent[name] += server.metric(f'darkroom_stage_seconds_sum{{stage="{name}"}}')
    counts[0] += server.metric("darkroom_step_batch_size_sum")
    counts[1] += server.metric("darkroom_step_batch_size_count")
    return {
        "pictures": pictures, "width": side, "height": side, "steps": steps, "seconds": lines.rounded(seconds),
        "stage_seconds": {name: lines.rounded(value) for name, value in spent.items()},
        "mean_step_batch": lines.rounded(counts[0] / counts[1]) if counts[1] else None,
        "peak_mib": {"card": most} if most else {},
    }  # fmt: skip


def main() -> None:
    """Two packs."""
    parser = lines.parser(__doc__ or "")
    parser.add_argument("--binary", required=True)
    options = parser.parse_args()
    record = lines.Record(options)
    side, steps, pictures = (64, 3, 3) if options.quick else (1536, 30, 20)
    with tempfile.TemporaryDirectory(prefix="darkroom-gpu-check-pack-") as folder:
        server = Server(options.binary, options.work, options.device, Path(folder))
        try:
            # As many steps as merging a LoRA, choosing batches and compiling need to have happened.
            warm = record.case(
                "first pack", 5, lambda: {"extrapolated": False, **pack(server, 8 if pictures > 8 else 2, side, 4, 1, options.device)}
            )
            a_step = warm["stage_seconds"]["step"] / (warm["pictures"] * warm["steps"]) if warm else 0.1
            wanted = 1.3 * a_step * pictures * steps + 0.5 * pictures

            def second() -> dict[str, Any]:
                fits = wanted < record.left() - 5
                made = steps if fits else max(3, int(steps * (record.left() - 10) / wanted))
                found = pack(server, pictures, side, made, 42, options.device)
                measured = found["seconds"]
                if not fits:
                    step = found["stage_seconds"]["step"] / made
                    found["seconds"] = lines.rounded(measured + step * (steps - made))
                return {**found, "steps": steps, "steps_measured": made, "extrapolated": not fits, "measured_seconds": measured}

            record.case(f"{pictures} expressions, {side}x{side}, {steps} steps, LoRA, Canny", 5, second)
        finally:
            server.stop()


if __name__ == "__main__":
    main()

"""PyPI comfy-cli, ComfyUI's official command line: `comfy run` and what else of it asks a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

server = urlsplit(sys.argv[1])
here = ["--host", server.hostname, "--port", str(server.port)]
# A home of its own, and no word to anyone else.
environment = os.environ | {
    "HOME": str(Path("home").resolve()),
    "XDG_CONFIG_HOME": str(Path("home/.config").resolve()),
    "DO_NOT_TRACK": "1",
    "COMFY_CLI_NO_REMOTE_REFRESH": "1",
    "COMFY_NO_WATCH": "1",
    "COMFY_LOCAL_URL": sys.argv[1],
}
Path("home/.config").mkdir(parents=True)


def plain(*arguments: str) -> str:
    """Runs a command; what it says."""
    command = ["comfy", "--skip-prompt", *arguments]
    ran = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ran.returncode == 0, (arguments, ran.stdout[-2000:], ran.stderr[-2000:])
    return ran.stdout


def comfy(*arguments: str) -> list[dict]:
    """Runs a command for programs; its events, of which the last is the envelope."""
    said = plain("--json-stream", *arguments)
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert events and events[-1]["ok"], (arguments, said[-2000:])
    return events


def pictures(events: list[dict], into: str) -> None:
    """Downloads what a run made."""
    prompt = next(event["prompt_id"] for event in events if "prompt_id" in event)
    comfy("download", prompt, "--out-dir", f"{into}-out", "--where", "local")
    (made,) = Path(f"{into}-out").rglob("*.png")
    made.rename(f"{into}.png")


plain("tracking", "disable")
events = comfy("run", "--workflow", "txt2img.json", "--wait", *here)
kinds = [event["type"] for event in events]
assert "queued" in kinds and "executed" in kinds and "progress" in kinds, kinds
pictures(events, "txt2img")
print("did run --wait with progress, download")

comfy("upload", "drawing.png", *here)
pictures(comfy("run", "--workflow", "img2img.json", "--wait", *here), "img2img")
print("did upload, img2img")

plain("--no-json", "run", "--workflow", "txt2img.json", "--wait", "--verbose", *here)
print("did run for people's eyes")

comfy("system-stats")
comfy("free")
comfy("jobs", "ls", "--where", "local")
comfy("nodes", "show", "KSampler", "--where", "local")
comfy("models", "list-folder", "checkpoints", "--where", "local")
print("did system-stats, free, jobs, nodes, models")

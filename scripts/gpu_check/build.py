"""The bench: built here where cargo is, else where it lies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def binary(root: Path, device: str, quick: bool, given: Path | None) -> Path:
    """The program `benches/gpu_check`, for `device`."""
    if given:
        if not os.access(given, os.X_OK):
            sys.exit(f"gpu-check: {given} is no program")
        return given.resolve()
    if not shutil.which("cargo"):
        sys.exit(
            "gpu-check: there is no cargo here. Build elsewhere with `cargo bench --no-run --features cuda --bench "
            "gpu_check`, carry the program over, and name it with --binary"
        )
    command = ["cargo", "bench", "--no-run", "--bench", "gpu_check", "--message-format", "json-render-diagnostics"]
    if device.startswith("cuda"):
        command += ["--features", "cuda"]
    if quick:
        # Its numbers mean nothing: what `cargo test` has built is good enough.
        command += ["--profile", "dev", "--workspace"]
    built = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=False)
    if built.returncode:
        sys.exit("gpu-check: the bench does not build")
    for line in built.stdout.decode().splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target", {}).get("name") == "gpu_check":
            return Path(message["executable"])
    sys.exit("gpu-check: cargo did not say where the bench is")


def commit(root: Path) -> str | None:
    """What is checked out, and whether it was changed."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + (", changed" if changed.stdout.strip() else "")

"""Runs stages one after the other, each within its time, and goes on whatever becomes of one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_check import report as reports

MOST_STARTS = 5
"""Times that a stage's process is started: after a crash it goes on behind the case that it was at."""
GLANCE = 0.2
"""Seconds between two looks at a running stage."""
GRACE = 10
"""Seconds that a stage may take beyond its time, for what it is in the middle of."""
AGAIN = 75
"""The exit status of a process that asks to be started anew behind what it has done: its card failed."""
KEPT_OUTPUT = 2000
"""Characters that are kept of what a stage printed before it died."""


@dataclass
class Stage:
    """A part of the check."""

    name: str
    seconds: float
    """What it is meant to take; what earlier ones leave over comes on top."""
    command: Callable[[Path, float, list[str]], list[str]]
    """Its command line, by its file for lines, its seconds, and the cases that it is to leave out."""
    environment: dict[str, str] | None = None


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(timeout=3)
            return
        except subprocess.TimeoutExpired:
            continue


def run(stage: Stage, seconds: float, folder: Path, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs one stage; `tell` hears what it found so far whenever that is more than before."""
    lines_file, log_file = folder / f"{stage.name}.jsonl", folder / f"{stage.name}.log"
    started, died = time.monotonic(), {}
    result: dict[str, Any] = {"cases": {}}
    status, reason = "ok", None
    for start in range(MOST_STARTS):
        left = seconds - (time.monotonic() - started)
        if left < 1:
            status, reason = "cut", "its time was up"
            break
        done = [name for name, case in result["cases"].items()]
        command = stage.command(lines_file, left, done)
        with log_file.open("ab") as log:
            before = log.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **(stage.environment or {})},
            )  # fmt: skip
        seen, code = -1, None
        try:
            while True:
                try:
                    code = process.wait(timeout=GLANCE)
                except subprocess.TimeoutExpired:
                    pass
                size = lines_file.stat().st_size if lines_file.exists() else 0
                if size != seen:
                    seen = size
                    result = merged(reports.stage_of(reports.read_lines(lines_file)), died)
                    tell({**result, "status": "running", "took_seconds": round(time.monotonic() - started, 1)})
                if code is not None or time.monotonic() - started > seconds + GRACE:
                    break
        finally:
            # Whatever it started goes with it, also where we are told to stop.
            end(process)
        result = merged(reports.stage_of(reports.read_lines(lines_file)), died)
        open_cases = reports.unfinished(result)
        if code is None:
            status, reason = "cut", "its time was up"
            for name in open_cases:
                died[name] = "its time was up"
            break
        if code == 0:
            status, reason = "ok", None
            break
        said = log_file.read_bytes()[before:].decode("utf-8", "replace").strip()[-KEPT_OUTPUT:]
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        status, reason = "failed", f"{how}: {said}" if said else how
        for name in open_cases:
            died[name] = reason
        # Where it died at no case, it would do so again.
        if not open_cases and code != AGAIN:
            break
        status = "broken off"
    result = merged(result, died)
    if reason and "reason" not in result:
        result["reason"] = reason
    return {**result, "status": status, "took_seconds": round(time.monotonic() - started, 1)}


def merged(result: dict[str, Any], died: dict[str, str]) -> dict[str, Any]:
    """Cases that took their process with them are failures."""
    for name, reason in died.items():
        if result["cases"].get(name, {}).get("status") == "unfinished":
            result["cases"][name] = {"status": "failed", "reason": reason}
    return result

"""A report while it grows, and what the lines of its stages mean.

A stage (a process) appends lines of JSON to a file:

    {"begin": CASE}                                   a case is tried
    {"end": CASE, "status": "ok", …values…}           it is done; or "failed" or "skipped", with a "reason"
    {"fact": NAME, "value": …}                        about the stage as a whole
    {"failed": REASON}                                the stage cannot go on

A case that began and did not end took its process with it, or its time was up.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may be on its way."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            # Half a line of a process that ended in the middle, and the first line of the next.
            continue
    return lines


def stage_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the lines of one stage say, as it stands in a report. Its own status is the caller's."""
    cases: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    reasons: list[str] = []
    for line in lines:
        if "begin" in line:
            cases[line["begin"]] = {"status": "unfinished"}
        elif "end" in line:
            cases[line["end"]] = {key: value for key, value in line.items() if key != "end"}
        elif "fact" in line:
            facts[line["fact"]] = line["value"]
        elif "failed" in line:
            reasons.append(line["failed"])
    stage: dict[str, Any] = {"cases": cases}
    if facts:
        stage["facts"] = facts
    if reasons:
        stage["reason"] = "; ".join(reasons)
    return stage


def unfinished(stage: dict[str, Any]) -> list[str]:
    """Cases that began and did not end."""
    return [name for name, case in stage["cases"].items() if case["status"] == "unfinished"]


def card_name(report: dict[str, Any]) -> str | None:
    """What the machine stage says the device is."""
    return report.get("stages", {}).get("machine", {}).get("cases", {}).get("card", {}).get("name")


def file_name(card: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> `nvidia_h100_80gb_hbm3.json`."""
    return re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") + ".json"


def yardsticks(report: dict[str, Any]) -> tuple[float | None, float | None]:
    """The device's measured rates: TFLOP/s of a large 16-bit matrix product, GB/s of a large copy."""
    cases = report.get("stages", {}).get("machine", {}).get("cases", {})
    products = [case["tflops"] for name, case in cases.items() if name.startswith("matmul") and "tflops" in case]
    return (max(products) if products else None), cases.get("copy", {}).get("gb_per_second")


def add_shares(report: dict[str, Any]) -> None:
    """What share of the device's rates each case reached: of the matrix product's, or for work without matrices of the
    copy's."""
    matmul, copy = yardsticks(report)
    counted = report["stages"].get("weights", {}).get("facts", {}).get("tflop_a_picture", {})
    for case in report["stages"].get("peer", {}).get("cases", {}).values():
        # The same pictures take the same operations, whoever draws them.
        size = counted.get(f"{case.get('width')}x{case.get('height')}")
        if size and case.get("step_ms"):
            step = size["step_with_control" if case.get("control") else "step"]
            case["tflops"] = round(step * case["batch"] / case["step_ms"] * 1e3, 4)
    for name, stage in report["stages"].items():
        if name == "machine":
            continue
        for case in stage["cases"].values():
            if matmul and isinstance(case.get("tflops"), (int, float)):
                case["share_of_matmul"] = round(case["tflops"] / matmul, 4)
            if copy and isinstance(case.get("gb_per_second"), (int, float)):
                case["share_of_copy"] = round(case["gb_per_second"] / copy, 4)


def write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".new")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1, sort_keys=False)
        file.write("\n")
    os.chmod(name, 0o644)
    os.replace(name, path)

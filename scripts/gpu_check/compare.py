#!/usr/bin/env python3
"""Checks a report of scripts/gpu-check, and compares it with a kept one.

    scripts/gpu_check/compare.py NEW.json                    its form, its limits, the aims
    scripts/gpu_check/compare.py NEW.json KEPT.json          and what got worse since KEPT
    scripts/gpu_check/compare.py --schema REPORT.json …      its form alone

Ends with 1 where a limit is not kept or something got worse than the tolerances allow. Aims never fail.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_check import targets  # noqa: E402
from gpu_check.limits import failures, problems  # noqa: E402

SPEED_TOLERANCE = 0.07
"""Share by which something may be slower: the spread of clocks and of other work on the machine."""
MEMORY_TOLERANCE = 0.05
ERROR_TOLERANCE = 0.20
SMALL_ERROR = 1e-6
"""Errors below are rounding of the last bit and move freely."""
SHORT = 5.0
"""Microseconds below which a time is launching and nothing else."""
PSNR_TOLERANCE = 1.5
"""Decibels: a fifth more error."""


@dataclass
class Worse:
    """Something that got worse."""

    stage: str
    case: str
    field: str
    old: float
    new: float

    @property
    def change(self) -> float:
        """In shares of the old value."""
        return self.new / self.old - 1 if self.old else float("inf")


LESS_IS_BETTER = {
    "speed": ["seconds", "step_ms", "decode_seconds", "host_ms_a_step", "switch_ms", "merge_ms"],
    "pack": ["seconds"],
    "profile": ["ms_a_step"],
    "kernels": ["microseconds"],
}


def worse(new: dict[str, Any], old: dict[str, Any]) -> list[Worse]:
    """What got worse than is allowed. Cases that only one of the two has say nothing, but for those that failed."""
    found = []
    for stage, fields in {**LESS_IS_BETTER, "networks": [], "pictures": []}.items():
        before = old["stages"].get(stage, {}).get("cases", {})
        for name, case in new["stages"].get(stage, {}).get("cases", {}).items():
            then = before.get(name, {})
            if case["status"] != "ok" or then.get("status") != "ok":
                continue
            for field in fields:
                a, b = then.get(field), case.get(field)
                if not _numbers(a, b) or (field == "microseconds" and max(a, b) < SHORT):
                    continue
                if b > a * (1 + SPEED_TOLERANCE):
                    found.append(Worse(stage, name, field, a, b))
            a, b = then.get("error"), case.get("error")
            if _numbers(a, b) and b > max(a, SMALL_ERROR) * (1 + ERROR_TOLERANCE):
                found.append(Worse(stage, name, "error", a, b))
            a, b = then.get("psnr"), case.get("psnr")
            if _numbers(a, b) and b < a - PSNR_TOLERANCE:
                found.append(Worse(stage, name, "psnr", a, b))
            a, b = _peak(then), _peak(case)
            if _numbers(a, b) and b > a * (1 + MEMORY_TOLERANCE):
                found.append(Worse(stage, name, "peak_mib", a, b))
    return found


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _peak(case: dict[str, Any]) -> float | None:
    memory = case.get("peak_mib")
    if isinstance(memory, dict):
        return memory.get("reserved") or memory.get("used")
    return memory


def comparable(new: dict[str, Any], old: dict[str, Any]) -> str | None:
    """Why two reports cannot be compared, if they cannot."""
    for name in ("device", "quick"):
        if new[name] != old[name]:
            return f"'{name}' differs: {new[name]}, {old[name]}"
    cards = [report["stages"].get("machine", {}).get("cases", {}).get("card", {}).get("name") for report in (new, old)]
    return None if cards[0] == cards[1] else f"the cards differ: {cards[0]}, {cards[1]}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    parser.add_argument("--schema", action="store_true", help="look at the form alone, of any number of reports")
    arguments = parser.parse_args()
    if not arguments.schema and len(arguments.reports) > 2:
        parser.error("a report, or a new one and a kept one")
    reports = []
    for path in arguments.reports:
        report = json.loads(path.read_text())
        found = problems(report)
        for problem in found:
            print(f"{path}: {problem}")
        if found:
            return 1
        reports.append(report)
    if arguments.schema:
        return 0
    new = reports[0]
    for target in targets.of(new):
        said = {None: "not measured", True: "reached", False: "not reached"}[target.reached]
        measured = "-" if target.measured is None else f"{target.measured:.4g}"
        print(f"{target.name}: {measured} {target.unit}, aim {target.wanted:g}: {said}")
    bad = failures(new)
    for line in bad:
        print(f"not kept: {line}")
    slower: list[Worse] = []
    if len(reports) == 2:
        why = comparable(*reports)
        if why:
            print(f"not compared: {why}")
            return 1
        slower = worse(*reports)
        if slower:
            print(f"{'stage':<9} {'case':<60} {'what':<15} {'kept':>10} {'new':>10} {'change':>8}")
        for one in sorted(slower, key=lambda one: -abs(one.change)):
            print(
                f"{one.stage:<9} {one.case[:60]:<60} {one.field:<15} {one.old:>10.4g} {one.new:>10.4g} {one.change:>+8.1%}"
            )
    if not bad and not slower:
        print("all limits are kept" + (", nothing got worse" if len(reports) == 2 else ""))
    return 1 if bad or slower else 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether a report is one, and whether what it found is right: errors within limits, no case failed."""

from __future__ import annotations

from typing import Any

STATES = {"ok", "failed", "skipped"}
NUMBERS = {
    "kernels": ["error", "limit", "microseconds"],
    "speed": [],
    "machine": [],
}
"""What each successful case of a stage has as numbers."""


def problems(report: Any) -> list[str]:
    """What is wrong with a report's form; nothing, if it is one."""
    if not isinstance(report, dict):
        return ["a report is an object"]
    found = []
    for name, kind in (("schema", int), ("device", str), ("quick", bool), ("stages", dict), ("seed", int)):
        if not isinstance(report.get(name), kind):
            found.append(f"'{name}' is missing or no {kind.__name__}")
    if found:
        return found
    if report["schema"] != 1:
        return [f"schema {report['schema']} is unknown"]
    for name, stage in report["stages"].items():
        if not isinstance(stage, dict) or not isinstance(stage.get("cases"), dict) or "status" not in stage:
            found.append(f"stage {name}: no status or no cases")
            continue
        for case, values in stage["cases"].items():
            if not isinstance(values, dict) or values.get("status") not in STATES:
                found.append(f"{name}: {case}: status {values.get('status') if isinstance(values, dict) else values}")
            elif values["status"] == "ok":
                for field in NUMBERS.get(name, []):
                    # Rust writes infinity and NaN as null: an error that is no number is one that is too large.
                    if field not in values or (field != "error" and not isinstance(values[field], (int, float))):
                        found.append(f"{name}: {case}: '{field}' is no number")
    return found


def failures(report: dict[str, Any]) -> list[str]:
    """What a report says went wrong."""
    found = []
    for name, stage in report["stages"].items():
        if stage["status"] in ("failed", "broken off"):
            found.append(f"{name}: {stage['status']}: {(stage.get('reason') or '').splitlines()[-1:]}")
        for case, values in stage["cases"].items():
            if values["status"] == "failed":
                found.append(f"{name}: {case}: {values.get('reason', 'it failed')}")
            elif values["status"] == "ok":
                found += [f"{name}: {case}: {reason}" for reason in _beyond(values)]
    return found


def _beyond(values: dict[str, Any]) -> list[str]:
    found = []
    if "limit" in values and not (values.get("error") is not None and values["error"] <= values["limit"]):
        found.append(f"error {values.get('error')}, {values['limit']} is allowed")
    if "least_psnr" in values and not (values.get("psnr") is not None and values["psnr"] >= values["least_psnr"]):
        found.append(f"{values.get('psnr')} dB, {values['least_psnr']} are needed")
    if values.get("not_numbers"):
        found.append(f"{values['not_numbers']} values are no numbers")
    if values.get("within") is False and not found:
        found.append("not within its limits")
    return found

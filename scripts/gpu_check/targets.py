"""What the work on GPUs aims at, and whether a report reaches it. Not reaching one is no failure of the check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Target:
    """One aim."""

    name: str
    unit: str
    wanted: float
    measured: float | None
    at_least: bool
    """Whether more is better."""

    @property
    def reached(self) -> bool | None:
        """`None`: it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


def _cases(report: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    cases = report.get("stages", {}).get(stage, {}).get("cases", {})
    return [case for case in cases.values() if case.get("status") == "ok"]


def _speed(report: dict[str, Any], stage: str = "speed", **wanted: Any) -> list[dict[str, Any]]:
    return [case for case in _cases(report, stage) if all(case.get(key) == value for key, value in wanted.items())]


def _best(cases: list[dict[str, Any]], field: str, most: bool = True) -> float | None:
    values = [case[field] for case in cases if isinstance(case.get(field), (int, float))]
    return (max(values) if most else min(values)) if values else None


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def of(report: dict[str, Any]) -> list[Target]:
    """All aims, with what the report says of each."""
    plain = {"width": 1024, "height": 1024, "steps": 20, "control": False, "lora": "none"}
    ours = _speed(report, **plain)
    rate = _best(ours, "images_per_second")
    eager = _best(_speed(report, "peer", **plain, compiled=False), "images_per_second")
    compiled = _best(_speed(report, "peer", **plain, compiled=True), "images_per_second")
    alone = _speed(report, **{**plain, "steps": 30, "batch": 1})
    pack = [case for case in _cases(report, "pack") if case.get("pictures") == 20 and case.get("width") == 1536]
    switch = report.get("stages", {}).get("speed", {}).get("cases", {}).get("LoRA switch", {})

    def peak(stage: str) -> float | None:
        for case in _speed(report, stage, **plain, batch=1, **({"compiled": False} if stage == "peer" else {})):
            memory = case.get("peak_mib") or {}
            return memory.get("reserved") or memory.get("used")
        return None

    mine, theirs = peak("speed"), peak("peer")
    return [
        Target("SDXL 1024², 20 steps, guidance", "images/s", 2.04, rate, True),
        Target("the same, over diffusers eager", "times", 1.5, _ratio(rate, eager), True),
        Target("the same, over diffusers compiled", "times", 1.0, _ratio(rate, compiled), True),
        Target("one image at 30 steps", "s", 1.47, _best(alone, "seconds", most=False), False),
        Target("20 expressions, 1536², LoRA, Canny, 30 steps", "s", 60.0, _best(pack, "seconds", most=False), False),
        Target("host's work a step", "ms", 0.3, _best(ours, "host_ms_a_step", most=False), False),
        Target("LoRA switch, warm", "ms", 50.0, switch.get("switch_ms"), False),
        Target("peak memory, of diffusers'", "share", 0.8, _ratio(mine, theirs), False),
    ]

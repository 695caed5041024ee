"""The short table that ends a run."""

from __future__ import annotations

from typing import Any

from gpu_check import targets
from gpu_check.limits import failures
from gpu_check.report import card_name, yardsticks


def number(value: float | None, digits: int = 3) -> str:
    """A few digits, or a dash."""
    return "-" if value is None else f"{value:.{digits}g}"


def lines(report: dict[str, Any]) -> list[str]:
    """All of it."""
    matmul, copy = yardsticks(report)
    out = [
        f"{card_name(report) or report.get('device')}: {number(matmul, 4)} TFLOP/s, {number(copy, 4)} GB/s; "
        f"{report.get('took_seconds', 0):.0f} s" + (", quick: the numbers mean nothing" if report.get("quick") else ""),
        "",
        f"{'stage':<10} {'status':<10} {'s':>5}  cases: ok, failed, skipped",
    ]
    for name, stage in report["stages"].items():
        states = [case["status"] for case in stage["cases"].values()]
        counts = ", ".join(str(states.count(state)) for state in ("ok", "failed", "skipped"))
        why = f"  {stage['reason'].splitlines()[-1][:70]}" if stage.get("reason") else ""
        out.append(f"{name:<10} {stage['status']:<10} {stage.get('took_seconds', 0):>5.0f}  {counts}{why}")

    kernels = [case for case in report["stages"].get("kernels", {}).get("cases", {}).values() if "error" in case]
    if kernels:
        out += ["", f"{'operation':<20} {'type':<5} {'shapes':>6} {'worst error':>12} {'limit':>8} {'best share':>11}"]
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for case in kernels:
            rows.setdefault((case["operation"], case["dtype"]), []).append(case)
        for (operation, dtype), cases in rows.items():
            worst = max(case["error"] if case["error"] is not None else float("inf") for case in cases)
            share = max((case.get("share_of_matmul") or case.get("share_of_copy") or 0 for case in cases), default=0)
            out.append(
                f"{operation:<20} {dtype:<5} {len(cases):>6} {worst:>12.2e} {cases[0]['limit']:>8.0e} {share:>10.0%}"
            )

    speed = report["stages"].get("speed", {}).get("cases", {})
    peer = report["stages"].get("peer", {}).get("cases", {})
    drawn = [(name, case) for name, case in [*speed.items(), *peer.items()] if "images_per_second" in case]
    if drawn:
        out += ["", f"{'drawn':<58} {'images/s':>8} {'step ms':>8} {'TFLOP/s':>8} {'share':>6} {'host ms':>8} {'MiB':>7}"]
        for name, case in drawn:
            memory = case.get("peak_mib") or {}
            peak = memory.get("reserved") or memory.get("used") or memory.get("process")
            about = name + (" *" if case.get("extrapolated") else "")
            out.append(
                f"{about[:58]:<58} {number(case['images_per_second']):>8} {number(case.get('step_ms'), 4):>8} "
                f"{number(case.get('tflops')):>8} {case.get('share_of_matmul') or 0:>6.0%} "
                f"{number(case.get('host_ms_a_step')):>8} {peak or '-':>7}"
            )
        if any(case.get("extrapolated") for _, case in drawn):
            out.append("* from a few steps: the rest is taken to be as long as their median")

    profile = report["stages"].get("profile", {}).get("cases", {})
    slowest = sorted((c for c in profile.items() if "ms_a_step" in c[1]), key=lambda c: -c[1]["ms_a_step"])[:15]
    if slowest:
        out += ["", f"{'of a step of one picture, each by itself':<58} {'times':>6} {'ms':>8} {'TFLOP/s':>8}"]
        out += [
            f"{name[:58]:<58} {case['times']:>6} {case['ms_a_step']:>8.3g} {number(case.get('tflops')):>8}"
            for name, case in slowest
        ]

    out += ["", f"{'aim':<48} {'wanted':>10} {'measured':>10}"]
    for target in targets.of(report):
        said = {None: "not measured", True: "reached", False: "not reached"}[target.reached]
        sign = ">=" if target.at_least else "<="
        out.append(
            f"{target.name:<48} {sign + ' ' + number(target.wanted):>10} {number(target.measured):>10} {target.unit}: {said}"
        )
    bad = failures(report)
    out += ["", "all limits are kept" if not bad else f"{len(bad)} limits are not kept:"]
    out += [f"  {line[:150]}" for line in bad[:20]]
    return out

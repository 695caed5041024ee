"""Tests of the report, of running stages, and of comparing reports: `python3 -m unittest discover scripts/gpu_check`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))

from gpu_check import compare, limits, pack, profiler, report as reports, stages, table, targets  # noqa: E402


def a_report() -> dict[str, Any]:
    """One that keeps all limits and reaches all aims."""
    speed = {
        "status": "ok", "width": 1024, "height": 1024, "steps": 20, "batch": 1, "control": False, "lora": "none",
        "seconds": 0.45, "images_per_second": 2.2, "step_ms": 21.0, "tflops": 640.0, "host_ms_a_step": 0.2,
        "extrapolated": False, "peak_mib": {"used": 9000, "reserved": 9500}, "within": True,
    }  # fmt: skip
    peer = {**speed, "images_per_second": 1.2, "compiled": False, "peak_mib": {"used": 12000, "reserved": 13000}}
    return {
        "schema": 1, "device": "cuda:0", "quick": False, "date": "2026-01-01", "commit": None, "seed": 1,
        "took_seconds": 500.0,
        "stages": {
            "machine": {"status": "ok", "cases": {
                "card": {"status": "ok", "name": "NVIDIA H100 80GB HBM3"},
                "matmul bf16": {"status": "ok", "tflops": 800.0},
                "copy": {"status": "ok", "gb_per_second": 3000.0},
            }},
            "kernels": {"status": "ok", "cases": {
                "linear a bf16": {"status": "ok", "operation": "linear", "dtype": "bf16", "error": 2e-3, "limit": 1e-2,
                                  "within": True, "microseconds": 40.0, "tflops": 600.0, "gb_per_second": 900.0},
            }},
            "pictures": {"status": "ok", "cases": {
                "built-in": {"status": "ok", "psnr": 48.0, "least_psnr": 40.0, "not_numbers": 0, "within": True},
            }},
            "speed": {"status": "ok", "cases": {
                "plain": speed,
                "thirty": {**speed, "steps": 30, "seconds": 0.7, "images_per_second": 1.4},
                "LoRA switch": {"status": "ok", "switch_ms": 3.0},
            }},
            "peer": {"status": "ok", "cases": {
                "eager": peer, "compiled": {**peer, "compiled": True, "images_per_second": 1.9},
            }},
            "pack": {"status": "ok", "cases": {
                "20": {"status": "ok", "pictures": 20, "width": 1536, "seconds": 55.0},
            }},
        },
    }  # fmt: skip


class Reports(unittest.TestCase):
    def test_a_good_report_has_no_problems_and_reaches_all_aims(self) -> None:
        report = a_report()
        self.assertEqual(limits.problems(report), [])
        self.assertEqual(limits.failures(report), [])
        self.assertEqual([target.name for target in targets.of(report) if not target.reached], [])

    def test_what_was_not_measured_is_neither_reached_nor_missed(self) -> None:
        report = a_report()
        del report["stages"]["pack"]
        self.assertEqual([target.reached for target in targets.of(report)].count(None), 1)

    def test_forms_that_are_none_are_named(self) -> None:
        for change in (
            lambda r: r.pop("device"),
            lambda r: r.update(schema=2),
            lambda r: r["stages"]["kernels"].pop("status"),
            lambda r: r["stages"]["kernels"]["cases"]["linear a bf16"].update(status="fine"),
            lambda r: r["stages"]["kernels"]["cases"]["linear a bf16"].pop("microseconds"),
        ):
            report = a_report()
            change(report)
            self.assertEqual(len(limits.problems(report)), 1)

    def test_what_goes_wrong_is_told(self) -> None:
        for stage, case, change in (
            ("kernels", "linear a bf16", {"error": 2e-2, "within": False}),
            ("kernels", "linear a bf16", {"error": None, "within": False}),
            ("pictures", "built-in", {"psnr": 39.0, "within": False}),
            ("pictures", "built-in", {"not_numbers": 3, "within": False}),
            ("speed", "plain", {"within": False}),
            ("speed", "plain", {"status": "failed", "reason": "out of memory"}),
        ):
            report = a_report()
            report["stages"][stage]["cases"][case].update(change)
            self.assertEqual(len(limits.failures(report)), 1, change)

    def test_a_card_gives_its_name_to_the_file(self) -> None:
        self.assertEqual(reports.file_name("NVIDIA H100 80GB HBM3"), "nvidia_h100_80gb_hbm3.json")

    def test_shares_are_of_the_measured_rates(self) -> None:
        report = a_report()
        reports.add_shares(report)
        self.assertEqual(report["stages"]["kernels"]["cases"]["linear a bf16"]["share_of_matmul"], 0.75)
        self.assertEqual(report["stages"]["speed"]["cases"]["plain"]["share_of_matmul"], 0.8)

    def test_every_report_has_a_table(self) -> None:
        self.assertTrue(any("not measured" in line for line in table.lines({**a_report(), "stages": {}})))
        self.assertIn("all limits are kept", table.lines(a_report()))

    def test_kept_reports_are_reports(self) -> None:
        for path in (SCRIPTS.parent / "benches/results").glob("*.json"):
            report = json.loads(path.read_text())
            if "stages" in report:
                self.assertEqual(limits.problems(report), [], path)


class Comparing(unittest.TestCase):
    def changed(self, stage: str, case: str, **values: Any) -> list[str]:
        new = copy.deepcopy(a_report())
        new["stages"][stage]["cases"][case].update(values)
        return [one.field for one in compare.worse(new, a_report())]

    def test_the_same_report_is_not_worse(self) -> None:
        self.assertEqual(compare.worse(a_report(), a_report()), [])

    def test_within_the_tolerances_nothing_is_worse(self) -> None:
        self.assertEqual(self.changed("speed", "plain", step_ms=22.3), [])
        self.assertEqual(self.changed("kernels", "linear a bf16", error=2.3e-3), [])
        self.assertEqual(self.changed("speed", "plain", peak_mib={"used": 9000, "reserved": 9900}), [])

    def test_beyond_them_it_is(self) -> None:
        self.assertEqual(self.changed("speed", "plain", step_ms=22.6), ["step_ms"])
        self.assertEqual(self.changed("kernels", "linear a bf16", error=2.5e-3), ["error"])
        self.assertEqual(self.changed("speed", "plain", peak_mib={"used": 9000, "reserved": 10100}), ["peak_mib"])
        self.assertEqual(self.changed("pictures", "built-in", psnr=46.0), ["psnr"])

    def test_better_is_never_worse(self) -> None:
        self.assertEqual(self.changed("speed", "plain", step_ms=10.0, seconds=0.2), [])

    def test_times_of_launching_alone_and_errors_of_the_last_bit_move_freely(self) -> None:
        old, new = a_report(), a_report()
        old["stages"]["kernels"]["cases"]["linear a bf16"].update(microseconds=2.0, error=1e-8)
        new["stages"]["kernels"]["cases"]["linear a bf16"].update(microseconds=4.0, error=5e-7)
        self.assertEqual(compare.worse(new, old), [])

    def run_it(self, *found: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for index, report in enumerate(found):
                paths.append(Path(folder) / f"{index}.json")
                paths[-1].write_text(json.dumps(report))
            command = [sys.executable, str(SCRIPTS / "gpu_check/compare.py"), *map(str, paths)]
            return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_the_command_ends_with_one_where_something_got_worse(self) -> None:
        slow = a_report()
        slow["stages"]["speed"]["cases"]["plain"]["step_ms"] = 30.0
        self.assertEqual(self.run_it(a_report(), a_report()).returncode, 0)
        done = self.run_it(slow, a_report())
        self.assertEqual(done.returncode, 1)
        self.assertIn("+42.9%", done.stdout)

    def test_an_aim_that_is_not_reached_is_no_failure(self) -> None:
        slow = a_report()
        slow["stages"]["speed"]["cases"]["plain"]["images_per_second"] = 1.0
        done = self.run_it(slow)
        self.assertEqual(done.returncode, 0)
        self.assertIn("not reached", done.stdout)

    def test_reports_of_two_cards_are_not_compared(self) -> None:
        other = a_report()
        other["stages"]["machine"]["cases"]["card"]["name"] = "NVIDIA L4"
        self.assertEqual(self.run_it(other, a_report()).returncode, 1)


class Running(unittest.TestCase):
    """Stages that are a few lines of Python."""

    def run_it(self, code: str, seconds: float = 20) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            text = (
                "import json, os, sys, time\n"
                "def line(**values):\n"
                "    with open(sys.argv[1], 'a') as file: file.write(json.dumps(values) + '\\n')\n"
                "skip = sys.argv[2:]\n" + code
            )

            def command(lines: Path, _seconds: float, skip: list[str]) -> list[str]:
                return [sys.executable, "-c", text, str(lines), *skip]

            heard: list[dict[str, Any]] = []
            result = stages.run(stages.Stage("s", 1, command), seconds, Path(folder), heard.append)
            self.assertTrue(heard)
            return result

    def test_a_stage_that_ends_well_is_ok(self) -> None:
        result = self.run_it("line(begin='a'); line(end='a', status='ok', error=1)")
        self.assertEqual((result["status"], result["cases"]), ("ok", {"a": {"status": "ok", "error": 1}}))

    def test_a_case_that_takes_the_process_with_it_is_a_failure_and_the_rest_goes_on(self) -> None:
        result = self.run_it(
            "if 'a' not in skip: line(begin='a'); line(end='a', status='ok')\n"
            "if 'b' not in skip: line(begin='b'); print('oh'); os.kill(os.getpid(), 11)\n"
            "line(begin='c'); line(end='c', status='ok')"
        )
        self.assertEqual(result["status"], "ok")
        self.assertEqual([case["status"] for case in result["cases"].values()], ["ok", "failed", "ok"])
        self.assertIn("signal 11: oh", result["cases"]["b"]["reason"])

    def test_a_stage_whose_card_failed_goes_on_in_another_process(self) -> None:
        result = self.run_it(
            "if 'a' not in skip: line(begin='a'); line(end='a', status='failed', reason='illegal address'); sys.exit(75)\n"
            "line(begin='b'); line(end='b', status='ok')"
        )
        self.assertEqual(result["status"], "ok")
        self.assertEqual([case["status"] for case in result["cases"].values()], ["failed", "ok"])

    def test_a_stage_that_dies_at_no_case_is_not_tried_again(self) -> None:
        result = self.run_it("line(fact='times', value=1); sys.exit('no card')")
        self.assertEqual(result["status"], "failed")
        self.assertIn("no card", result["reason"])

    def test_a_stage_that_hangs_is_ended(self) -> None:
        before, stages.GRACE = stages.GRACE, 0.3
        try:
            result = self.run_it("line(begin='a'); line(end='a', status='ok'); line(begin='b'); time.sleep(60)", 1.5)
        finally:
            stages.GRACE = before
        self.assertEqual(result["status"], "cut")
        self.assertEqual([case["status"] for case in result["cases"].values()], ["ok", "failed"])

    def test_half_a_line_is_no_line(self) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write('{"begin": "a"}\n{"end": "a", "sta')
            file.flush()
            self.assertEqual(reports.read_lines(Path(file.name)), [{"begin": "a"}])


class Profilers(unittest.TestCase):
    def test_ncu_s_table_is_summed_by_name(self) -> None:
        text = (
            "==PROF== Connected\n"
            '"ID","Process ID","Kernel Name","gpu__time_duration.sum"\n'
            '"","","","nsecond"\n'
            '"0","1","gemm(int, float)","2,000"\n"1","1","norm","1000"\n"2","1","gemm(int, float)","3000"\n'
        )
        found = profiler.slowest(profiler.of_ncu(text))
        self.assertEqual(found["slowest"][0], {"name": "gemm(int, float)", "times": 2, "ms": 0.005, "share": 0.8333})

    def test_nsys_s_table_is_read(self) -> None:
        text = (
            "Processing\n\nTime (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name\n"
            '75.0,3000,2,1500.0,1500.0,1000,2000,500.0,"void gemm<int, float>"\n25.0,1000,1,1000.0,1000.0,1000,1000,0.0,norm\n'
        )
        self.assertEqual(profiler.of_nsys(text)[0], ("void gemm<int, float>", 3000.0, 2))

    def test_no_table_is_said(self) -> None:
        with self.assertRaisesRegex(ValueError, "ERR_NVGPUCTRPERM"):
            profiler.of_ncu("==ERROR== ERR_NVGPUCTRPERM")


class Drawings(unittest.TestCase):
    def test_they_are_png_files_with_edges_of_their_own(self) -> None:
        first, second = pack.drawing(64, 0), pack.drawing(64, 9)
        self.assertTrue(first.startswith(b"\x89PNG"))
        self.assertNotEqual(first, second)


if __name__ == "__main__":
    unittest.main()

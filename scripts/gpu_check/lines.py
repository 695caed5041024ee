"""The stages that are written in Python tell what they find as the others do: see `report.py`."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser(about: str) -> argparse.ArgumentParser:
    """What every stage takes."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cpu", help="cpu or cuda:N (default: %(default)s)")
    made.add_argument("--work", type=Path, required=True, help="folder of the random model")
    made.add_argument("--lines", type=Path, required=True, help="file that findings are appended to")
    made.add_argument("--quick", action="store_true", help="tiny sizes")
    made.add_argument("--seconds", type=float, default=600, help="what it may take (default: %(default)s)")
    made.add_argument("--seed", type=int, default=1, help="what inputs are drawn from (default: %(default)s)")
    made.add_argument("--skip", action="append", default=[], metavar="CASE", help="a case not to be tried")
    return made


class Record:
    """Lines, and how much time is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path, self.skip, self.end = options.lines, set(options.skip), time.monotonic() + options.seconds

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def line(self, line: dict[str, Any]) -> None:
        """One write a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def fact(self, name: str, value: Any) -> None:
        """About the stage as a whole."""
        self.line({"fact": name, "value": value})

    def skipped(self, name: str, reason: str) -> None:
        """A case that cannot be tried here."""
        if name not in self.skip:
            self.line({"end": name, "status": "skipped", "reason": reason})

    def case(self, name: str, needs: float, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Runs a case that takes about `needs` seconds, unless there is no time for it or it was done before."""
        if name in self.skip:
            return None
        if self.left() < needs:
            self.skipped(name, f"{self.left():.0f} s were left, it takes about {needs:.0f} s")
            return None
        self.line({"begin": name})
        started = time.monotonic()
        try:
            found = work()
        except Exception as error:  # Whatever it is, the next case goes on.
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            took = round(time.monotonic() - started, 3)
            self.line({"end": name, "status": "failed", "took_seconds": took, "reason": reason[:1000]})
            return None
        self.line({"end": name, "status": "ok", "took_seconds": round(time.monotonic() - started, 3), **found})
        return found


def rounded(value: float) -> float:
    """Four significant digits: more are noise."""
    return float(f"{value:.4g}")

#!/usr/bin/env python3
"""Writes the recorded workflows, good and bad, as seeds for `cargo fuzz run workflow_json`.

They lie in tests/data/comfyui; what is written, to fuzz/corpus/workflow_json, is not kept.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    corpus = ROOT / "fuzz" / "corpus" / "workflow_json"
    corpus.mkdir(parents=True, exist_ok=True)
    recorded = ROOT / "tests" / "data" / "comfyui"
    cases = json.loads((recorded / "workflows.json").read_text())
    for group in json.loads((recorded / "errors.json").read_text()).values():
        cases.update(group)
    for name, case in cases.items():
        (corpus / f"{name}.json").write_text(case["body"])
    print(f"{len(cases)} seeds in {corpus.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

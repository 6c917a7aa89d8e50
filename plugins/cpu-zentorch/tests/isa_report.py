"""What came of the tests with each instruction set, from pytest's report of a run.

    pytest plugins/cpu-zentorch/tests --junitxml=FILE.xml
    python plugins/cpu-zentorch/tests/isa_report.py FILE.xml OUT.json --processor "..."

For processors that are not at hand again: the report of a run on one is kept beside this file.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

ISAS = ("avx512_bf16", "avxvnni", "avx512", "amx", "avx2", "scalar", "neon")


def outcome(case: ET.Element) -> str:
    """Of a test: failed, skipped or passed."""
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def main() -> None:
    """Count, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--processor", required=True)
    parser.add_argument("--commit", help="what was tested")
    args = parser.parse_args()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    failed = []
    suite = ET.parse(args.report).getroot()
    for case in suite.iter("testcase"):
        name = case.get("name", "")
        found = [isa for isa in ISAS if f"[{isa}" in name or f"-{isa}" in name]
        counts[found[0] if found else "not by instruction set"][outcome(case)] += 1
        if outcome(case) == "failed":
            failed.append(name)
    times = [s.get("timestamp") for s in suite.iter("testsuite")]
    document = {
        "processor": args.processor,
        "commit": args.commit,
        "time": times[0],
        "tests": {isa: dict(counts[isa]) for isa in sorted(counts)},
        "failed": failed,
    }
    args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

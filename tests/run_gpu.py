"""Run everything that needs a GPU, and write down what ran.

    python tests/run_gpu.py --out tests/gpu-reports/nvidia-h200.json

Every registered kernel that is usable on the GPU of this machine goes through the conformance kit
there; meanwhile pytest runs the tests marked `gpu`. Nothing is built. The report names device,
torch, commit, for each kernel the layers run, the result nearest to its bound and its label, and
the tests by their outcome. `--jobs` needs pytest-xdist.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from datetime import datetime, timezone
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import qcore
import torch
from qcore.errors import QcoreError
from qcore.registry import get_registry
from qcore.testing import check_kernel

ROOT = Path(__file__).parents[1]


def conformance(name: str, threads: int) -> dict[str, Any]:
    """The kit's report on a kernel, or why there is none."""
    torch.set_num_threads(threads)
    kernel = next(k for k in get_registry().kernels() if k.name == name)
    start = time.perf_counter()
    try:
        report = check_kernel(
            kernel.load(), device="cuda", spec=kernel.spec, raise_on_failure=False
        )
    except (QcoreError, AssertionError) as error:
        return {"kernel": kernel.name, "ok": None, "reason": str(error)}
    print(
        f"{kernel.name:<44} {'ok' if report.ok else 'FAILED'}  {report.claimed} layers", flush=True
    )
    for failure in report.failures[:3]:
        print(f"    {failure}", flush=True)
    return {**report.to_dict(), "seconds": round(time.perf_counter() - start, 1)}


def _test_folders() -> list[list[str]]:
    """The tests of the distributions that are installed; the core's apart, which hide plugins."""
    folders = {
        "qcore_cuda": "plugins/cuda-cutlass/tests",
        "qcore_flashinfer": "plugins/flashinfer/tests",
    }
    found = [folder for module, folder in folders.items() if find_spec(module) is not None]
    return [["core/tests"], [*found, "tests"]]


def start_tests(
    reports: Path, jobs: int, only: re.Pattern[str] | None
) -> list[subprocess.Popen[bytes]]:
    """Begin the tests marked `gpu`; what came of each goes to files in ``reports``.

    ``only`` is found in the paths of the files that are to run.
    """
    # The references run on the CPU; what the tests leave of it is the conformance kit's.
    threads = max(1, (os.cpu_count() or 1) // (2 * jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = []
    for index, folders in enumerate(_test_folders()):
        if only:
            files = (path for folder in folders for path in (ROOT / folder).rglob("test_*.py"))
            folders = [str(path) for path in sorted(files) if only.search(str(path))]
            if not folders:
                continue
        file = f"--junitxml={reports / f'{index}.xml'}"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", file, *folders]
        if jobs > 1 and index > 0:
            command += ["-n", str(jobs)]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    return started


def outcomes(reports: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, file by file; which failed, why skipped."""
    counts: dict[str, dict[str, int]] = {}
    failed, reasons = [], {}
    for case in (
        c for file in sorted(reports.glob("*.xml")) for c in ET.parse(file).iter("testcase")
    ):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            outcome = "failed"
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            outcome = "skipped"
            reason = case.find("skipped").get("message", "")
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            outcome = "passed"
        file = (case.get("classname") or "").rsplit(".", 1)[-1]
        counts.setdefault(file, {})[outcome] = counts.get(file, {}).get(outcome, 0) + 1
    return {"files": counts, "failed": failed, "skipped_because": reasons}


def joined(before: dict[str, Any], now: dict[str, Any], commit: str | None) -> dict[str, Any]:
    """What came of the tests, where some files have been run again."""
    again = {name: {**counts, "commit": commit} for name, counts in now["files"].items()}
    kept = [
        test for test in before["failed"] if test.split("::")[0].rsplit(".", 1)[-1] not in again
    ]
    return {
        "files": {**before["files"], **again},
        "failed": kept + now["failed"],
        "skipped_because": {**before["skipped_because"], **now["skipped_because"]},
    }


def run_kit(names: list[str], workers: int, end: float) -> list[dict[str, Any]]:
    """The kit's report on each kernel; of those that are not done at ``end`` that they are not."""
    threads = max(1, (os.cpu_count() or 1) // (2 * workers))
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    futures = {name: pool.submit(conformance, name, threads) for name in names}
    results = []
    for name, future in futures.items():
        left = end - time.monotonic()
        try:
            results.append(future.result(None if left == float("inf") else max(0.0, left)))
        except NotDone:
            results.append({"kernel": name, "ok": None, "reason": "the time given was over"})
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    return results


def finish(running: subprocess.Popen[bytes], end: float) -> int | str:
    """pytest's exit code. At ``end`` it is interrupted, and reports what it has."""
    left = end - time.monotonic()
    try:
        return running.wait(None if left == float("inf") else max(0.0, left))
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)
        running.wait(60)
        return "interrupted: the time given was over"


def main() -> None:
    """Run, print, write; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write JSON here")
    parser.add_argument("--commit", help="what was tested, if this is not a git checkout")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="processes for the tests, and a quarter of that for the kit",
    )
    parser.add_argument(
        "--seconds", type=float, help="end then, and say what has not been run (default: no limit)"
    )
    parser.add_argument(
        "--only",
        choices=("kit", "tests"),
        help="run this alone; the other part stays as it is in the report at --out",
    )
    parser.add_argument(
        "--kernels",
        type=re.compile,
        metavar="REGEX",
        help="put these through the kit; the others stay as they are in the report at --out",
    )
    parser.add_argument(
        "--files",
        type=re.compile,
        metavar="REGEX",
        help="run these test files; the others stay as they are in the report at --out",
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; there is nothing to run")
    target = qcore.Target.current()
    print(target.describe())
    end = time.monotonic() + (args.seconds or float("inf"))
    some = args.only or args.kernels or args.files
    before = json.loads(args.out.read_text(encoding="utf-8")) if some else {}
    results, tests = before.get("kernels", []), before.get("tests", {})
    exit_codes: list[int | str] = before.get("pytest_exit_codes", [])
    with tempfile.TemporaryDirectory() as folder:
        running = start_tests(Path(folder), args.jobs, args.files) if args.only != "kit" else []
        if args.only != "tests":
            usable = [k for k in get_registry().kernels() if target.platform in k.spec.platforms]
            # The references are slow, and run everywhere.
            names = [k.name for k in sorted(usable, key=lambda k: k.name.startswith("Reference"))]
            if args.kernels:
                names = [name for name in names if args.kernels.search(name)]
            done = run_kit(names, max(1, args.jobs // 4), end)
            done = [{**result, "commit": args.commit} for result in done]
            results = [r for r in results if args.kernels and r["kernel"] not in names] + done
        if running:
            codes = [finish(process, end) for process in running]
            now = outcomes(Path(folder))
            exit_codes = [*exit_codes, *codes] if args.files else codes
            tests = joined(tests, now, args.commit) if args.files else now
    report = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": args.commit,
        "device": target.device_name,
        "target": str(target),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "pytest_exit_codes": exit_codes,
        "tests": tests,
        "kernels": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    sys.exit(int(any(r["ok"] is False for r in results) or any(exit_codes)))


if __name__ == "__main__":
    main()

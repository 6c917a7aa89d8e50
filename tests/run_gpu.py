"""Run everything that needs a GPU, and write down what ran.

    python tests/run_gpu.py --out tests/gpu-reports/nvidia-h200.json

Every registered kernel that is usable on the GPU of this machine goes through the conformance kit
there; then pytest runs the tests marked `gpu`. Nothing is built. The report names device, torch,
commit, and for each kernel the layers run, the result nearest to its bound, and its label.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import qcore
import torch
from qcore.errors import QcoreError
from qcore.registry import RegisteredKernel, get_registry
from qcore.testing import check_kernel

ROOT = Path(__file__).parents[1]


def conformance(kernel: RegisteredKernel) -> dict[str, Any]:
    """The kit's report on a kernel, or why there is none."""
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


def _test_folders() -> list[str]:
    """The tests of the distributions that are installed."""
    folders = {"qcore": "core/tests", "qcore_cuda": "plugins/cuda-cutlass/tests"}
    return [folder for module, folder in folders.items() if find_spec(module) is not None]


def main() -> None:
    """Run, print, write; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write JSON here")
    parser.add_argument("--commit", help="what was tested, if this is not a git checkout")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; there is nothing to run")
    target = qcore.Target.current()
    print(target.describe())
    kernels = [k for k in get_registry().kernels() if target.platform in k.spec.platforms]
    results = [conformance(kernel) for kernel in kernels]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *_test_folders()], check=False, cwd=ROOT
    )
    report = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": args.commit,
        "device": target.device_name,
        "target": str(target),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "pytest_exit_code": tests.returncode,
        "kernels": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    sys.exit(int(any(r["ok"] is False for r in results) or tests.returncode != 0))


if __name__ == "__main__":
    main()

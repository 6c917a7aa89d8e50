"""Run the conformance kit on every kernel that is usable on a device of this machine.

    python tests/run_kit.py --out tests/hardware-reports/x86.json

Nothing is built; kernels are those of the distributions that are installed. For GPUs, and for the
tests beside the kit, there is `run_gpu.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from qcore.errors import QcoreError
from qcore.registry import Numerics, get_registry
from qcore.testing import check_kernel


def main() -> None:
    """Run, print, write; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write JSON here")
    parser.add_argument("--device", default="cpu", help="as torch calls it")
    parser.add_argument("--kernel", action="append", help="these alone (may be repeated)")
    args = parser.parse_args()
    os.environ["QCORE_TEST_REPORT"] = str(args.out)
    failed = 0
    for kernel in get_registry().kernels():
        if args.kernel and kernel.name not in args.kernel:
            continue
        if kernel.spec.numerics is Numerics.APPROXIMATE:
            print(f"{kernel.name:<44} not run: its tolerance is in its own tests", flush=True)
            continue
        try:
            report = check_kernel(
                kernel.load(), device=args.device, spec=kernel.spec, raise_on_failure=False
            )
        except (QcoreError, AssertionError) as error:
            print(f"{kernel.name:<44} not run: {error}"[:160], flush=True)
            continue
        failed += not report.ok
        state = "ok" if report.ok else "FAILED"
        print(f"{kernel.name:<44} {state}  {report.claimed} layers, {report.seconds:.0f} s")
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()

"""Every kernel of qcore-cuda on small layers under compute-sanitizer, and what it found.

    python tests/run_sanitizer.py --out tests/gpu-reports/nvidia-h200-sanitizer.json

compute-sanitizer comes with the CUDA toolkit. memcheck looks for reads and writes outside of
allocations (torch's caching of memory is switched off for it), racecheck for shared memory that
is read and written without a barrier between. racecheck does not see what TMA and wgmma, which
work asynchronously, do to shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

TOOLS = ("memcheck", "racecheck")
ROWS = (1, 17, 130)
DEVICE = "cuda"


def run_kernels(pattern: str) -> None:
    """Four layers of each kernel with a few rows each; then the ops that no layer calls."""
    import torch
    from qcore.facts.target import Target
    from qcore.kernels import process_weights
    from qcore.registry import get_registry
    from qcore.selection import select
    from qcore.settings import Settings
    from qcore.testing import conformance_configs, make_layer, random_tensors

    target = Target.current(DEVICE)
    for kernel in get_registry().kernels():
        if not kernel.spec.entry.startswith("qcore_cuda.") or not re.search(pattern, kernel.name):
            continue
        runs = 0
        settings = Settings(force_kernel=(kernel.name,))
        for config in conformance_configs(kernel.spec.kernel_type):
            if runs == 4:
                break
            decision = select(config, target, settings=settings)
            if decision.kernel_name != kernel.name:
                continue
            instance = decision.kernel_class.from_config(config)
            layer = make_layer(config, random_tensors(config), device=DEVICE)
            process_weights(instance, layer)
            dtype = config.activation_dtype
            if dtype is None or dtype.itemsize == 1:  # activations that the kernel rounds itself
                dtype = torch.bfloat16
            for rows in ROWS:
                instance.apply_weights(
                    layer, torch.randn(rows, config.in_features, device=DEVICE).to(dtype)
                )
            torch.cuda.synchronize()
            runs += 1
        print(f"ran {kernel.name}: {runs} layers", flush=True)


def _ops() -> None:
    import qcore_cuda.ops as ops
    import torch

    x = torch.randn(33, 512, device="cuda", dtype=torch.bfloat16)
    ops.scaled_int8_quant(x)
    ops.scaled_int8_quant(x, symmetric=False)
    ops.scaled_fp8_quant(x)
    ops.per_token_group_fp8_quant(x, 128)
    ops.scaled_fp4_quant(x, torch.ones(1, device="cuda"))
    torch.cuda.synchronize()
    print("ran quantizers", flush=True)
    if torch.cuda.get_device_capability() != (9, 0):
        return
    # Small layers are not divided so: rows and columns of a tile, parts of K or what helpers take.
    x = torch.randn(300, 1024, device="cuda", dtype=torch.bfloat16)
    words = torch.randint(-(2**31), 2**31 - 1, (128, 416), dtype=torch.int32, device="cuda")
    scales = torch.rand(8, 416, device="cuda").to(torch.bfloat16)
    divisions = ((64, 128, 2), (128, 128, 3), (128, 128, -4), (128, 256, -8), (256, 128, -5))
    for division in divisions:
        for _ in range(3):
            torch.ops.qcore_cuda.wna16_sm90(x, words, scales, None, 4, 8, 128, *division)
    torch.cuda.synchronize()
    print(f"ran wna16_sm90: {len(divisions)} divisions", flush=True)
    # More steps along K than a kernel has stages: so each stage is filled again.
    codes = torch.randint(-64, 64, (1380, 2048), dtype=torch.int8, device="cuda")
    fp8 = codes.view(torch.float8_e4m3fn).split([100, 1280])
    one = torch.ones(1, device="cuda")
    shared = [path for path in ops.scaled_mm_paths() if path.endswith("_shared")]
    kinds = (fp8, codes.split([100, 1280]))
    calls = [(path, *both, (one, one)) for path, both in product(shared, kinds)]
    # Scales by block: of these layouts, the copy engine brings the first ones.
    of_a = (torch.ones(16, 100, device="cuda").t(), torch.ones(100, 16, device="cuda"))
    of_b = (torch.ones(10, 16, device="cuda").t(), torch.ones(16, 10, device="cuda"))
    for path in ("sm90_64_shared", "sm90_128", "sm90_128_shared"):
        calls += [(path, *fp8, scales) for scales in product(of_a, of_b)]
    # Few rows: two blocks share K.
    calls += [("sm90_columns", fp8[0][:30], fp8[1], (of_a[0][:30], of_b[0]))]
    for path, a, b, scales in calls:
        for _ in range(3):
            ops.scaled_mm_by(path, a, b.t(), *scales, torch.bfloat16)
    torch.cuda.synchronize()
    print(f"ran scaled_mm: {len(calls)} of shared tiles and K, and scales by block", flush=True)


def _tail(output: str) -> list[str]:
    """The last lines, without those that say where on this machine a file is."""
    return [line for line in output.splitlines()[-15:] if 'File "' not in line]


def sanitize(tool: str, pattern: str, limit: float) -> dict[str, object]:
    """One tool over everything."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        sys.exit("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    start = time.perf_counter()
    command = [program, "--tool", tool, "--print-limit", "20", sys.executable, __file__]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    process = subprocess.Popen(
        [*command, "--inner", "--kernels", pattern],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        finished = True
    except subprocess.TimeoutExpired:
        process.kill()
        output, finished = process.communicate()[0], False
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    ran = re.findall(r"^ran (.*)", output, re.M)
    print(f"{tool}: {summary[-1:] or 'no summary'}; {len(ran)} kernels", flush=True)
    if process.returncode != 0:
        print(*_tail(output), sep="\n", flush=True)
    findings = [line for line in output.splitlines() if line.startswith("=========")]
    return {
        "tool": tool,
        "finished": finished,
        "exit_code": process.returncode,
        "summary": summary[0] if summary else None,
        "ran": ran,
        "findings": findings[:60] if not finished or "SUMMARY: 0 " not in "".join(summary) else [],
        "tail": [] if process.returncode == 0 and summary else _tail(output),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--kernels", default="", help="only kernels whose name matches this")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each tool")
    parser.add_argument("--commit", help="what was tested, if this is not a git checkout")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner:
        run_kernels(args.kernels)
        _ops()
        return
    import torch

    report = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": args.commit,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "results": [sanitize(tool, args.kernels, args.limit) for tool in args.tools],
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

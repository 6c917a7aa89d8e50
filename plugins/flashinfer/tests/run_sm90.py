"""Run what FlashInfer has for SM90 on the GPU of this machine, and write down what came out.

    python plugins/flashinfer/tests/run_sm90.py --out REPORT.json [--seconds 480]

First the conformance kit on every kernel of this plugin that is usable here, then FlashInfer's own
functions (``bmm_fp8``, ``mm_fp8``, ``fp8_blockscale_gemm_sm90``): error against float64, and the
time of a product beside torch's and, where qcore-cuda is installed, beside its kernels'. The report
is written after every step; what did not fit into ``--seconds`` is named as not run. FlashInfer
compiles for minutes when a function is first used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT / "benchmarks")]

SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))
BATCHES = (1, 16, 31, 64, 256, 1024, 8192)
E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16
PACKAGES = (
    "flashinfer-python",
    "apache-tvm-ffi",
    "nvidia-cudnn-frontend",
    "nvidia-cudnn-cu13",
    "sgl-deep-gemm",
    "qcore",
    "qcore-flashinfer",
    "qcore-cuda",
)


class Report:
    """What is known so far; every change is written."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end = path, time.monotonic() + seconds
        self.values: dict[str, Any] = {}

    def late(self) -> bool:
        return time.monotonic() > self.end

    def put(self, **values: Any) -> None:
        self.values.update(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.values, indent=1, default=str)
        self.path.write_text(text + "\n", encoding="utf-8")


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def conformance(spec: Any) -> dict[str, Any]:
    """The kit's report on a kernel, or why there is none."""
    from qcore.testing import check_kernel

    start = time.perf_counter()
    kernel = getattr(import_module(spec.entry.partition(":")[0]), spec.name)
    try:
        report = check_kernel(kernel, device="cuda", spec=spec, raise_on_failure=False)
    except Exception as error:  # the kernel cannot run here, or worse
        return {"kernel": spec.name, "ok": None, "reason": f"{type(error).__name__}: {error}"}
    print(f"{spec.name:<48} {'ok' if report.ok else 'FAILED'} {report.claimed} layers", flush=True)
    for failure in report.failures[:3]:
        print(f"    {failure}", flush=True)
    return {**report.to_dict(), "seconds": round(time.perf_counter() - start, 1)}


class Product:
    """Operands of one shape, with several copies of the weight so that it comes from memory."""

    def __init__(self, N: int, K: int, M: int) -> None:
        from cuda_timing import copies_of

        generator = torch.Generator(device="cuda").manual_seed(N + K + M)
        count = copies_of(N * K)
        weight = torch.randn(N, K, device="cuda", generator=generator)
        self.x = torch.randn(M, K, device="cuda", generator=generator).to(BF16)
        self.codes = self.x.to(E4M3)
        self.weights = [weight.to(E4M3).clone() for _ in range(count)]
        self.scale = torch.full((1,), 0.01, device="cuda")
        self.one = torch.ones(1, device="cuda")
        self.block = torch.rand(-(-N // 128), K // 128, device="cuda", generator=generator) * 0.01
        self.N, self.K, self.M = N, K, M

    def exact(self, rows: int = 16) -> torch.Tensor:
        """Of the first rows, with one scale."""
        return self.codes[:rows].double() @ self.weights[0].double().t() * 0.01

    def exact_block(self, rows: int = 16) -> torch.Tensor:
        """Of the first rows, activations rounded in groups of 128."""
        from qcore.numerics.activation_quant import group_fp8_quant

        codes, scale = group_fp8_quant(self.x[:rows], 128)
        a = codes.double() * scale.double().repeat_interleave(128, 1)
        spread = self.block.double().repeat_interleave(128, 0)[: self.N].repeat_interleave(128, 1)
        return a @ (self.weights[0].double() * spread).t()


def _tensor_calls(p: Product) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    import flashinfer

    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for backend in ("cublas", "cudnn"):
        calls[f"flashinfer.bmm_fp8 {backend}"] = lambda w, b=backend: flashinfer.bmm_fp8(
            p.codes[None], w.t()[None], p.one, p.scale, BF16, backend=b
        )[0]
        if hasattr(flashinfer.mm_fp8, "is_backend_supported"):
            calls[f"flashinfer.mm_fp8 {backend}"] = lambda w, b=backend: flashinfer.mm_fp8(
                p.codes, w, p.scale, BF16, backend=b
            )
    calls["torch._scaled_mm"] = lambda w: torch._scaled_mm(
        p.codes,
        w.t(),
        scale_a=p.one[0],
        scale_b=p.scale[0],
        out_dtype=BF16,
        use_fast_accum=True,
    )
    if _cuda_plugin():
        ours = torch.ops.qcore_cuda.cutlass_scaled_mm
        out = torch.empty(p.M, p.N, dtype=BF16, device="cuda")

        def own(w: torch.Tensor) -> torch.Tensor:
            ours(out, p.codes, w.t(), p.one, p.scale, None)
            return out

        calls["qcore-cuda"] = own
    return calls


def _block_calls(p: Product) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """All take bfloat16 and round it."""
    from flashinfer.gemm import fp8_blockscale_gemm_sm90

    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "flashinfer.fp8_blockscale_gemm_sm90": lambda w: fp8_blockscale_gemm_sm90(
            p.x, w, weight_scale=p.block
        )
    }
    if _cuda_plugin():
        from qcore_cuda import ops

        out = torch.empty(p.M, p.N, dtype=BF16, device="cuda")
        block = p.block.t()

        def own(w: torch.Tensor) -> torch.Tensor:
            codes, scale = ops.per_token_group_fp8_quant(p.x, 128, 1e-30)
            torch.ops.qcore_cuda.cutlass_scaled_mm(out, codes, w.t(), scale, block, None)
            return out

        calls["qcore-cuda"] = own
    return calls


def _cuda_plugin() -> bool:
    try:
        from qcore_cuda import library
    except ImportError:
        return False
    return library.unusable_here() is None


def measured(kind: str, N: int, K: int, M: int) -> list[dict[str, Any]]:
    """A row for each contender: its error of 16 rows, and microseconds of a product."""
    from cuda_timing import medians_us

    p = Product(N, K, M)
    calls = _tensor_calls(p) if kind == "fp8" else _block_calls(p)
    exact = p.exact() if kind == "fp8" else p.exact_block()
    rows, able = [], {}
    for name, call in calls.items():
        row: dict[str, Any] = {"kind": kind, "N": N, "K": K, "M": M, "contender": name}
        rows.append(row)
        start = time.perf_counter()
        try:
            out = call(p.weights[0])
            torch.cuda.synchronize()
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
            continue
        row["first_call_s"] = round(time.perf_counter() - start, 3)
        row["relative_error"] = float((out[:16].double() - exact).norm() / exact.norm())
        able[name] = call
    for name, call in able.items():
        row = next(r for r in rows if r["contender"] == name)
        try:
            steps = [lambda w=w, call=call: call(w) for w in p.weights]
            row["us"] = round(medians_us({name: steps})[name], 2)
        except Exception as error:
            row["error"] = f"under a CUDA graph: {type(error).__name__}: {error}"[:300]
    return rows


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write JSON here")
    parser.add_argument("--seconds", type=float, default=480, help="stop to begin things after")
    parser.add_argument("--commit", help="what was tested, if this is not a git checkout")
    parser.add_argument("--no-kit", action="store_true", help="FlashInfer's functions alone")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; there is nothing to run")
    folder = Path(tempfile.mkdtemp(prefix="flashinfer-"))
    os.environ.setdefault("FLASHINFER_WORKSPACE_BASE", str(folder))
    report = Report(args.out, args.seconds)
    from cuda_for_jit import prepare

    found = prepare(folder / "links")
    print(json.dumps(found, indent=1), flush=True)
    import qcore
    from qcore_flashinfer.plugin import qcore_kernels

    target = qcore.Target.current("cuda")
    report.put(
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=args.commit,
        device=target.device_name,
        target=str(target),
        versions=versions(),
        toolchain={name: where for name, where in found.items() if name != "links"},
        kernels=[],
        products=[],
        not_run=[],
    )
    compiling = {}
    for name, first in (("fp8", _first_tensor), ("fp8_block", _first_block)):
        start = time.perf_counter()
        try:
            first()
            compiling[name] = round(time.perf_counter() - start, 1)
        except Exception:
            compiling[name] = traceback.format_exc()[-3000:]
        print(name, "first use:", compiling[name], flush=True)
        report.put(first_use_s=compiling)
    for spec in [] if args.no_kit else qcore_kernels():
        if report.late():
            report.values["not_run"].append(spec.name)
            continue
        report.values["kernels"].append(conformance(spec))
        report.put()
    report.put(quantizer=quantizer())
    print("quantizer:", report.values["quantizer"], flush=True)
    for N, K in SHAPES:
        for M in BATCHES:
            for kind in ("fp8", "fp8_block"):
                if report.late():
                    report.values["not_run"].append(f"{kind} N={N} K={K} M={M}")
                    continue
                rows = measured(kind, N, K, M)
                report.values["products"] += rows
                report.put()
                print(*(_line(row) for row in rows), sep="\n", flush=True)
                torch.cuda.empty_cache()
    report.put()
    sys.exit(int(any(r["ok"] is False for r in report.values["kernels"])))


def quantizer() -> dict[str, Any]:
    """The tests of the Triton quantizer on this GPU, and its microseconds of [M, 4096]."""
    from cuda_timing import median_us
    from qcore_flashinfer.jit_quantize import quantize_by_triton

    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(HERE / "test_flashinfer_quantize.py")],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    found: dict[str, Any] = {"pytest": tests.stdout.strip().splitlines()[-1:], "us": {}}
    outer = torch.ones(1, device="cuda")
    for kind in ("nvfp4", "mxfp4", "mxfp8"):
        for M in (16, 4096):
            x = torch.randn(M, 4096, device="cuda", dtype=BF16)
            step = partial(quantize_by_triton, x, kind, outer if kind == "nvfp4" else None, 4096)
            found["us"][f"{kind} M={M}"] = round(median_us([step] * 8), 2)
    return found


def _first_tensor() -> None:
    p = Product(128, 256, 8)
    import flashinfer

    flashinfer.bmm_fp8(p.codes[None], p.weights[0].t()[None], p.one, p.scale, BF16)
    torch.cuda.synchronize()


def _first_block() -> None:
    p = Product(128, 256, 8)
    import flashinfer.gemm

    flashinfer.gemm.fp8_blockscale_gemm_sm90(p.x, p.weights[0], weight_scale=p.block)
    torch.cuda.synchronize()


def _line(row: dict[str, Any]) -> str:
    what = f"{row['kind']:<10} {row['N']:>6} {row['K']:>6} {row['M']:>5} {row['contender']:<38}"
    return what + " ".join(f"{k}={row[k]}" for k in ("us", "relative_error", "error") if k in row)


if __name__ == "__main__":
    main()

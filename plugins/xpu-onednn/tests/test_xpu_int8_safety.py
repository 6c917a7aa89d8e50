"""oneDNN's products of bytes lose carries on processors without VNNI; they are never the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from qcore_xpu import library

pytestmark = pytest.mark.runs


@pytest.mark.parametrize(
    ("implementation", "vnni", "a", "b", "unsafe"),
    [
        ("gemm:jit", False, "s8", "s8", True),
        ("gemm:jit", False, "u8", "s8", True),
        ("brg_matmul:avx512_core", False, "s8", "s8", True),
        ("gemm:jit", True, "s8", "s8", False),
        ("brg_matmul:avx512_core_vnni", True, "s8", "s8", False),
        ("ref_int8:any", False, "s8", "s8", False),
        ("ref:any", False, "u8", "s8", False),
        ("gemm:jit", False, "s8", "u4", False),  # sums of two products fit into 16 bits
        ("gemm:jit", False, "f32", "s8", False),
        ("gemm:jit", False, "f32", "f32", False),
    ],
)
def test_rule(implementation: str, vnni: bool, a: str, b: str, unsafe: bool) -> None:
    library.load()
    assert torch.ops.qcore_xpu.may_saturate(implementation, vnni, a, b) is unsafe


FULL_RANGE = """
import json, torch
from qcore_xpu import library, ops
library.load()
A, B = torch.full((48, 512), -128, dtype=torch.int8), torch.full((64, 512), -128, dtype=torch.int8)
B[1::2] = 127
made = torch.Generator().manual_seed(0)
A[::3] = torch.randint(-128, 128, (16, 512), generator=made, dtype=torch.int8)
found = []
for a_scale in (torch.ones(1), torch.ones(48, 1)):
    for path in ("auto", "onednn"):
        with ops.using(path):
            try:
                out = ops.int8_gemm(A, B.t(), a_scale, None, torch.ones(64), torch.float32, None)
            except RuntimeError as error:
                found.append([path, "refused", str(error)])
                continue
        exact = A.double() @ B.double().t()
        found.append([path, ops.last_implementation(), float((out - exact).abs().max())])
print(json.dumps([torch.ops.qcore_xpu.onednn_has_vnni(), found]))
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "DEFAULT"])
def test_full_range_is_exact_whatever_the_processor(isa: str) -> None:
    """The largest sums there are, with oneDNN held to older instructions."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_RANGE],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
        check=True,
        capture_output=True,
        text=True,
    )
    vnni, found = json.loads(done.stdout)
    assert vnni is False or isa == "DEFAULT"
    for path, ran, result in found:
        if ran == "refused":
            assert path == "onednn"
            assert not vnni
            assert "adds products of bytes with saturation" in result
        else:
            assert result == 0.0, (path, ran)
            assert vnni or ran.startswith(("sycl", "onednn ref"))

"""The ops as torch sees them: schemas kept, fakes right, whole graphs."""

from __future__ import annotations

import pytest
import torch
from qcore_xpu import ops

pytestmark = pytest.mark.runs

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).half()
W4 = torch.full((16, 8), 0x12345678, dtype=torch.int32).t()
S4 = torch.ones(2, 16)
Z4 = torch.tensor([8], dtype=torch.int8)
BYTES = torch.full((16, 64), 0x38, dtype=torch.uint8).t()
Q8 = torch.ones(3, 64, dtype=torch.int8)
ONE = torch.ones(1)
NAMED = torch.ops.qcore_xpu

CALLS = {
    "int4_gemm_w4a16": (X, W4, None, S4, Z4, 32, None),
    "int4_gemm_w4a8": (Q8, ONE, ONE.to(torch.int32), W4, S4, Z4, 32, None, None),
    "fp8_gemm": (BYTES.t()[:3], BYTES, None, ONE, ONE, None),
    "fp8_gemm_w8a16": (X, BYTES, ONE, None),
    "fp4_gemm": (BYTES.t()[:3, :32], BYTES[:32], BYTES[:2, :3].t(), BYTES[:2], None, None),
    "fp4_gemm_w4a16": (X, BYTES[:32], BYTES[:2], None, None),
    "int8_gemm": (Q8, Q8.t(), ONE, None, ONE, torch.float32, None),
}


def arguments(name: str) -> tuple[object, ...]:
    if name.startswith("fp4"):  # packed along K: words of one output side by side
        rows = BYTES.t()[:, :32].contiguous().t()
        return tuple(rows if a is CALLS[name][1] else a for a in CALLS[name])
    return CALLS[name]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(NAMED, name).default, arguments(name))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_one_graph(name: str) -> None:
    op, given = getattr(NAMED, name).default, arguments(name)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: op(*a) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), getattr(ops, name)(*given) * 2)

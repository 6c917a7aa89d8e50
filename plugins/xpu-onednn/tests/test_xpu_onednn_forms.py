"""The forms in which oneDNN gets scales, as far as its CPU engine executes them.

It has no 8-bit or 4-bit floats. Bytes take their place here: the same attributes and memories, with
another type of codes.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from qcore_xpu import library, ops
from qcore_xpu.ops.matmul import matmul
from xpu_oracle import allowed, generator

pytestmark = pytest.mark.runs

M, N, K = 9, 96, 256


@pytest.mark.parametrize("powers", [False, True], ids=["float32", "e8m0"])
@pytest.mark.parametrize("a_group", [-1, 0, 32, 128])
@pytest.mark.parametrize("b_group", [(N, K), (1, K), (1, 32), (1, 128)])
def test_scales(b_group: tuple[int, int], a_group: int, powers: bool) -> None:
    library.load()
    made = generator(1)
    a = torch.randint(-128, 128, (M, K), generator=made, dtype=torch.int8)
    b = torch.randint(-128, 128, (N, K), generator=made, dtype=torch.int8)
    a_shape = (1, 1) if a_group < 0 else (M, K // (a_group or K))
    b_shape = (K // b_group[1], N // b_group[0])
    if powers:
        a_scale = torch.randint(120, 130, a_shape, generator=made, dtype=torch.uint8)
        b_scale = torch.randint(120, 130, b_shape, generator=made, dtype=torch.uint8)
        a_real, b_real = (2.0 ** (t.double() - 127) for t in (a_scale, b_scale))
    else:
        a_scale, b_scale = (torch.rand(s, generator=made) + 0.5 for s in (a_shape, b_shape))
        a_real, b_real = a_scale.double(), b_scale.double()
    out = torch.empty(M, N)
    single = a_group < 0
    # oneDNN has no e8m0 scale of one element alone; those go to our kernel.
    path = "auto" if powers and (single or b_group[0] == N) else "onednn"
    if a_group <= 0 and b_group[1] == K and not torch.ops.qcore_xpu.onednn_has_vnni():
        path = "auto"  # it may have a product that saturates
    with ops.using(path):
        matmul(
            out,
            a,
            b,
            a_scale=a_scale.reshape(1) if single else a_scale,
            a_group=a_group,
            b_scale=b_scale.t() if b_scale.numel() > 1 else b_scale.reshape(1),
            b_group=b_group,
        )
    real_a = a.double() * a_real.repeat_interleave(K // a_shape[1], 1)
    real_b = b.double() * b_real.t().repeat_interleave(b_group[0], 0).repeat_interleave(
        b_group[1], 1
    )
    assert bool(
        (
            (out.double() - real_a @ real_b.t()).abs()
            <= allowed(real_a, real_b, out.dtype, out.dtype)
        ).all()
    )


REFUSED = """
import torch
from qcore_xpu import ops
f8, f4 = torch.zeros(8, 64).to(torch.float8_e4m3fn), torch.zeros(8, 32, dtype=torch.uint8)
one, many = torch.full((8, 2), 127, dtype=torch.uint8), torch.full((2, 8), 127, dtype=torch.uint8)
half = torch.zeros(8, 64, dtype=torch.float16)
ops.fp8_gemm(f8, f8.t(), None, torch.ones(8, 1), torch.ones(8), None)
ops.fp8_gemm(f8, f8.t(), None, one, many, None)
ops.fp8_gemm_w8a16(half, f8.t(), torch.ones(8), None)
ops.fp4_gemm(f4, f4.t(), one, many, None, None)
print(ops.last_implementation())
"""


def test_of_small_floats_onednn_refuses_the_types() -> None:
    """Not something else: its reference implementation, which takes all attributes, says why."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED],
        env={**os.environ, "ONEDNN_VERBOSE": "dispatch"},
        check=True,
        capture_output=True,
        text=True,
    )
    text = done.stdout + done.stderr
    if "onednn ref" in text.splitlines()[-1]:
        pytest.skip("this processor's oneDNN has 8-bit floats")
    said = [line for line in text.splitlines() if ",ref:any," in line and "sparse" not in line]
    assert len(said) >= 4
    assert all("unsupported datatype" in line for line in said), said

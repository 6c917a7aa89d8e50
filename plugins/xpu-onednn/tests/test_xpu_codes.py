"""Every code of every small type, through the kernel that is compiled at run time."""

from __future__ import annotations

import math

import pytest
import torch
from qcore_xpu import ops
from qcore_xpu.ops.matmul import matmul
from xpu_oracle import E2M1, e4m3, e5m2, e8m0

pytestmark = pytest.mark.runs


def through(b: torch.Tensor, K: int, **arguments: object) -> torch.Tensor:
    """The values of b [N, K], as products with the unit matrix."""
    out = torch.empty(K, b.shape[0])
    with ops.using("sycl"):
        matmul(out, torch.eye(K), b, **arguments)  # type: ignore[arg-type]
    return out.t()


def check(values: torch.Tensor, wanted: list[float]) -> None:
    for index, (value, want) in enumerate(zip(values.tolist(), wanted, strict=True)):
        if math.isnan(want):
            assert math.isnan(value), index
        else:
            assert value == want, index


@pytest.mark.parametrize(
    ("dtype", "decode"), [(torch.float8_e4m3fn, e4m3), (torch.float8_e5m2, e5m2)]
)
def test_bytes(dtype: torch.dtype, decode: object) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(256, 1)
    check(through(codes, 1).flatten(), [decode(code) for code in range(256)])  # type: ignore[operator]


def test_nibbles() -> None:
    byte = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    values = through(byte, 2, b_type="e2m1")
    check(values[:, 0], [float(E2M1[code & 15]) for code in range(256)])
    check(values[:, 1], [float(E2M1[code >> 4]) for code in range(256)])
    integers = through(byte, 2, b_type="u4")
    check(integers[:, 1], [float(code >> 4) for code in range(256)])


def test_powers_of_two() -> None:
    scale = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
    ones = torch.ones(256, 1)
    # Multiplying with a one is exact, below the normal numbers too unless they are flushed.
    check(
        through(ones, 1, b_scale=scale, b_group=(1, 1)).flatten()[1:],
        [e8m0(c) for c in range(1, 256)],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_in_and_out(dtype: torch.dtype) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).reshape(-1, 1)
    every = every[every.isfinite().flatten()]
    out = torch.empty(1, len(every), dtype=dtype)
    with ops.using("sycl"):
        matmul(out, torch.ones(1, 1), every)
    normal = every.flatten().abs() >= torch.finfo(dtype).smallest_normal
    normal |= every.flatten() == 0
    if dtype == torch.float16:
        normal[:] = True  # float16's subnormal numbers are normal in float32
    assert torch.equal(out.flatten()[normal], every.flatten()[normal])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_are_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * 100
    x[:4] = torch.tensor([1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-12, 65519.0])
    out = torch.empty(1, 4096, dtype=dtype)
    with ops.using("sycl"):
        matmul(out, torch.ones(1, 1), x.reshape(-1, 1))
    assert torch.equal(out.flatten(), x.to(dtype))

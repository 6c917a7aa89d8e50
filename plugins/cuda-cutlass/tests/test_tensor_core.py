"""The emulation of tensor cores that other tests compare with, and what kernels declare of them."""

from __future__ import annotations

import pytest
import tensor_core
import torch
from qcore.numerics.tensor_core import FP8_SUM_UNIT

E4M3 = torch.float8_e4m3fn


def test_what_is_cut_off() -> None:
    # 256 * 256 is 2**16: of the other products no less than 2**3 = 8 is kept.
    a = torch.ones(1, 32)
    a[0, 0] = 256
    for other, kept in [(7.0, 0), (8.0, 8), (15.0, 8), (-15.0, -8)]:
        b = torch.full((1, 32), other)
        b[0, 0] = 256
        found = tensor_core.sums(a.to(E4M3), b.to(E4M3).t(), [torch.arange(32)])
        assert found.item() == 2**16 + 31 * kept


def test_few_products_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-4, 5, (3, 96), generator=generator).float().to(E4M3)
    b = torch.randint(-4, 5, (5, 96), generator=generator).float().to(E4M3).t()
    assert torch.equal(tensor_core.sums(a, b, [torch.arange(96)]), a.double() @ b.double())


@pytest.mark.parametrize("K", [16, 256, 1040])
@pytest.mark.parametrize("path", ["tile", "tile_promoted", "sm90_columns"])
def test_within_what_is_declared(path: str, K: int) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(8, K, generator=generator).mul(50).to(E4M3)
    b = torch.randn(24, K, generator=generator).mul(50).to(E4M3).t()
    parts = tensor_core.chains(path, K)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(K))
    lost = (tensor_core.sums(a, b, parts) - a.double() @ b.double()).abs()
    assert (lost <= K * FP8_SUM_UNIT * (a.double().abs() @ b.double().abs())).all()
    assert K < 256 or lost.max() > 0

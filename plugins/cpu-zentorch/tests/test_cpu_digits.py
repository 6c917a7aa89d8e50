"""Exact products by integers (docs/adr/0017) are no less exact than sums of floats, on any data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cpu_oracle import linear, make_layer
from qcore_cpu import library

Tensor = torch.Tensor


@pytest.fixture(params=["avx512", "avx512_bf16", "avxvnni"])
def name(request: pytest.FixtureRequest) -> str:
    """An instruction set that multiplies so."""
    if request.param not in library.supported_isas():
        pytest.skip(f"this processor cannot run {request.param}")
    library.set_isa(request.param)
    return str(request.param)


def _gaussian() -> Tensor:
    return torch.randn(9, 1024)


def _outliers() -> Tensor:
    """One input of each group a thousand times larger than the rest."""
    x = torch.randn(9, 1024)
    x[:, 5::128] *= 1000
    return x


def _positive() -> Tensor:
    return torch.rand(9, 1024)


def _wide() -> Tensor:
    """Magnitudes over six decades."""
    return torch.randn(9, 1024) * 10 ** (6 * torch.rand(9, 1024) - 3)


@pytest.mark.parametrize("draw", [_gaussian, _outliers, _positive, _wide])
@pytest.mark.parametrize("bits", [2, 4, 5, 6, 8])
def test_error_beside_that_of_floats(name: str, draw: Callable[[], Tensor], bits: int) -> None:
    layer = make_layer(64, 1024, bits, 128)
    x = draw()
    exact = linear(x, layer.weight)
    errors = {}
    for isa in ("avx2", name):
        library.set_isa(isa)
        errors[isa] = float((layer.run(x).double() - exact).norm() / exact.norm())
    assert errors[name] <= 1.1 * errors["avx2"], errors
    assert errors[name] < 4e-7, errors


def test_beside_a_large_input_that_does_not_count(name: str) -> None:
    """Its weight is zero: what is left has the bits that 2^-31 of it leaves, and no fewer."""
    layer = make_layer(16, 128, 8, 128)
    layer.packed[:, 0] = (layer.packed[:, 0] & ~0xFF) | 128
    layer.weight[:, 0] = 0
    x = torch.randn(3, 128)
    for exponent in (0, 7, 12, 20, 30):
        x[:, 0] = 2.0**exponent
        out, exact = layer.run(x), linear(x, layer.weight)
        rest = linear(x[:, 1:].abs(), layer.weight[:, 1:].abs())
        # Rounded to 2^(exponent + 1 - 30), each of 127 inputs is off by half of it at most.
        lost = layer.weight.abs().sum(1) * 2.0 ** (exponent + 1 - 31)
        assert bool(((out.double() - exact).abs() <= 1e-6 * rest + lost).all()), exponent


def test_extremes(name: str) -> None:
    layer = make_layer(16, 256, 4, 64)
    x = torch.randn(2, 256)
    exact = linear(x, layer.weight)
    for factor in (2.0**-100, 2.0**-60, 2.0**60, 2.0**110):
        out = layer.run(x * factor).double() / factor
        assert float((out - exact).norm() / exact.norm()) < 1e-6, factor
    assert not layer.run(torch.zeros(2, 256)).any()
    assert bool(layer.run(torch.full((1, 256), 1e-45)).isfinite().all())
    for bad in (float("inf"), float("-inf"), float("nan")):
        x[1, 70] = bad
        out = layer.run(x)
        assert bool((~out[1].isfinite()).all())
        assert bool(out[0].isfinite().all())

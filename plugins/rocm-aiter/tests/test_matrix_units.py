"""The emulated matrix instructions, lane by lane, and the 8-bit floats."""

from __future__ import annotations

from ctypes import Structure, c_void_p
from dataclasses import dataclass

import pytest
import torch
from cpu_machine import CpuMachine
from lane_layout import LAYOUTS, Layout
from qcore.numerics.fnuz import e4m3fn_to_fnuz
from qcore_rocm import launching, ops


class Probe(Structure):
    _fields_ = tuple((name, c_void_p) for name in ("a", "b", "sums"))


@dataclass
class Element:
    dtype: torch.dtype
    sums: torch.dtype
    random: torch.Tensor


def element(kind: str, fnuz: bool) -> Element:
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(-8, 9, (2, 32, 16), generator=generator)
    if kind == "int8":
        random = torch.randint(-128, 128, small.shape, generator=generator)
        return Element(torch.int8, torch.int32, random)
    dtypes = {"f16": torch.float16, "bf16": torch.bfloat16}
    fp8 = torch.float8_e4m3fnuz if fnuz else torch.float8_e4m3fn
    return Element(dtypes.get(kind, fp8), torch.float32, small.float() / 8)  # sums are exact


def layout_of(arch: str, kind: str) -> Layout | None:
    return LAYOUTS.get(f"{'gfx942' if arch == 'gfx950' else arch} {kind}")


@pytest.mark.parametrize("kind", ["int8", "fp8", "f16", "bf16"])
def test_lanes(kind: str, machine: CpuMachine) -> None:
    layout = layout_of(machine.arch, kind)
    if layout is None:
        pytest.skip(f"{machine.arch} has no products of {kind}")
    assert layout.wave == machine.wave
    what = element(kind, machine.arch == "gfx942")
    a = what.random[0, : layout.k].t().contiguous().to(what.dtype)  # [16, k]
    b = what.random[1, : layout.k].contiguous().to(what.dtype)  # [k, 16]
    lanes_a = torch.zeros((layout.wave, layout.each)).to(what.dtype)
    lanes_b = lanes_a.clone()
    for i in range(16):
        for k in range(layout.k):
            lanes_a[layout.a(i, k)] = a[i, k]
            lanes_b[layout.b(k, i)] = b[k, i]
    sums = torch.zeros((layout.wave, 256 // layout.wave), dtype=what.sums)
    args = Probe(lanes_a.data_ptr(), lanes_b.data_ptr(), sums.data_ptr())
    machine.launch(f"probe_{kind}", args, (1, 1), torch.device("cpu"))
    expected = a.double() @ b.double()
    found = torch.tensor(
        [[sums[layout.d(i, j)].item() for j in range(16)] for i in range(16)], dtype=torch.float64
    )
    assert torch.equal(found, expected)


def test_a_thread_that_does_not_come(machine: CpuMachine) -> None:
    with pytest.raises(RuntimeError, match="wait for others"):
        machine.launch("probe_parted", Probe(), (1, 1), torch.device("cpu"))
    # The machine goes on.
    with launching.stand_in(machine):
        out = ops.INT8_LINEAR(
            torch.ones(1, 16), torch.ones(1, 16, dtype=torch.int8), torch.ones(1), *[None] * 4,
            torch.float32,
        )  # fmt: skip
    assert out.item() == pytest.approx(16)


def rounding_inputs() -> torch.Tensor:
    """All that matters of e4m3: values, ties, their neighbours, signs, zeros, NaN."""
    values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (values[1:] + values[:-1]) / 2
    near = torch.cat((values, ties))
    up, down = torch.full_like(near, 1e9), torch.full_like(near, -1e9)
    near = torch.cat((near, near.nextafter(up), near.nextafter(down), torch.tensor([1e-30, 600])))
    return torch.cat((near, -near, torch.tensor([torch.nan, torch.inf, -torch.inf])))


def test_rounding_to_e4m3(on_machine: CpuMachine) -> None:
    x = rounding_inputs().reshape(1, -1)
    if on_machine.arch == "gfx90a":
        pytest.skip("gfx90a has no 8-bit floats")
    codes, _, _ = ops.scaled._quantize("fp8", x, x.shape[1], torch.ones(1), None, None)
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    if on_machine.arch == "gfx942":
        found = codes.view(torch.float8_e4m3fnuz).float()
        halves = e4m3fn_to_fnuz(expected).float()
        torch.testing.assert_close(found, halves, rtol=0, atol=0, equal_nan=True)
        assert not (codes == 0x80).logical_xor(x.isnan()).any()
    else:
        found = codes.view(torch.float8_e4m3fn).float()
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=0, equal_nan=True)

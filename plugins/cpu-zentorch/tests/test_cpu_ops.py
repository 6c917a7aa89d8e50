"""The ops under opcheck and torch.compile; the library's loading; the choice of instruction set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cpu_oracle import make_layer
from qcore.errors import MissingDependencyError
from qcore_cpu import library

ops = torch.ops.qcore_cpu


def _int8_arguments() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    packed, col_sums = ops.int8_pack(torch.randint(-128, 128, (20, 40), dtype=torch.int8))
    return packed, torch.rand(20), col_sums


def test_opcheck_wna16() -> None:
    for zero_points, g_idx in ((False, False), (True, True)):
        layer = make_layer(20, 64, 4, 32, zero_points, g_idx)
        pack = (layer.packed, layer.scale, layer.zero_point, layer.g_idx, 4, 8, 32, 64)
        # Sizes that depend on the values of g_idx: static shapes cannot be traced.
        torch.library.opcheck(
            ops.wna16_pack.default, pack, test_utils=("test_schema", "test_faketensor")
        )
        for x in (torch.randn(3, 64), torch.randn(2, 3, 64, dtype=torch.bfloat16)):
            arguments = (x, *layer.arguments(torch.randn(20)))
            torch.library.opcheck(ops.wna16_linear.default, arguments)
            torch.library.opcheck(ops.wna16_linear.default, (*arguments, torch.float16))
            out = torch.empty(*x.shape[:-1], 20)
            torch.library.opcheck(ops.wna16_linear_out.default, (*arguments, out))


def test_opcheck_int8() -> None:
    arguments = _int8_arguments()
    x, azp = torch.randn(3, 40), torch.tensor([5], dtype=torch.int32)
    torch.library.opcheck(ops.int8_pack.default, (torch.ones(20, 40, dtype=torch.int8),))
    for tail in (
        (None, None, None, True),
        (torch.randn(20), None, None, False),
        (None, torch.tensor(0.1), None, True),
        (None, torch.tensor([0.1]), azp, False),
    ):
        torch.library.opcheck(ops.int8_scaled_linear.default, (x, *arguments, *tail))
        out = torch.empty(3, 20)
        torch.library.opcheck(ops.int8_scaled_linear_out.default, (x, *arguments, *tail, out))
    for symmetric in (True, False):
        torch.library.opcheck(ops.dynamic_scaled_int8_quant.default, (x, symmetric))
    torch.library.opcheck(ops.static_scaled_int8_quant.default, (x, torch.tensor(0.1), azp))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic: bool) -> None:
    layer = make_layer(20, 64, 4, 32, True)
    wna16, int8 = layer.arguments(), _int8_arguments()

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = ops.wna16_linear(x * 2, *wna16)
        second = ops.int8_scaled_linear(torch.relu(x[..., :40]), *int8)
        codes, scale, _ = ops.dynamic_scaled_int8_quant(x)
        return first + second, codes.float() * scale

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for M in (1, 5, 20):
        x = torch.randn(M, 64)
        for mine, eager in zip(compiled(x), run(x), strict=True):
            assert torch.equal(mine, eager)


def test_meta_tensors() -> None:
    layer = make_layer(20, 64, 4, 32)
    arguments = [
        a.to("meta") if isinstance(a, torch.Tensor) else a for a in layer.arguments(torch.ones(20))
    ]
    out = ops.wna16_linear(torch.empty(2, 3, 64, device="meta"), *arguments, torch.bfloat16)
    assert out.shape == (2, 3, 20)
    assert out.dtype == torch.bfloat16


# -- the library ---------------------------------------------------------------------------------


def test_import_loads_nothing() -> None:
    script = (
        "import qcore_cpu, qcore_cpu.plugin as p, torch\n"
        "p.qcore_kernels(); p.qcore_plugin()\n"
        "import qcore_cpu.wna16, qcore_cpu.int8, qcore_cpu.gguf, qcore_cpu.zentorch_int8\n"
        "assert not hasattr(torch.ops.qcore_cpu, 'isa'), 'the library is loaded'\n"
        "import sys; assert 'zentorch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_of_the_package_does_not_import_torch() -> None:
    script = "import sys, qcore_cpu; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_missing_or_broken_library_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_loaded", False)
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "qcore_cpu.so")
    with pytest.raises(MissingDependencyError, match="without its compiled library"):
        library.load()
    (tmp_path / "qcore_cpu.so").write_bytes(b"no library")
    with pytest.raises(MissingDependencyError, match="does not load under torch"):
        library.load()
    assert "does not load" in str(library.refusal())


def test_isa() -> None:
    supported = library.supported_isas()
    assert supported[-1] == "scalar"
    assert set(supported) <= set(ops.compiled_isas().split(","))
    for name in supported:
        library.set_isa(name)
        assert library.isa() == name
    with pytest.raises(RuntimeError, match="set_isa: name is 'sse9'; this machine supports: "):
        library.set_isa("sse9")

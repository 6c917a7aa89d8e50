"""`qcore.kernels.deep_gemm` beside a package that stands in for DeepGEMM."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from qcore.kernels.deep_gemm import deep_gemm_fault, fp8_gemm_nt


def product(a, b, d, c=None):
    (codes, a_scale), (weight, b_scale) = a, b
    assert codes.dtype == weight.dtype == torch.float8_e4m3fn
    spread = b_scale.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    left = codes.double() * a_scale.double().repeat_interleave(128, 1)
    d.copy_(left @ (weight.double() * spread[: weight.shape[0]]).t())


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("deep_gemm")
    module.fp8_gemm_nt = product
    monkeypatch.setitem(sys.modules, "deep_gemm", module)
    deep_gemm_fault.cache_clear()
    yield module
    deep_gemm_fault.cache_clear()


def codes(*shape):
    return torch.randn(shape).to(torch.float8_e4m3fn).view(torch.uint8)


@pytest.mark.parametrize("M", [0, 1, 7])
def test_the_product(package, M):
    torch.manual_seed(0)
    a, b = codes(M, 256), codes(192, 256)
    a_scale, b_scale = torch.rand(M, 2), torch.rand(2, 2)
    found = fp8_gemm_nt(a, a_scale, b, b_scale)
    assert found.shape == (M, 192)
    assert found.dtype == torch.bfloat16
    exact = torch.zeros(M, 192, dtype=torch.float64)
    for group in range(2):
        for block, rows in enumerate((slice(0, 128), slice(128, 192))):
            part = slice(128 * group, 128 * group + 128)
            left = a[:, part].view(torch.float8_e4m3fn).double()
            right = b[rows, part].view(torch.float8_e4m3fn).double()
            scale = a_scale[:, group : group + 1].double() * b_scale[block, group].double()
            exact[:, rows] += (left @ right.t()) * scale
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)
    torch.library.opcheck(fp8_gemm_nt, (a, a_scale, b, b_scale))


def test_no_fault(package):
    assert deep_gemm_fault() is None
    assert deep_gemm_fault("not there") is None


def test_faults(package, monkeypatch):
    def fault(*words):
        deep_gemm_fault.cache_clear()
        return deep_gemm_fault(*words)

    package.fp8_gemm_nt = lambda lhs, rhs, out: None
    assert "takes (lhs, rhs, out); (a, b, d, ...) was expected" in fault()
    package.fp8_gemm_nt = None
    assert "has no fp8_gemm_nt" in fault("not there")
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    assert fault().startswith("importing deep_gemm raised ModuleNotFoundError")
    assert fault("not there") == "not there"


def test_what_importing_raises_is_said(package, monkeypatch, tmp_path):
    (tmp_path / "deep_gemm.py").write_text("raise RuntimeError('no CUDA here')")
    monkeypatch.delitem(sys.modules, "deep_gemm")
    monkeypatch.syspath_prepend(tmp_path)
    assert deep_gemm_fault("not there") == "importing deep_gemm raised RuntimeError: no CUDA here"


def test_nothing_imports_the_package_unasked():
    code = "import sys, qcore.kernels.deep_gemm\nassert 'deep_gemm' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)

"""FBGEMM's wrapper against a stand-in with the schemas of its releases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from nvfp4_operands import nvfp4_product
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.layers import NvFp4LinearLayerConfig
from qcore.testing import (
    Arithmetic,
    Subject,
    check_claimed,
    check_kernel,
    check_numerics,
    conformance_configs,
)
from qcore.testing.answers import check_answers
from qcore_cuda import plugin
from qcore_cuda.kernels import fbgemm
from qcore_cuda.kernels.fbgemm import FbgemmNvFp4LinearKernel

SPEC = next(s for s in plugin.qcore_kernels() if s.name == "FbgemmNvFp4LinearKernel")
CONFIGS = conformance_configs("nvfp4")
SCHEMAS = {
    "1.4.2": "f4f4bf16(Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale, "
    "Tensor? global_scale=None, bool use_mx=True) -> Tensor",
    "1.9.0": "f4f4bf16(Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale, "
    "Tensor? output=None, Tensor? global_scale=None) -> Tensor",
}
"""As the wheels have them; 1.6.0 and 1.8.0 as 1.9.0."""

Put = Callable[[str], None]


def product(
    XQ: torch.Tensor,
    WQ: torch.Tensor,
    x_scale: torch.Tensor,
    w_scale: torch.Tensor,
    output: torch.Tensor | None = None,
    global_scale: torch.Tensor | None = None,
    use_mx: bool = False,
) -> torch.Tensor:
    """Checks what FBGEMM checks (``f4f4bf16.cu``) and computes in float64."""
    assert output is None
    assert global_scale is not None
    assert not use_mx
    assert XQ.shape[0] > 0
    assert WQ.shape[0] % 16 == WQ.shape[1] % 16 == 0
    assert x_scale.dim() == w_scale.dim() == 1
    for scale in (x_scale, w_scale):
        assert scale.is_contiguous()
    return nvfp4_product(XQ, WQ, x_scale, w_scale, global_scale).to(torch.bfloat16)


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """A function that puts a stand-in in FBGEMM's place, its op with the schema that is given."""
    made: list[Any] = []

    def forget() -> None:
        while made:
            made.pop()._destroy()
        vars(torch.ops.fbgemm).pop("f4f4bf16", None)
        fbgemm.missing_function.cache_clear()
        fbgemm.arguments.cache_clear()

    def put(schema: str) -> None:
        forget()
        for name in ("fbgemm_gpu", "fbgemm_gpu.experimental", "fbgemm_gpu.experimental.gen_ai"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        made.append(torch.library.Library("fbgemm", "FRAGMENT"))
        made[-1].define(schema)
        name, names = schema.partition("(")[0], "use_mx" in schema

        def old(a: Any, b: Any, sa: Any, sb: Any, scale: Any = None, use_mx: bool = True) -> Any:
            return product(a, b, sa, sb, None, scale, use_mx)

        made[-1].impl(name, old if names else product, "CPU")

    yield put
    forget()


def subject() -> Subject:
    kernel = FbgemmNvFp4LinearKernel
    here = replace(SPEC, platforms=("cpu",), min_capability=None, max_capability=None, modules=())
    return Subject(kernel, "cpu", here, Arithmetic.of(kernel))


@pytest.mark.parametrize("release", SCHEMAS)
def test_conforms(release: str, put: Put) -> None:
    put(SCHEMAS[release])
    who = subject()
    shown = f"a stand-in with the schema of fbgemm-gpu-genai {release}"
    check_claimed(who, CONFIGS, "contract", shown)
    with weighing(Target.parse("cuda:sm_100")):
        check_answers(who, CONFIGS)


@pytest.mark.parametrize(("N", "K"), [(1, 16), (8, 48), (130, 80), (16, 2064), (300, 32)])
def test_sizes_that_are_padded(N: int, K: int, put: Put) -> None:
    put(SCHEMAS["1.9.0"])
    check_numerics(subject(), NvFp4LinearLayerConfig((N, K), input_dtype=torch.bfloat16))


def test_reasons(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(arch: int, here: bool = False) -> str:
        fbgemm.missing_function.cache_clear()
        with weighing(replace(Target.parse(f"cuda:sm_{arch}"), is_current=here)):
            return str(FbgemmNvFp4LinearKernel.is_supported()[1])

    assert "this device is sm_90" in ask(90)
    assert "this device is sm_120" in ask(120)
    assert ask(100) == ask(103) == "None"
    put(SCHEMAS["1.9.0"])
    assert ask(100, here=True) == ask(103, here=True) == "None"
    monkeypatch.setattr(fbgemm, "version", lambda name: "1.8.0+cu130")
    assert ask(100, here=True) == "None"
    assert "as of release 1.9" in ask(103, here=True)
    put("f4f4bf16(Tensor a, Tensor b) -> Tensor")
    assert "takes (a, b)" in ask(100, here=True)
    put("another(Tensor a) -> Tensor")
    assert "has no f4f4bf16" in ask(100, here=True)
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)
    monkeypatch.delitem(sys.modules, "fbgemm_gpu.experimental")
    monkeypatch.delitem(sys.modules, "fbgemm_gpu.experimental.gen_ai")
    assert "raised ModuleNotFoundError" in ask(100, here=True)


def test_what_it_refuses() -> None:
    def ask(**given: Any) -> str:
        config = NvFp4LinearLayerConfig(**{"weight_shape": (32, 32), **given})
        return str(FbgemmNvFp4LinearKernel.can_implement(config)[1])

    assert ask(input_dtype=torch.bfloat16) == "None"
    assert ask(input_dtype=torch.float16, out_dtype=torch.bfloat16) == "None"
    assert "results in float16" in ask(input_dtype=torch.float16)
    assert "shape is not known" in ask(weight_shape=None, input_dtype=torch.bfloat16)
    assert "weight-only" in ask(activation_quant_key=None, input_dtype=torch.bfloat16)


@pytest.mark.skipif(find_spec("fbgemm_gpu") is None, reason="fbgemm-gpu-genai is not installed")
def test_the_installed_package_has_the_schema() -> None:
    fbgemm.missing_function.cache_clear()
    why = fbgemm.missing_function()
    if why is not None and "raised" in why:
        pytest.skip(why)
    assert why is None
    known = [schema.partition(") ->")[0] for schema in SCHEMAS.values()]
    found = str(torch.ops.fbgemm.f4f4bf16.default._schema).removeprefix("fbgemm::")
    assert found.partition(") ->")[0] in known


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("fbgemm_gpu") is None, reason="fbgemm-gpu-genai is not installed")
def test_every_layer_on_the_gpu() -> None:
    if torch.cuda.get_device_capability()[0] != 10:
        pytest.skip("FBGEMM has 4-bit products for compute capability 10")
    check_kernel(FbgemmNvFp4LinearKernel, device="cuda", spec=SPEC)

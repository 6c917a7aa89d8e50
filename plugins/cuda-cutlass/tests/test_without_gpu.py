"""What can be known of the ops and kernels without a GPU: schemas, fakes, refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.target import Target
from qcore.kernels import process_weights
from qcore.numerics.tensor_core import FP8_SUM_UNIT
from qcore.plugin import KernelSpec
from qcore.testing import Subject, conformance_configs, make_layer, random_tensors
from qcore.testing.answers import check_answers
from qcore.testing.tensors import input_dtype, output_dtype
from qcore_cuda import library, ops, plugin
from qcore_cuda.kernels.cutlass_fp8 import CutlassFP8ScaledMMLinearKernel
from qcore_cuda.kernels.cutlass_int8 import CutlassInt8ScaledMMLinearKernel

E4M3 = torch.float8_e4m3fn
BF16 = torch.bfloat16

SCALED = [  # those of other packages have tests of their own, with stand-ins for the packages
    spec
    for spec in plugin.qcore_kernels()
    if spec.kernel_type in ("int8", "fp8", "fp8_block")
    and spec.backend not in ("deep_gemm", "humming")
]

needs_library = pytest.mark.skipif(
    not library.LIBRARY.is_file(), reason="qcore-cuda is installed without its compiled library"
)


def meta(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def floats(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.float32)


# -- schemas -------------------------------------------------------------------------------------


def _schemas() -> list[Any]:
    library.load()
    return [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("qcore_cuda::")]


@needs_library
def test_every_op_of_tensors_has_a_fake() -> None:
    schemas = _schemas()
    assert len(schemas) > 20
    for schema in schemas:
        name = f"{schema.name}.{schema.overload_name}".rstrip(".")
        has_tensors = any("Tensor" in str(a.type) for a in schema.arguments)
        fake = torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta")
        assert fake or not has_tensors, name


@needs_library
def test_an_op_either_writes_or_returns() -> None:
    for schema in _schemas():
        if schema.name == "qcore_cuda::marlin_load_kernel":
            continue  # what it changes is the library's table
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
        assert writes != bool(schema.returns), schema
        assert all(r.alias_info is None for r in schema.returns), schema


# -- fakes ---------------------------------------------------------------------------------------


@needs_library
def test_fakes_of_quantizers() -> None:
    x = meta(2, 3, 200)
    codes, scale, azp = ops.scaled_int8_quant(x)
    assert (codes.shape, codes.dtype, azp) == (x.shape, torch.int8, None)
    assert scale.shape == (2, 3, 1)
    codes, scale, azp = ops.scaled_int8_quant(x, symmetric=False)
    assert azp is not None
    assert (azp.shape, azp.dtype) == ((2, 3, 1), torch.int32)
    codes, scale = ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)
    assert (codes.shape, codes.dtype, scale.shape) == (x.shape, E4M3, (2, 3, 1))
    codes, scale = ops.scaled_fp8_quant(x)
    assert scale.shape == (1,)
    codes, scale = ops.scaled_fp8_quant(x, floats(1))
    assert codes.dtype == E4M3
    codes, scale = ops.per_token_group_fp8_quant(x, 128)
    assert scale.shape == (2, 3, 2)
    _, scale = ops.per_token_group_fp8_quant(
        meta(5, 200), 128, column_major_scales=True, tma_aligned_scales=True
    )
    assert (scale.shape, scale.stride()) == ((5, 2), (1, 8))
    _, words = ops.per_token_group_fp8_quant_packed(meta(5, 640), 128)
    assert (words.shape, words.stride(), words.dtype) == ((5, 2), (1, 8), torch.int32)
    four, scale = ops.scaled_fp4_quant(meta(5, 32), floats(1))
    assert (four.shape, scale.shape) == ((5, 16), (128, 1))


@needs_library
def test_fakes_of_products() -> None:
    a, b = meta(3, 32, dtype=torch.int8), meta(16, 32, dtype=torch.int8).t()
    out = ops.cutlass_scaled_mm(a, b, floats(1), floats(1), BF16)
    assert (out.shape, out.dtype) == ((3, 16), BF16)
    adj = meta(16, dtype=torch.int32)
    out = ops.cutlass_scaled_mm_azp(a, b, floats(1), floats(1), torch.float16, adj)
    assert (out.shape, out.dtype) == ((3, 16), torch.float16)


LAYERS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: ops.int8_linear(
        x, meta(16, 32, dtype=torch.int8), floats(16), meta(10), None, None, None, 10, BF16
    ),
    lambda x: ops.fp8_linear(
        x, meta(16, 32, dtype=torch.uint8), floats(1), None, None, None, True, 10, BF16
    ),
    lambda x: ops.fp8_block_linear(
        x, meta(16, 32, dtype=torch.uint8), floats(1, 1), None, 10, BF16
    ),
]


@needs_library
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_on_meta_tensors_and_compiled(layer: Callable[..., torch.Tensor]) -> None:
    for shape in [(32,), (5, 32), (2, 0, 32)]:
        out = layer(meta(*shape))
        assert (out.shape, out.dtype, out.is_contiguous()) == ((*shape[:-1], 10), BF16, True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for M in (4, 7):
        assert compiled(meta(M, 32)).shape == (M, 10)


@needs_library
def test_a_static_zero_point_needs_symmetric_false() -> None:
    zero = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="symmetric=False"):
        ops.scaled_int8_quant(torch.ones(2, 4), torch.ones(1), zero)
    with pytest.raises(ValueError, match="scale_ub is for"):
        ops.scaled_fp8_quant(torch.ones(2, 4), scale_ub=torch.ones(1))


# -- refusals ------------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def pretend(*archs: int, specific: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(library, "compiled_archs", lambda: (archs, specific))

    return pretend


def refusal_on(target: str, *specific: str) -> str | None:
    with weighing(Target.parse(target)):
        return library.refusal(None, *specific)


def test_refused_where_nothing_was_compiled_for_the_device(compiled: Callable[..., None]) -> None:
    compiled(80, 90, specific=("90a",))
    assert refusal_on("cuda:sm_90") is None
    assert refusal_on("cuda:sm_120") is None  # through PTX
    assert (
        refusal_on("cuda:sm_75") == "compiled for sm_80 and sm_90 and later; this device is sm_75"
    )
    assert refusal_on("cuda:sm_90", "90a") is None
    assert refusal_on("cuda:sm_80", "90a") == "written for sm_90a; this device is sm_80"
    why = refusal_on("cuda:sm_100", "100a")
    assert why == "compiled for sm_90a; this device is sm_100 (build with QCORE_CUDA_ARCHS)"
    compiled(80)
    assert "compiled for no generation's own" in str(refusal_on("cuda:sm_90", "90a"))
    compiled()
    assert "without its compiled library" in str(refusal_on("cuda:sm_90"))


def test_8_bit_floats_need_sm89(compiled: Callable[..., None]) -> None:
    compiled(80)
    with weighing(Target.parse("cuda:sm_80")):
        assert CutlassInt8ScaledMMLinearKernel.is_supported() == (True, None)
        able, why = CutlassFP8ScaledMMLinearKernel.is_supported()
    assert not able
    assert "89" in str(why)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_a_torch_without_cuda_is_the_reason() -> None:
    with weighing(Target.current("cpu")):
        assert "without" in str(library.refusal(90))
    assert all(not line.ok for line in plugin.qcore_doctor())


@pytest.mark.parametrize("spec", plugin.qcore_kernels(), ids=lambda spec: spec.name)
def test_answers_are_in_words(spec: KernelSpec, compiled: Callable[..., None]) -> None:
    compiled(80, 90, specific=("90a",))
    module, _, name = spec.entry.partition(":")
    kernel = getattr(import_module(module), name)
    with weighing(Target.parse("cuda:sm_90")):
        check_answers(Subject(kernel, "cuda", spec), conformance_configs(kernel.kernel_type))


def test_what_is_declared() -> None:
    specs = {spec.name: spec for spec in plugin.qcore_kernels()}
    fp8 = specs["CutlassFP8ScaledMMLinearKernel"]
    assert fp8.min_capability == CutlassFP8ScaledMMLinearKernel.get_min_capability()
    assert CutlassFP8ScaledMMLinearKernel.accumulation == FP8_SUM_UNIT
    assert CutlassInt8ScaledMMLinearKernel.accumulation == torch.float32


@needs_library
@pytest.mark.parametrize("spec", SCALED, ids=lambda spec: spec.name)
def test_kernels_on_meta_tensors(spec: KernelSpec) -> None:
    module, _, name = spec.entry.partition(":")
    kernel_class = getattr(import_module(module), name)
    configs = [
        config
        for config in conformance_configs(kernel_class.kernel_type)
        if kernel_class.can_implement(config)[0]
    ]
    assert len(configs) > 3
    for config in configs:
        kernel = kernel_class.from_config(config)
        layer = make_layer(config, random_tensors(config))
        process_weights(kernel, layer)
        layer = layer.to("meta")
        N, K = config.out_features, config.in_features
        for shape in [(K,), (3, K), (2, 0, K)]:
            x = meta(*shape, dtype=input_dtype(config))
            for bias in (None, meta(N, dtype=torch.float32)):
                out = kernel.apply_weights(layer, x, bias)
                assert out.shape == (*shape[:-1], N)
                assert out.dtype == output_dtype(config)

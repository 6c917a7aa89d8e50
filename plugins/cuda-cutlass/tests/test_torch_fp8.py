"""The kernels on `torch._scaled_mm`; here on torch's own CPU product, with a GPU on cuBLAS's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from qcore.facts.current_platform import weighing
from qcore.facts.quant_key import (
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
)
from qcore.facts.target import Target
from qcore.kernels import process_weights
from qcore.layers import FP8ScaledMMLinearLayerConfig
from qcore.testing import (
    Arithmetic,
    Subject,
    check_compile,
    check_contract,
    check_kernel,
    check_numerics,
    check_packing,
    conformance_configs,
    make_layer,
)
from qcore.testing.answers import check_answers
from qcore_cuda import plugin
from qcore_cuda.kernels import torch_fp8

SPECS = [s for s in plugin.qcore_kernels() if s.backend == "torch"]
CLASSES = [getattr(torch_fp8, spec.name) for spec in SPECS]
CONFIGS = conformance_configs("fp8")
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn

each_kernel = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def subject(spec: Any) -> Subject:
    kernel = getattr(torch_fp8, spec.name)
    here = replace(spec, platforms=("cpu",), min_capability=None)
    return Subject(kernel, "cpu", here, Arithmetic.of(kernel))


def claimed(kernel: Any) -> list[FP8ScaledMMLinearLayerConfig]:
    return [config for config in CONFIGS if kernel.can_implement(config)[0]]


def test_every_layer_of_e4m3_is_taken_by_one() -> None:
    taken = [{c for c in CONFIGS if kernel.can_implement(c)[0]} for kernel in CLASSES]
    by_name = dict(zip((spec.name for spec in SPECS), taken, strict=True))
    tensor = by_name["PerTensorTorchFP8ScaledMMLinearKernel"]
    row = by_name["RowWiseTorchFP8ScaledMMLinearKernel"]
    channel = by_name["ChannelWiseTorchFP8ScaledMMLinearKernel"]
    assert row < channel
    assert not tensor & channel
    rest = set(CONFIGS) - tensor - channel
    assert all(
        c.activation_quant_key is None or torch.float8_e4m3fnuz == c.weight_quant_key.dtype
        for c in rest
    )


@each_kernel
def test_conforms_on_the_cpu(spec: Any) -> None:
    who = subject(spec)
    configs = claimed(who.kernel_class)
    assert len(configs) > 5
    for config in configs:
        if spec.name.startswith("RowWise") and not _cpu_has_row_wise():
            continue
        check_contract(who, config)
        check_numerics(who, config)
        check_packing(who, config)
    check_compile(who, configs[0], backend="aot_eager")


def _cpu_has_row_wise() -> bool:
    a, one = torch.zeros(16, 16).to(E4M3), torch.ones(16, 1)
    try:
        torch._scaled_mm(a, a.t(), scale_a=one, scale_b=one.t(), out_dtype=BF16)
    except (RuntimeError, ValueError):
        return False
    return True


@each_kernel
@pytest.mark.parametrize("M", [1, 5, 17])
def test_against_float64(spec: Any, M: int) -> None:
    """Codes that are given, scales of every form, K and N that torch does not take."""
    N, K = 10, 40
    tensor = spec.name.startswith("PerTensor")
    config = FP8ScaledMMLinearLayerConfig(
        kFp8StaticTensorSym if tensor else kFp8StaticChannelSym,
        kFp8DynamicTensorSym if tensor else kFp8DynamicTokenSym,
        (N, K),
        BF16,
        BF16,
    )
    random = torch.Generator().manual_seed(M)
    weight = torch.randn(N, K, generator=random).to(E4M3)
    scale = torch.rand(() if tensor else (N, 1), generator=random) + 0.5
    given = torch.rand(() if tensor else (M, 1), generator=random) + 0.5
    codes = torch.randn(M, K, generator=random).to(E4M3)
    bias = torch.randn(N, generator=random)
    kernel = getattr(torch_fp8, spec.name).from_config(config)
    layer = make_layer(config, {"weight": weight.t(), "weight_scale": scale})
    process_weights(kernel, layer)
    layer.input_scale = torch.nn.Parameter(given, requires_grad=False)
    if spec.name.startswith("RowWise") and not _cpu_has_row_wise():
        pytest.skip("this torch has no row-wise product on a CPU")
    out = kernel.apply_weights(layer, codes, bias)
    left = codes.double() * given.double().reshape(-1, 1)
    right = weight.double() * scale.double().reshape(-1, 1)
    expected = left @ right.t() + bias.double()
    assert torch.allclose(out.double(), expected, rtol=2**-7, atol=2**-6)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
@each_kernel
def test_a_torch_without_cuda_is_the_reason(spec: Any) -> None:
    with weighing(Target.current("cpu")):
        able, why = getattr(torch_fp8, spec.name).is_supported(90)
    assert not able
    assert "without CUDA" in str(why)


@pytest.mark.parametrize(
    ("arch", "names"), [(80, ""), (89, "Per Channel"), (90, "Per Row Channel")]
)
def test_where_they_run(arch: int, names: str) -> None:
    with weighing(Target.parse(f"cuda:sm_{arch}")):
        able = [spec.name for spec in SPECS if getattr(torch_fp8, spec.name).is_supported()[0]]
    assert [name.split("TensorTorch")[0].split("Wise")[0] for name in able] == names.split()
    for spec in SPECS:
        least = getattr(torch_fp8, spec.name).get_min_capability()
        assert spec.min_capability == least


@each_kernel
def test_answers_are_in_words(spec: Any) -> None:
    with weighing(Target.parse("cuda:sm_90")):
        check_answers(subject(spec), CONFIGS)


@pytest.mark.gpu
@each_kernel
def test_conforms_on_the_gpu(spec: Any) -> None:
    check_kernel(getattr(torch_fp8, spec.name), device="cuda", spec=spec)

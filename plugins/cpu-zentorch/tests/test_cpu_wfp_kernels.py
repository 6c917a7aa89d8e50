"""What the conformance kit does not ask the kernels for small floats and codebooks."""

from __future__ import annotations

from typing import Any

import pytest
import qcore
import torch
from cpu_oracle import assert_close, pack
from qcore.facts.quant_key import (
    GroupShape,
    QuantKey,
    ScaleDesc,
    kFp8Dynamic128Sym,
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kFp8StaticTensorSym,
    kInt8DynamicTokenSym,
    kMxfp6Dynamic,
    kMxfp8Dynamic,
    kNvfp4DynamicToken,
)
from qcore.kernels import process_weights
from qcore.layers import (
    CodebookLinearLayerConfig,
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.reference.linear import reference_linear
from qcore.testing import make_layer, random_tensors
from qcore_cpu.wfp_blocks import CPUMxFp4LinearKernel, CPUMxfp8LinearKernel, CPUNvFp4LinearKernel
from qcore_cpu.wfp_codebook import CPUCodebookLinearKernel
from qcore_cpu.wfp_fp8 import CPUFp8BlockScaledMMLinearKernel, CPUFP8ScaledMMLinearKernel

F32, BF16, E4M3 = torch.float32, torch.bfloat16, torch.float8_e4m3fn


def _fp8(activations: QuantKey | None = None, **changes: Any) -> FP8ScaledMMLinearLayerConfig:
    fields = {"weight_shape": (40, 96), "input_dtype": F32, "out_dtype": F32, **changes}
    return FP8ScaledMMLinearLayerConfig(kFp8StaticChannelSym, activations, **fields)


def _block(activations: QuantKey | None = None) -> Fp8BlockScaledMMLinearLayerConfig:
    return Fp8BlockScaledMMLinearLayerConfig(
        kFp8Static128BlockSym, activations, (40, 300), F32, F32
    )


def _ready(kernel: Any, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    layer = make_layer(kernel.config, dict(tensors))
    process_weights(kernel, layer)
    return layer


def test_they_are_chosen() -> None:
    for kernel, config in (
        (CPUFP8ScaledMMLinearKernel, _fp8(kFp8DynamicTokenSym)),
        (CPUFp8BlockScaledMMLinearKernel, _block(kFp8Dynamic128Sym)),
        (CPUMxfp8LinearKernel, Mxfp8LinearLayerConfig((16, 64))),
        (CPUMxFp4LinearKernel, MxFp4LinearLayerConfig((16, 64))),
        (CPUNvFp4LinearKernel, NvFp4LinearLayerConfig((16, 64))),
        (CPUCodebookLinearKernel, CodebookLinearLayerConfig((16, 64), 4, 64)),
    ):
        assert qcore.select(config, "cpu").kernel_class is kernel


def test_refusals() -> None:
    static_groups = QuantKey(E4M3, ScaleDesc(F32, True, GroupShape(1, 128)))
    for kernel, config, words in (
        (CPUFP8ScaledMMLinearKernel, _fp8(kFp8Dynamic128Sym), "in groups of 128; fp8_block"),
        (CPUFP8ScaledMMLinearKernel, _fp8(static_groups), "static 1x128 are not implemented"),
        (CPUMxFp4LinearKernel, MxFp4LinearLayerConfig(), "shape is not known"),
        (CPUMxFp4LinearKernel, MxFp4LinearLayerConfig((16, 64), kMxfp6Dynamic), "not implemented"),
        (
            CPUMxFp4LinearKernel,
            MxFp4LinearLayerConfig((16, 64), kFp8Dynamic128Sym),
            "in groups of 128 with 4-bit weights",
        ),
        (
            CPUNvFp4LinearKernel,
            NvFp4LinearLayerConfig((16, 64), kFp8StaticTensorSym),
            "no tensor for",
        ),
        (
            CPUMxfp8LinearKernel,
            Mxfp8LinearLayerConfig((16, 64), kInt8DynamicTokenSym),
            "not implemented",
        ),
    ):
        able, reason = kernel.can_implement(config)  # type: ignore[arg-type]
        assert not able
        assert words in str(reason)


def test_weights_that_are_nan() -> None:
    """Their outputs are NaN, whatever the input, and no others."""
    config = _fp8()
    tensors = random_tensors(config)
    codes = tensors["weight"].t().contiguous().view(torch.uint8)
    codes[7, 11], codes[39, 95] = 0x7F, 0xFF
    tensors["weight"] = codes.view(E4M3).t()
    kernel = CPUFP8ScaledMMLinearKernel(config)
    layer = _ready(kernel, tensors)
    for M in (1, 20):
        x = torch.randn(M, 96)
        x[:, 11] = 0
        out = kernel.apply_weights(layer, x)
        assert torch.equal(out.isnan(), reference_linear(config, tensors, x).isnan())
        assert out.isnan().any(0).nonzero().flatten().tolist() == [7, 39]


@pytest.mark.parametrize("activations", [kFp8DynamicTokenSym, kFp8StaticTensorSym])
def test_input_that_is_fp8_already(activations: QuantKey) -> None:
    config = _fp8(activations)
    tensors = random_tensors(config) | {"input_scale": torch.tensor([0.03])}
    kernel = CPUFP8ScaledMMLinearKernel(config)
    layer = _ready(kernel, tensors)
    scale = torch.tensor([0.03]) if activations.scale.static else None
    x, bias = torch.randn(5, 96).to(E4M3), torch.randn(40)
    expected = (x.double() * (0.03 if scale is not None else 1.0)).float()
    out = kernel.apply_weights(layer, x, bias)
    weight = tensors["weight"].t().double() * tensors["weight_scale"].reshape(-1, 1).double()
    assert_close(out, expected, weight, bias)


@pytest.mark.parametrize("activations", [None, kFp8Dynamic128Sym, kFp8StaticTensorSym])
def test_block_product_of_quantized_activations(activations: QuantKey | None) -> None:
    """`apply_block_scaled_mm` is what its base class says, on packed weights."""
    config = _block(activations)
    tensors = random_tensors(config)
    kernel = CPUFp8BlockScaledMMLinearKernel(config)
    layer = _ready(kernel, tensors)
    A = torch.randn(6, 300)
    scale = torch.rand(6, 3) + 0.5
    wide = scale.repeat_interleave(128, 1)[:, :300]
    if activations is None:
        scale = wide = None  # type: ignore[assignment]
    elif activations.scale.static:
        scale = torch.tensor([[0.25]])
        wide = scale
    codes = A if activations is None else A.to(E4M3)
    out = kernel.apply_block_scaled_mm(codes, layer.weight, scale, layer.weight_scale_inv)
    x = codes.float() if wide is None else codes.float() * wide
    blocks = tensors["weight_scale_inv"].double()
    spread = blocks.repeat_interleave(128, 0)[:40].repeat_interleave(128, 1)[:, :300]
    assert_close(out, x, tensors["weight"].double() * spread)


def test_names_of_the_layer_s_own() -> None:
    config = _fp8(kFp8StaticTensorSym)
    tensors = random_tensors(config)
    layer = torch.nn.Module()
    for mine, name in (("w", "weight"), ("s", "weight_scale"), ("i", "input_scale")):
        setattr(layer, mine, torch.nn.Parameter(tensors[name], requires_grad=False))
    kernel = CPUFP8ScaledMMLinearKernel(config, ["w", "s", "i", "ub"])
    process_weights(kernel, layer)
    x = torch.randn(3, 96)
    expected = reference_linear(config, tensors, x)
    torch.testing.assert_close(kernel.apply_weights(layer, x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("counts", [False, True])
def test_codebooks(isa: str, bits: int, offset: bool, counts: bool) -> None:
    for N, K, size in ((37, 96, 32), (5, 31, -1), (16, 100, 7)):
        config = CodebookLinearLayerConfig((N, K), bits, size, offset, F32)
        codes = torch.randint(0, 1 << bits, (N, K))
        table = torch.arange(1 << bits).float() if counts else torch.randn(1 << bits)
        G = config.num_groups
        scale, shift = torch.rand(N, G) * 0.1, torch.randn(N, G) * (1 << bits) / 20
        tensors = {
            "weight_packed": pack(codes, bits),
            "weight_codebook": table,
            "weight_scale": scale,
        }
        group = torch.arange(K) // (K if size == -1 else size)
        weight = table.double()[codes] * scale.double()[:, group]
        if offset:
            tensors["weight_offset"] = shift
            weight = weight + shift.double()[:, group]
        kernel = CPUCodebookLinearKernel(config)
        layer = _ready(kernel, tensors)
        for M in (1, 11):
            x = torch.randn(M, K)
            # A table that counts is summed up apart from its offsets.
            parts = (table.double()[codes] + 128) * scale.double()[:, group] + shift.abs()[:, group]
            out, allowed = kernel.apply_weights(layer, x).double(), x.double().abs() @ parts.t()
            assert bool(((out - x.double() @ weight.t()).abs() <= 1e-6 * allowed).all())


def test_bits_of_a_packed_weight() -> None:
    """Nothing of the original stays beside the packed weight."""
    shape = (64, 512)
    for kernel_class, config, bits in (
        (CPUMxFp4LinearKernel, MxFp4LinearLayerConfig(shape), 4.25),
        (CPUNvFp4LinearKernel, NvFp4LinearLayerConfig(shape), 4.5),
        (CPUMxfp8LinearKernel, Mxfp8LinearLayerConfig(shape, kMxfp8Dynamic), 8.25),
        (CPUNvFp4LinearKernel, NvFp4LinearLayerConfig(shape, kNvfp4DynamicToken), 4.5),
        (CPUFP8ScaledMMLinearKernel, _fp8(kFp8DynamicTensorSym, weight_shape=shape), 8.0),
    ):
        kernel = kernel_class(config)  # type: ignore[arg-type]
        layer = _ready(kernel, random_tensors(config))
        big = [p for p in layer.parameters() if p.numel() > 512]
        found = sum(p.numel() * p.element_size() * 8 for p in big) / (shape[0] * shape[1])
        assert abs(found - bits) < 0.01, kernel_class.__name__

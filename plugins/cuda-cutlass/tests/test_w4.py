"""Without a GPU: schemas, fakes, packing, what the kernel class answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from qcore.facts.scalar_type import scalar_types
from qcore.kernels.loading import process_weights
from qcore.layers import MPLinearLayerConfig
from qcore.testing import random_tensors
from qcore.testing.snapshot import layer_tensors
from qcore.testing.tensors import load_tensors, make_layer
from qcore_cuda import ops
from qcore_cuda.kernels.exllama import ExllamaLinearKernel
from qcore_cuda.kernels.gptq_packing import SHUFFLED, in_lanes, pack_along_k, pack_along_n
from w4_oracle import write_bits

pytestmark = pytest.mark.usefixtures("compiled_library")


def _meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


SCHEMAS = {
    "awq_dequantize": "(Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, "
    "SymInt split_k_iters, int thx, int thy) -> Tensor",
    "awq_gemm": "(Tensor _in_feats, Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, "
    "SymInt split_k_iters) -> Tensor",
    "gptq_shuffle": "(Tensor(a!) q_weight, Tensor q_perm, int bit) -> ()",
    "gptq_gemm": "(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, "
    "Tensor? b_g_idx, bool use_exllama, bool use_v2_format, int bit) -> Tensor",
    "gptq_marlin_repack": "(Tensor b_q_weight, SymInt size_k, SymInt size_n, int num_bits, "
    "bool is_a_8bit=False) -> Tensor",
    "marlin_gemm": "(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none, "
    "Tensor b_scales, Tensor? a_scales, Tensor? global_scale, Tensor? b_zeros_or_none, "
    "Tensor workspace, int b_type_id, SymInt size_m, SymInt size_n, SymInt size_k, "
    "bool use_atomic_add=False, bool use_fp32_reduce=True, bool is_zp_float=False) -> Tensor",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    op = getattr(torch.ops.qcore_cuda, name).default
    assert str(op._schema) == f"qcore_cuda::{name}{SCHEMAS[name]}"


def test_fakes() -> None:
    x = _meta(2, 3, 96, dtype=torch.bfloat16)
    scales = _meta(3, 64, dtype=torch.float16)
    for bits in (2, 3, 4, 8):
        words, zeros = _meta(3 * bits, 64), _meta(3, 2 * bits)
        out = ops.gptq_gemm(x, words, zeros, scales, None, False, False, bits)
        assert out.shape == (2, 3, 64)
        assert out.dtype == torch.bfloat16
        made = ops.gptq_dequantize(words, zeros, scales, bit=bits)
        assert made.shape == (96, 64)
        assert made.dtype == torch.float16
    out = ops.awq_gemm(x, _meta(96, 8), scales, _meta(3, 8), 8)
    assert out.shape == (2, 3, 64)
    assert ops.awq_dequantize(_meta(96, 8), scales, _meta(3, 8)).shape == (96, 64)
    packed = ops.gptq_marlin_repack(_meta(12, 64), 96, 64, 4)
    assert packed.shape == (6, 128)
    assert ops.awq_marlin_repack(_meta(96, 16), 96, 64, 8).shape == (6, 256)
    a = _meta(5, 96, dtype=torch.bfloat16)
    out = ops.marlin_gemm(
        a,
        None,
        packed,
        None,
        scales,
        None,
        None,
        None,
        _meta(1),
        scalar_types.uint4b8.id,
        5,
        64,
        96,
    )
    assert out.shape == (5, 64)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (96, 64))
    given = torch.from_numpy(codes).to(torch.uint8)
    order = SHUFFLED.get(bits, range(1))
    shuffled = codes.reshape(-1, len(order), 64)[:, list(order)].reshape(96, 64)
    assert torch.equal(pack_along_k(given, bits), write_bits(shuffled, bits, 0))
    assert torch.equal(pack_along_n(given, bits), write_bits(codes, bits, 1))


def _config(**changes: Any) -> MPLinearLayerConfig:
    fields: dict[str, Any] = {
        "full_weight_shape": (96, 40),
        "partition_weight_shape": (96, 40),
        "weight_type": scalar_types.uint4b8,
        "act_type": torch.bfloat16,
        "group_size": 32,
        "zero_points": False,
    }
    return MPLinearLayerConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"act_type": torch.float16, "group_size": -1, "out_type": torch.float32}, None),
        ({"weight_type": scalar_types.int8}, None),
        ({"weight_type": scalar_types.uint3, "zero_points": True, "has_g_idx": True}, None),
        ({"act_type": torch.float32}, "float32 activations"),
        ({"act_type": torch.int8, "out_type": torch.bfloat16}, "int8 activations"),
        ({"weight_type": scalar_types.uint5b16}, "5 bits"),
    ],
)
def test_can_implement(changes: dict[str, Any], reason: str | None) -> None:
    able, why = ExllamaLinearKernel.can_implement(_config(**changes))
    assert able is (reason is None)
    assert reason is None or (why is not None and reason in why)


def _packed(config: MPLinearLayerConfig, g_idx: list[int] | None) -> dict[str, torch.Tensor]:
    tensors = random_tensors(config)
    if g_idx is not None:
        tensors["weight_g_idx"] = torch.tensor(g_idx, dtype=torch.int32)
    return dict(ExllamaLinearKernel(config).pack_weights(tensors))


def test_words_of_lanes() -> None:
    """A word has what its lane multiplies, by the fragments of mma.m16n8k16 and of wgmma."""
    K, N = 128, 64
    codes = torch.randint(0, 16, (K, N), dtype=torch.uint8)
    words = in_lanes(codes)
    assert words.shape == (K // 64, N // 32, 256)
    assert words.dtype == torch.int32
    of_words = words.numpy().view(np.uint32)
    for k, n in np.ndindex(K, N):
        half, lane_of_columns, column = k % 64 // 32, n % 32 // 4, n % 4
        step, within = k % 32 // 16, k % 16
        lane_of_inputs, pair, second = within % 8 // 2, within // 8, within % 2
        word = 128 * half + 4 * (4 * lane_of_columns + lane_of_inputs) + column
        bit = 4 * (2 * step + pair) + 16 * second
        assert of_words[k // 64, n // 32, word] >> bit & 15 == codes[k, n]


def test_fakes_of_words_of_lanes() -> None:
    x, scales = (_meta(*shape, dtype=torch.bfloat16) for shape in ((5, 128), (1, 96)))
    words = _meta(2, 3, 256)
    for op in (torch.ops.qcore_cuda.wna16_sm90, torch.ops.qcore_cuda.wna16_mid_m):
        assert op(x, words, scales, None, 4, 8, 128).shape == (5, 96)
    rest = (None, None, None, None, 4, 8, 128, 128, 77)
    assert torch.ops.qcore_cuda.wna16_linear(x, words, scales, *rest).shape == (5, 77)


def test_activation_order_is_sorted_away() -> None:
    shape = (80, 40)
    config = _config(full_weight_shape=shape, partition_weight_shape=shape, has_g_idx=True)
    mixed = [k % 2 if k < 64 else 2 for k in range(80)]
    packed = _packed(config, mixed)
    assert packed["weight_groups"].numel() == 0
    assert packed["weight_packed"].shape == (12, 64)
    assert packed["weight_perm"].tolist() == [
        *range(0, 64, 2),
        *range(1, 64, 2),
        *range(64, 80),
        *[-1] * 16,
    ]
    # Groups of other sizes stay, each input with its own.
    packed = _packed(config, [0] * 40 + [1] * 40)
    assert packed["weight_perm"].numel() == 0
    assert packed["weight_groups"].tolist() == [0] * 40 + [1] * 40 + [-1] * 16


def test_padding_is_zero() -> None:
    config = _config(
        full_weight_shape=(77, 19),
        partition_weight_shape=(77, 19),
        weight_type=scalar_types.uint3b4,
    )
    packed = _packed(config, None)
    assert packed["weight_packed"].shape == (9, 32)
    assert packed["weight_scale"].shape == (3, 32)
    assert not packed["weight_packed"][:, 19:].any()
    assert not packed["weight_scale"][:, 19:].any()


@pytest.mark.parametrize(
    ("largest", "words"), [(2.0**26, False), (2.0**27, True), (-(2.0**40), True)]
)
def test_large_scales_have_zero_points_as_words(largest: float, words: bool) -> None:
    """Those kernels take scales of any size."""
    config = _config(full_weight_shape=(64, 40), partition_weight_shape=(64, 40))
    tensors = random_tensors(config)
    tensors["weight_scale"][3, 1] = largest
    packed = ExllamaLinearKernel(config).pack_weights(tensors)
    zeros = packed["weight_zeros"]
    assert zeros.tolist() == ([[-0x77777778] * 5 + [0] * 3] * 2 if words else [])


@pytest.mark.parametrize("zero_points", [False, True])
def test_a_layer_loaded_anew_is_packed_like_a_fresh_one(zero_points: bool) -> None:
    """Nothing of what the first packing left is taken for a tensor of the layer."""
    weight_type = scalar_types.uint4 if zero_points else scalar_types.uint4b8
    config = _config(weight_type=weight_type, zero_points=zero_points)
    first, second = (random_tensors(config, seed) for seed in (0, 1))
    first["weight_scale"][0] = 2.0**30
    used, fresh = make_layer(config, first), make_layer(config, second)
    process_weights(ExllamaLinearKernel(config), used)
    load_tensors(used, config, second)
    for layer in (used, fresh):
        process_weights(ExllamaLinearKernel(config), layer)
    expected, found = layer_tensors(fresh), layer_tensors(used)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

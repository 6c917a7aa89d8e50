"""The oracle itself, against numpy written from the formats' definitions."""

import dataclasses

import numpy as np
import pytest
import torch
from qcore.errors import KernelRefusedError
from qcore.facts import quant_key as qk
from qcore.facts.quant_key import GroupShape, QuantKey, ScaleDesc
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import process_weights
from qcore.layers import (
    CodebookLinearLayerConfig,
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    Int8ScaledMMLinearLayerConfig,
    MPLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.reference import kernels as reference
from qcore.reference.linear import reference_linear

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def randn(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def pack(codes, bits, axis):
    """Python integers, slowly: nothing shared with qcore's packing."""
    codes = np.moveaxis(codes, axis, -1)
    factor = 32 // bits
    words = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // factor)), dtype=np.uint32)
    for index in np.ndindex(*codes.shape):
        word = index[-1] // factor
        words[(*index[:-1], word)] |= np.uint32(int(codes[index]) << (bits * (index[-1] % factor)))
    return torch.from_numpy(np.moveaxis(words.view(np.int32), -1, axis).copy())


def mp_case(rng, bits, group_size, zero_points, g_idx, K, N):
    groups = 1 if group_size == -1 else -(-K // group_size)
    codes = rng.integers(0, 1 << bits, (N, K))
    zeros = rng.integers(0, 1 << bits, (N, groups))
    scale = rng.uniform(0.5, 1.5, (N, groups)).astype(np.float32)
    index = np.zeros(K, int) if group_size == -1 else np.arange(K) // group_size
    if g_idx:
        index = rng.permutation(index)
    kind = getattr(scalar_types, f"uint{bits}" if zero_points else f"uint{bits}b{1 << (bits - 1)}")
    config = MPLinearLayerConfig(
        (K, N), (K, N), kind, torch.float32, group_size, zero_points, has_g_idx=g_idx
    )
    tensors = {"weight_packed": pack(codes, bits, 1), "weight_scale": torch.from_numpy(scale)}
    if zero_points:
        tensors["weight_zero_point"] = pack(zeros, bits, 0)
    if g_idx:
        tensors["weight_g_idx"] = torch.from_numpy(index.astype(np.int32))
    offset = zeros[:, index] if zero_points else 1 << (bits - 1)
    return config, tensors, (codes - offset) * scale.astype(float)[:, index]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 16, 25, 1000])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("g_idx", [False, True])
def test_mixed_precision(bits, group_size, zero_points, g_idx):
    rng = np.random.default_rng(bits)
    config, tensors, weight = mp_case(rng, bits, group_size, zero_points, g_idx, K=50, N=13)
    x, bias = randn(rng, 3, 50), randn(rng, 13)
    out = reference_linear(config, tensors, x, bias, compute_dtype=torch.float64)
    expected = x.double().numpy() @ weight.T + bias.double().numpy()
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_signed_codes():
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (6, 20)).astype(np.int8)
    config = MPLinearLayerConfig((20, 6), (20, 6), scalar_types.int8, torch.float32, 10, False)
    scale = rng.uniform(0.5, 1.5, (6, 2)).astype(np.float32)
    tensors = {"weight_packed": torch.from_numpy(codes), "weight_scale": torch.from_numpy(scale)}
    x = randn(rng, 2, 20)
    out = reference_linear(config, tensors, x, compute_dtype=torch.float64)
    expected = x.double().numpy() @ (codes * scale.astype(float).repeat(10, axis=1)).T
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("channel", [False, True])
def test_int8(static, symmetric, channel):
    rng = np.random.default_rng(7)
    N, K = 9, 40
    weight = rng.integers(-128, 128, (N, K)).astype(np.int8)
    weight_scale = rng.uniform(0.01, 0.02, (N, 1) if channel else (1,)).astype(np.float32)
    x = rng.standard_normal((4, K)).astype(np.float32) + np.float32(0.5)
    config = Int8ScaledMMLinearLayerConfig(static, channel, symmetric, weight_shape=(N, K))
    tensors = {"weight": torch.from_numpy(weight), "weight_scale": torch.from_numpy(weight_scale)}
    if static:
        scale, azp = np.float32(0.02), np.int32(0 if symmetric else -30)
        tensors["input_scale"] = torch.tensor([scale])
        if not symmetric:
            tensors["input_zero_point"] = torch.tensor([azp], dtype=torch.int32)
    elif symmetric:
        scale, azp = np.abs(x).max(1, keepdims=True) / np.float32(127), np.int32(0)
    else:
        low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
        scale = (high - low) / np.float32(255)
        azp = -128 - np.rint(low / scale)
    codes = np.clip(np.rint(x / scale) + azp, -127 if symmetric else -128, 127)
    expected = ((codes - azp) @ weight.astype(float).T) * scale * weight_scale.reshape(1, -1)
    out = reference_linear(config, tensors, torch.from_numpy(x))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5)


def e4m3(rng, *shape):
    return (randn(rng, *shape) * 100).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    "key",
    [None, qk.kFp8StaticTensorSym, qk.kFp8DynamicTensorSym, qk.kFp8DynamicTokenSym],
    ids=["weight-only", "static", "tensor", "token"],
)
@pytest.mark.parametrize("weights", [qk.kFp8StaticTensorSym, qk.kFp8StaticChannelSym], ids=str)
def test_fp8(weights, key):
    rng = np.random.default_rng(3)
    N, K = 11, 48
    weight, x, bias = e4m3(rng, N, K), randn(rng, 3, K), randn(rng, N)
    channel = not weights.scale.group_shape.is_per_tensor()
    scale = torch.from_numpy(rng.uniform(0.01, 0.02, (N, 1) if channel else (1,))).float()
    config = FP8ScaledMMLinearLayerConfig(weights, key, (N, K), torch.float32, torch.float32)
    tensors = {"weight": weight.t(), "weight_scale": scale}
    rounded = x.double()
    if key is not None:
        if key.scale.static:
            step = torch.tensor([0.01])
            tensors["input_scale"] = step
        else:
            dims = (1,) if key.scale.group_shape.is_per_token() else (0, 1)
            step = x.abs().amax(dims, keepdim=True) / 448
        rounded = (x / step).clamp(-448, 448).to(torch.float8_e4m3fn).double() * step.double()
    expected = rounded @ (weight.double() * scale.double().reshape(-1, 1)).t() + bias
    out = reference_linear(config, tensors, x, bias)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("N", "K", "bn", "bk"), [(8, 64, 4, 32), (10, 70, 4, 32), (5, 40, 128, 128)]
)
@pytest.mark.parametrize("activations", ["group", "static", "none"])
def test_fp8_blocks(N, K, bn, bk, activations):
    rng = np.random.default_rng(5)
    weight, x = e4m3(rng, N, K), randn(rng, 3, K)
    scale = torch.from_numpy(rng.uniform(0.01, 0.02, (-(-N // bn), -(-K // bk)))).float()
    key = {
        "group": QuantKey(torch.float8_e4m3fn, ScaleDesc(torch.float32, False, GroupShape(1, bk))),
        "static": qk.kFp8StaticTensorSym,
        "none": None,
    }[activations]
    weights = QuantKey(torch.float8_e4m3fn, ScaleDesc(torch.float32, True, GroupShape(bn, bk)))
    config = Fp8BlockScaledMMLinearLayerConfig(weights, key, (N, K), torch.float32, torch.float32)
    dense = weight.double()
    for n in range(N):
        for k in range(K):
            dense[n, k] *= float(scale[n // bn, k // bk])
    tensors = {"weight": weight, "weight_scale_inv": scale}
    rounded = x.double()
    if activations == "group":
        for start in range(0, K, bk):
            part = x[:, start : start + bk]
            step = part.abs().amax(1, keepdim=True) / 448
            rounded[:, start : start + bk] = (part / step).to(torch.float8_e4m3fn).double() * step
    elif activations == "static":
        step = torch.tensor([0.01])
        tensors["input_scale"] = step
        rounded = (x / step).clamp(-448, 448).to(torch.float8_e4m3fn).double() * step.double()
    expected = rounded @ dense.t()
    out = reference_linear(config, tensors, x)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-3)
    layer = torch.nn.Module()
    for name, tensor in tensors.items():
        layer.register_buffer(name, tensor)
    kernel = reference.ReferenceFp8BlockScaledMMLinearKernel(config)
    process_weights(kernel, layer)
    torch.testing.assert_close(kernel.apply_weights(layer, x), out, rtol=1e-4, atol=1e-3)


def nvfp4_tensors(rng, N, K):
    codes = rng.integers(0, 16, (N, K))
    packed = (codes[:, ::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    return codes, torch.from_numpy(packed)


def test_nvfp4_weight_only():
    rng = np.random.default_rng(1)
    N, K = 6, 64
    codes, packed = nvfp4_tensors(rng, N, K)
    scale = (randn(rng, N, K // 16).abs() * 50).to(torch.float8_e4m3fn)
    tensors = {
        "weight": packed,
        "weight_scale": scale,
        "weight_global_scale": torch.tensor(0.003),
    }
    config = NvFp4LinearLayerConfig((N, K), None, torch.float32)
    weight = E2M1[codes] * scale.double().numpy().repeat(16, axis=1) * np.float32(0.003)
    x = randn(rng, 4, K)
    out = reference_linear(config, tensors, x, compute_dtype=torch.float64)
    np.testing.assert_allclose(out.numpy(), x.double().numpy() @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("global_scale", [None, 0.002])
def test_nvfp4_activations_lie_on_the_grid(global_scale):
    rng = np.random.default_rng(2)
    N, K = 8, 32
    config = NvFp4LinearLayerConfig((N, K), input_dtype=torch.float32)
    _, packed = nvfp4_tensors(rng, N, K)
    tensors = {
        "weight": packed,
        "weight_scale": torch.ones(N, K // 16).to(torch.float8_e4m3fn),
        "weight_global_scale": torch.tensor(1.0),
        "input_global_scale": None if global_scale is None else torch.tensor(global_scale),
    }
    x = randn(rng, 2, K)
    out = reference_linear(config, tensors, x, compute_dtype=torch.float64)
    exact = reference_linear(
        NvFp4LinearLayerConfig((N, K), None), tensors, x, compute_dtype=torch.float64
    )
    error = (out - exact).norm() / exact.norm()
    assert 0.005 < float(error) < 0.3


@pytest.mark.parametrize("key", [None, qk.kMxfp4Dynamic, qk.kMxfp8Dynamic], ids=str)
def test_mxfp4(key):
    rng = np.random.default_rng(4)
    N, K = 7, 96
    codes, packed = nvfp4_tensors(rng, N, K)
    exponents = rng.integers(120, 130, (N, K // 32)).astype(np.uint8)
    tensors = {"weight": packed, "weight_scale": torch.from_numpy(exponents)}
    weight = E2M1[codes] * 2.0 ** (exponents.astype(float) - 127).repeat(32, axis=1)
    x = randn(rng, 3, K)
    config = MxFp4LinearLayerConfig((N, K), key, torch.float32)
    out = reference_linear(config, tensors, x, compute_dtype=torch.float64).numpy()
    expected = x.double().numpy() @ weight.T
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    assert error < {None: 1e-6, qk.kMxfp4Dynamic: 0.3, qk.kMxfp8Dynamic: 0.05}[key]
    assert key is None or error > 1e-4


def test_mxfp8():
    rng = np.random.default_rng(6)
    N, K = 5, 64
    weight = e4m3(rng, N, K)
    exponents = rng.integers(120, 130, (N, K // 32)).astype(np.uint8)
    tensors = {"weight": weight, "weight_scale": torch.from_numpy(exponents)}
    dense = weight.double().numpy() * 2.0 ** (exponents.astype(float) - 127).repeat(32, axis=1)
    x = randn(rng, 3, K)
    config = Mxfp8LinearLayerConfig((N, K), None, torch.float32)
    out = reference_linear(config, tensors, x, compute_dtype=torch.float64).numpy()
    np.testing.assert_allclose(out, x.double().numpy() @ dense.T, rtol=1e-5, atol=1e-3)
    quantized = Mxfp8LinearLayerConfig((N, K), input_dtype=torch.float32)
    rounded = reference_linear(quantized, tensors, x, compute_dtype=torch.float64).numpy()
    assert 1e-4 < np.linalg.norm(rounded - out) / np.linalg.norm(out) < 0.05


@pytest.mark.parametrize("shape", [(0, 20), (20,), (2, 3, 20)])
def test_shapes_of_the_input(shape):
    config, tensors, _ = mp_case(np.random.default_rng(0), 4, 10, False, False, K=20, N=6)
    x = torch.randn(shape)
    out = reference_linear(config, tensors, x, torch.randn(6))
    assert out.shape == (*shape[:-1], 6)
    int8 = Int8ScaledMMLinearLayerConfig(False, True, True)
    tensors = {
        "weight": torch.ones(6, 20, dtype=torch.int8),
        "weight_scale": torch.ones(6, 1),
    }
    assert reference_linear(int8, tensors, x).shape == (*shape[:-1], 6)


def test_unknown_activations_are_refused_by_name():
    config = MxFp4LinearLayerConfig((8, 64), qk.kMxfp6E3M2Dynamic)
    able, reason = reference.EmulationMxFp4LinearKernel.can_implement(config)
    assert not able
    assert "e3m2" in reason
    with pytest.raises(KernelRefusedError, match="EmulationMxFp4LinearKernel"):
        reference.EmulationMxFp4LinearKernel(config)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 20), (8, -1), (1, 500)])
def test_codebook(bits, group, offset):
    rng = np.random.default_rng(7)
    N, K = 5, 70
    groups = np.arange(K) // (K if group == -1 else group)
    G = groups.max() + 1
    codes = rng.integers(0, 2**bits, (N, K))
    book = rng.standard_normal(2**bits).astype(np.float32)
    tensors = {
        "weight_packed": pack(codes, bits, 1),
        "weight_codebook": torch.from_numpy(book),
        "weight_scale": randn(rng, N, G),
    }
    dense = book[codes].astype(float) * tensors["weight_scale"].double().numpy()[:, groups]
    if offset:
        tensors["weight_offset"] = randn(rng, N, G)
        dense = dense + tensors["weight_offset"].double().numpy()[:, groups]
    x = randn(rng, 3, K)
    config = CodebookLinearLayerConfig((N, K), bits, group, offset, torch.float32)
    assert set(tensors) == {n for n, s in config.params().items() if not s.optional}
    f64 = torch.float64
    out = reference_linear(config, tensors, x, compute_dtype=f64, out_dtype=f64).numpy()
    np.testing.assert_allclose(out, x.double().numpy() @ dense.T, rtol=1e-12, atol=1e-12)


def test_mixed_precision_with_int8_activations():
    rng = np.random.default_rng(0)
    config, tensors, weight = mp_case(rng, 4, 32, False, False, 96, 24)
    config = dataclasses.replace(config, act_type=torch.int8, out_type=torch.float32)
    x = randn(rng, 5, 96)
    scale = np.abs(x.numpy()).max(1, keepdims=True) / np.float32(127)
    rounded = np.round(x.numpy() / scale).astype(float) * scale
    got = reference_linear(config, tensors, x)
    assert np.allclose(got.numpy(), rounded @ weight.T, rtol=1e-5, atol=1e-4)

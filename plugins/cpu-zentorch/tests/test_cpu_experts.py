"""The op `experts`, against float64 written here, on each instruction set."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from qcore.facts.scalar_type import ScalarType
from qcore.kernels import process_weights
from qcore.layers import ExpertsLayerConfig, MoeMxfp4LayerConfig, MoeWNA16LayerConfig
from qcore.testing import make_layer, random_tensors
from qcore_cpu.moe import CPUMoeMxfp4Kernel, CPUMoeWNA16Kernel

GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _wna16(bits: int = 4, group: int = 32, **changes: Any) -> MoeWNA16LayerConfig:
    zeros = bool(changes.get("zero_points"))
    kind = ScalarType.uint(bits, 0 if zeros else 1 << (bits - 1))
    fields = {"act_type": torch.float32, "zero_points": False, **changes}
    return MoeWNA16LayerConfig(5, 64, 96, kind, group_size=group, **fields)


def _mxfp4(**changes: Any) -> MoeMxfp4LayerConfig:
    fields = {"activation": "swigluoai", "has_bias": True, "act_type": torch.float32, **changes}
    return MoeMxfp4LayerConfig(5, 64, 96, **fields)


CONFIGS = {
    "int4": _wna16(),
    "int2 zero points": _wna16(2, zero_points=True, activation="gelu"),
    "int8 g_idx": _wna16(8, has_g_idx=True, activation="gelu_tanh"),
    "int5 zero points": _wna16(5, zero_points=True),
    "int6 g_idx": _wna16(6, has_g_idx=True),
    "int3 one group, bias": _wna16(3, -1, has_bias=True, activation="swigluoai"),
    "mxfp4": _mxfp4(),
    "mxfp4 silu": _mxfp4(activation="silu", has_bias=False),
    "mxfp4 bfloat16": _mxfp4(act_type=torch.bfloat16),
}


def _fields(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Codes [..., count] of int32 words, lowest bits first."""
    shifts = torch.arange(0, 32 // bits) * bits
    codes = (words.long()[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].double()


def _matrices(config: ExpertsLayerConfig, t: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Every expert's matrix [E, N, K] in float64."""
    K, N = config.shape(name)
    if isinstance(config, MoeMxfp4LayerConfig):
        codes = t[f"{name}_weight"]
        halves = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
        values = torch.tensor([*GRID, *(-v for v in GRID)], dtype=torch.float64)[halves]
        exponents = t[f"{name}_scale"].double() - 127
        return values * torch.exp2(exponents).repeat_interleave(32, -1)
    assert isinstance(config, MoeWNA16LayerConfig)
    bits = config.weight_type.size_bits
    codes = _fields(t[f"{name}_packed"], bits, K)
    scale = t[f"{name}_scale"].double()
    size = K if config.group_size == -1 else config.group_size
    groups = (torch.arange(K) // size).expand(config.num_experts, K)
    groups = t[f"{name}_g_idx"].long() if config.has_g_idx else groups
    zero = torch.full_like(scale, 1 << (bits - 1))
    if config.zero_points:
        zero = _fields(t[f"{name}_zero_point"].transpose(1, 2), bits, N).transpose(1, 2)
    index = groups[:, None, :].expand(-1, N, -1)
    return (codes - zero.gather(2, index)) * scale.gather(2, index)


def _join(name: str, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if name == "swigluoai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)
    if name == "silu":
        return gate / (1 + torch.exp(-gate)) * up
    if name == "gelu":
        return gate * (1 + torch.erf(gate / math.sqrt(2))) / 2 * up
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return gate * (1 + torch.tanh(inner)) / 2 * up


def _expected(
    config: ExpertsLayerConfig,
    t: dict[str, torch.Tensor],
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    w13, w2 = (_matrices(config, t, name) for name in ("w13", "w2"))
    zero = torch.zeros(config.num_experts, 1, dtype=torch.float64)
    b13, b2 = (t.get(f"{name}_bias", zero).double() for name in ("w13", "w2"))
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for weight, e in zip(weights[token].double(), ids[token].tolist(), strict=True):
            if 0 <= e < config.num_experts:
                gate, up = (w13[e] @ x[token].double() + b13[e]).chunk(2)
                out[token] += weight * (w2[e] @ _join(config.activation, gate, up) + b2[e])
    return out


def _built(config: ExpertsLayerConfig) -> tuple[Any, torch.nn.Module, dict[str, torch.Tensor]]:
    kernel_class = (
        CPUMoeMxfp4Kernel if isinstance(config, MoeMxfp4LayerConfig) else CPUMoeWNA16Kernel
    )
    tensors = random_tensors(config)
    layer = make_layer(config, tensors)
    kernel: Any = kernel_class(config)  # type: ignore[arg-type]
    process_weights(kernel, layer)
    return kernel, layer, tensors


def _routing(T: int, J: int = 2, E: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(T, J), torch.rand(T, E).argsort(1)[:, :J].contiguous()


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", CONFIGS)
def test_results(isa: str, name: str) -> None:
    config = CONFIGS[name]
    kernel, layer, tensors = _built(config)
    for T in (1, 2, 9, 40):
        x = (3 * torch.randn(T, 64)).to(config.act_type)
        routing = _routing(T)
        out = kernel.apply(layer, x, *routing)
        assert out.dtype == config.act_type
        limit = torch.finfo(config.act_type).eps if config.act_type != torch.float32 else 2e-6
        assert _error(out, _expected(config, tensors, x, *routing)) < limit


@pytest.mark.parametrize("name", ["int4", "mxfp4", "mxfp4 bfloat16"])
def test_more_rows_than_a_wave_takes(isa: str, name: str) -> None:
    """Experts that get more rows than one panel, and one that gets a part of two waves."""
    config = CONFIGS[name]
    kernel, layer, tensors = _built(config)
    x = torch.randn(700, 64).to(config.act_type)
    weights, ids = _routing(700)
    ids[:600, 0] = 3  # some tokens then go to one expert twice
    whole = kernel.apply(layer, x, weights, ids)
    part = torch.arange(0, 700, 41)
    limit = torch.finfo(config.act_type).eps if config.act_type != torch.float32 else 2e-6
    expected = _expected(config, tensors, x[part], weights[part], ids[part])
    assert _error(whole[part], expected) < limit
    for rows in ([5], [699], list(range(100, 130))):
        assert torch.equal(kernel.apply(layer, x[rows], weights[rows], ids[rows]), whole[rows])
    torch.set_num_threads(1)
    assert torch.equal(kernel.apply(layer, x, weights, ids), whole)


def test_routing_of_other_forms() -> None:
    kernel, layer, tensors = _built(CONFIGS["mxfp4"])
    config = kernel.config
    x, (weights, ids) = torch.randn(6, 128)[:, ::2], _routing(6, 3)
    ids[1, 0], ids[2, 1], ids[3] = 5, -1, 99
    expected = _expected(config, tensors, x, weights, ids)
    assert not expected[3].any()
    for form in (ids, ids.int(), ids.t().contiguous().t()):
        assert _error(kernel.apply(layer, x, weights, form), expected) < 2e-6
    half = weights.to(torch.bfloat16)
    expected = _expected(config, tensors, x, half, ids)
    assert _error(kernel.apply(layer, x, half, ids), expected) < 2e-6
    empty = kernel.apply(layer, x[:0], weights[:0], ids[:0])
    assert empty.shape == (0, 64)


def test_extreme_scales() -> None:
    """The least and the largest power of two, and NaN, which e8m0 has as 255."""
    config = _mxfp4(activation="silu", has_bias=False)
    kernel = CPUMoeMxfp4Kernel(config)
    tensors = {name: t.clone() for name, t in random_tensors(config).items()}
    tensors["w13_scale"][0] = 0
    tensors["w2_scale"][:] = 127
    tensors["w2_scale"][1, 7, 2] = 255
    layer = make_layer(config, tensors)
    process_weights(kernel, layer)
    x, ids = torch.randn(2, 64), torch.tensor([[0], [1]])
    out = kernel.apply(layer, x * 2.0**66, torch.ones(2, 1), ids)
    expected = _expected(config, tensors, x * 2.0**66, torch.ones(2, 1), ids)
    assert _error(out[:1], expected[:1]) < 2e-6
    out = kernel.apply(layer, x, torch.ones(2, 1), ids)
    assert out[1].isnan().nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic: bool) -> None:
    kernel, layer, _ = _built(CONFIGS["mxfp4 bfloat16"])

    def run(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        weights, ids = torch.topk(scores, 2)
        return kernel.apply(layer, torch.relu(x), weights.softmax(-1), ids) + x  # type: ignore[no-any-return]

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (1, 5, 20):
        x, scores = torch.randn(T, 64).to(torch.bfloat16), torch.rand(T, 5)
        assert torch.equal(compiled(x, scores), run(x, scores))


def _arguments(name: str = "int4") -> list[Any]:
    _, layer, _ = _built(CONFIGS[name])
    parts = ("packed", "scale", "zero", "perm", "chunks", "bias")
    weights = [getattr(layer, f"{p}_{part}", None) for p in ("w13", "w2") for part in parts]
    codes = "e2m1" if name == "mxfp4" else "uint4"
    return [torch.randn(3, 64), *_routing(3), *weights, 96, codes, "silu"]


def test_opcheck() -> None:
    for name in ("int4", "mxfp4"):
        torch.library.opcheck(torch.ops.qcore_cpu.experts.default, tuple(_arguments(name)))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, torch.randn(3, 65), r"w13_packed has 8 words of 8 codes; without perm, 65 inputs"),
        (0, torch.randn(64), r"x has shape \[64\]; it must be \[tokens, hidden_size\]"),
        (0, torch.zeros(3, 64, dtype=torch.int32), "x is Int; allowed: Float"),
        (1, torch.rand(3, 4), r"topk_weights has shape \[3, 4\]; it must be \[3, 2\]"),
        (2, torch.zeros(3, 2, dtype=torch.int32), "topk_ids is Int; it must be Long"),
        (4, torch.rand(5, 12, 1, 16), r"w13_chunks of expert . does not divide .* the 1 groups"),
        (4, torch.rand(5, 11, 2, 16), r"w13_scale has shape \[5, 11, 2, 16\]; it must be \[5, 12"),
        (5, torch.zeros(1).byte(), r"w13_zero has shape \[1\]"),
        (7, torch.zeros(5, 2, 3, dtype=torch.int32), "it must come from wna16_pack"),
        (8, torch.zeros(5, 96), r"w13_bias has shape \[5, 96\]; it must be \[5, 192\]"),
        (9, torch.zeros(5, 4, 16, dtype=torch.int32), r"w2_packed has shape \[5, 4, 16\]"),
        (15, 0, "intermediate_size is 0"),
        (16, "uint3", "codes is 'uint3'; allowed: uint2, uint4, uint5, uint6, uint8, e2m1"),
        (17, "relu", "activation is 'relu'; allowed: silu, gelu, gelu_tanh, swigluoai"),
    ],
)
def test_what_cannot_be(at: int, value: object, words: str) -> None:
    arguments = _arguments()
    arguments[at] = value
    with pytest.raises(RuntimeError, match=words):
        torch.ops.qcore_cpu.experts(*arguments)


def test_a_permutation_out_of_bounds() -> None:
    arguments = _arguments()
    perm = torch.arange(64, dtype=torch.int32).repeat(5, 1)
    arguments[6] = perm
    torch.ops.qcore_cpu.experts(*arguments)
    arguments[6] = perm + 1
    with pytest.raises(RuntimeError, match=r"w13_perm of expert . has the input 64; there are 64"):
        torch.ops.qcore_cpu.experts(*arguments)


def test_zero_points_beside_e2m1() -> None:
    arguments = _arguments("mxfp4")
    arguments[5] = torch.zeros(5, 12, 2, 16, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="w13_zero is given; codes of e2m1 have none"):
        torch.ops.qcore_cpu.experts(*arguments)

"""Each integer format's packing, written here by Python's integers, gives back what was packed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qcore.numerics.dequantize import dequantize_weight
from qcore.quantization.methods import read_quantization_config

LINEAR = torch.nn.Linear(1, 1, device="meta")


def signed(word):
    word &= 0xFFFFFFFF
    return word - (word >> 31 << 32)


def words(rows, bits, gaps=False, order=None):
    """int32 [rows, words]: each row of codes as one integer, or so many codes as fill a word."""
    made = []
    for row in rows.tolist():
        if gaps or order:
            size = 32 // bits
            parts = [row[at : at + size] for at in range(0, len(row), size)]
            parts = [[part[i] for i in order] for part in parts] if order else parts
        else:
            size, parts = len(row), [row]
        line = []
        for part in parts:
            whole = sum(code << (bits * i) for i, code in enumerate(part))
            count = 1 if gaps or order else -(-size * bits // 32)
            line += [signed(whole >> (32 * i)) for i in range(count)]
        made.append(line)
    return torch.tensor(made, dtype=torch.int32)


def gptq(v2):
    def write(bits, codes, zeros, scale):
        stored = zeros.t()
        if not v2 and bits == 3:
            stored = (stored - 1) & 7
        qzeros = words(stored, bits)
        if not v2 and bits != 3:
            ones = sum(1 << (bits * i) for i in range(32 // bits))
            qzeros = torch.tensor([[signed(w - ones) for w in row] for row in qzeros.tolist()])
        return {
            "qweight": words(codes, bits).t().contiguous(),
            "qzeros": qzeros.to(torch.int32),
            "scales": scale.t().contiguous(),
        }

    return write


def gptq_config(bits, group, form):
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": False,
        "desc_act": False,
        "checkpoint_format": form,
    }


def awq(bits, codes, zeros, scale):
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(codes.t(), 4, order=order),
        "qzeros": words(zeros.t(), 4, order=order),
        "scales": scale.t().contiguous(),
    }


def compressed(gaps):
    def write(bits, codes, zeros, scale):
        return {
            "weight_packed": words(codes, bits, gaps),
            "weight_zero_point": words(zeros.t(), bits, gaps).t().contiguous(),
            "weight_scale": scale,
        }

    return write


def int_quantized(bits, codes, zeros, scale):
    half = 1 << (bits - 1)
    return {
        "weight": (codes - half).to(torch.int8),
        "weight_zero_point": (zeros - half).to(torch.int8),
        "weight_scale": scale,
    }


def compressed_config(bits, group, form):
    args = {"num_bits": bits, "type": "int", "symmetric": False}
    args |= {"strategy": "group", "group_size": group}
    groups = {"g": {"targets": ["Linear"], "weights": args}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def hqq(bits, codes, zeros, scale):
    blocks = codes.reshape(zeros.numel(), -1)
    width = {5: 8, 6: 8}.get(bits, bits)
    top, count = (27, 10) if width == 3 else (8 - width, 8 // width)
    rows = torch.nn.functional.pad(blocks, (0, 0, 0, -len(blocks) % count))
    packed = sum(part << (top - width * i) for i, part in enumerate(rows.chunk(count)))
    return {
        "W_q": packed.to(torch.int32 if bits == 3 else torch.uint8),
        "scale": scale.reshape(-1, 1),
        "zero": zeros.reshape(-1, 1).to(torch.float32),
    }


def hqq_config(bits, group, form):
    return {
        "quant_method": "hqq",
        "quant_config": {"weight_quant_params": {"nbits": bits, "group_size": group, "axis": 1}},
    }


def quanto(bits, codes, zeros, scale):
    blocks = codes.reshape(zeros.numel(), -1)
    parts = blocks.chunk(8 // bits)
    return {
        "weight._data._data": sum(p << (bits * i) for i, p in enumerate(parts)).to(torch.uint8),
        "weight._scale": scale.reshape(-1, 1),
        "weight._shift": zeros.reshape(-1, 1).to(torch.int8),
    }


def quanto_config(bits, group, form):
    return {"x": {"weights": f"qint{bits}", "activations": "none"}}


FORMATS = {
    # name: (bits, writer, config, what the config says more)
    "gptq v1": ((2, 3, 4, 8), gptq(v2=False), gptq_config, "gptq"),
    "gptq v2": ((2, 3, 4, 8), gptq(v2=True), gptq_config, "gptq_v2"),
    "awq": ((4,), awq, lambda b, g, _: {"quant_method": "awq", "bits": b, "group_size": g}, ""),
    "pack-quantized": (range(2, 9), compressed(gaps=True), compressed_config, "pack-quantized"),
    "without gaps": (range(2, 9), compressed(gaps=False), compressed_config, "pack-quantized"),
    "int-quantized": (range(2, 9), int_quantized, compressed_config, "int-quantized"),
    "hqq": ((1, 2, 3, 4, 5, 6, 8), hqq, hqq_config, ""),
    "quanto": ((2, 4), quanto, quanto_config, ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(name):
    widths, write, configure, form = FORMATS[name]

    @settings(max_examples=40, deadline=None)
    @given(
        st.sampled_from(list(widths)),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([32, 64, 96]),
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        st.booleans(),
        st.integers(0, 2**32),
    )
    def check(bits, rows, groups, group, dtype, strided, seed):
        N, K = 32 * rows, group * groups
        random = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 2**bits, (N, K), generator=random)
        zeros = torch.randint(0, 2**bits, (N, groups), generator=random)
        scale = (torch.rand((N, groups), generator=random) + 0.1).to(dtype)
        tensors = write(bits, codes, zeros, scale)
        if strided:  # the same numbers, elsewhere in memory
            tensors = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in tensors.items()}
        before = {k: v.clone() for k, v in tensors.items()}
        method = read_quantization_config(configure(bits, group, form))
        shapes = {suffix: tuple(tensor.shape) for suffix, tensor in tensors.items()}
        scheme = method.get_quant_method(LINEAR, "x").refined(shapes)
        for suffix, spec in scheme.checkpoint_tensors(K, N).items():
            assert spec.optional or spec.fits(shapes[suffix]), suffix
        layer = scheme.canonicalize(tensors, K, N, torch.float32)
        got = dequantize_weight(layer.config, layer.tensors, torch.float64)
        wide = scale.double().repeat_interleave(group, 1)
        expected = (codes - zeros.repeat_interleave(group, 1)) * wide
        if name in ("hqq", "quanto"):  # offsets are floats: rounded once, or twice
            assert torch.allclose(got, expected, rtol=0, atol=2**bits * 2.0**-22)
        else:
            assert torch.equal(got, expected)
        assert all(torch.equal(tensors[k], before[k]) for k in before), "canonicalize is pure"

    check()

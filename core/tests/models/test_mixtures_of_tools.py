"""Mixtures whose experts compressed-tensors itself quantizes and packs, where it is there."""

from __future__ import annotations

import checkpoint_writers as w
import moe_writers as m
import pytest
from qcore.models import load_model
from qcore.quantization import QuantizedExperts

pytest.importorskip("compressed_tensors", reason="writes the checkpoints")

from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
)
from compressed_tensors.quantization.utils import calculate_qparams

ARGS = {
    "w4a16": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
    "w4a16 asymmetric": {
        "num_bits": 4,
        "strategy": "group",
        "group_size": 32,
        "symmetric": False,
    },
    "w8a16": {"num_bits": 8, "strategy": "channel", "symmetric": True},
}


def compress(weight, scheme):
    """(tensors of the checkpoint, the weight that the tool makes of them)."""
    args = scheme.weights
    groups = weight.reshape(len(weight), -1, args.group_size or weight.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    state = {"weight": weight.clone(), "weight_scale": scale, "weight_zero_point": zero}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    rounded = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    return {k: v.contiguous() for k, v in packed.items()}, rounded


@pytest.mark.parametrize("architecture", m.SIZES)
@pytest.mark.parametrize("name", ARGS)
def test_compressed_tensors(tmp_path, architecture, name, format_result):
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**ARGS[name]))
    model = m.tiny_mixture(architecture)
    tensors, gone = {}, set()
    linears = [(n, x) for n, x in w.linears(model) if not n.endswith("gate")]
    layers = [(n, m.file_name(model, n), x.weight.data) for n, x in linears]
    layers += [(n, n, view) for n, _, view in m.expert_weights(model)]
    for own, file, weight in layers:
        packed, rounded = compress(weight, scheme)
        weight.copy_(rounded)
        gone.add(f"{own}.weight")
        tensors |= {f"{file}.{k}": v for k, v in packed.items()}
    rest = m.plain_state(model, tensors)
    tensors |= {k: v for k, v in rest.items() if k not in gone}
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=["lm_head", "re:.*gate$"],
    )
    folder = w.write_folder(tmp_path, model, tensors, config.model_dump(mode="json"))
    loaded = load_model(folder, device="cpu")
    assert any(isinstance(x, QuantizedExperts) for x in loaded.modules())
    error = w.relative_error(w.logits(loaded), w.logits(model))
    print(f"{architecture} {name}: {error:.1e}")
    assert error < 1e-5
    format_result(folder, loaded, error, 1e-5, tool="compressed-tensors")

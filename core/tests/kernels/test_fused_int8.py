"""Fused int8 layers: q, k and v in one tensor, with one scale for each."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from qcore.errors import WeightError
from qcore.kernels.fused_scales import merge_input_scales, spread_over_parts
from qcore.layers import Int8ScaledMMLinearLayerConfig
from qcore.quantization import QuantizedLinear
from qcore.quantization.base import CanonicalLinear

WIDTHS = (32, 16, 16)
K = 48


def layer(static, symmetric, scales, widths=WIDTHS, **inputs):
    N = sum(widths)
    torch.manual_seed(1)
    config = Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=static,
        is_channelwise=False,
        input_symmetric=symmetric,
        is_fused_module=True,
        weight_shape=(N, K),
        input_dtype=torch.float32,
        out_dtype=torch.float32,
    )
    weight = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    tensors = {"weight": weight, "weight_scale": torch.tensor(scales), **inputs}
    return CanonicalLinear(config, tensors)


def inputs_of(static, symmetric):
    found = {"input_scale": torch.tensor([0.02])} if static else {}
    if static and not symmetric:
        found["input_zero_point"] = torch.tensor([-9], dtype=torch.int32)
    return found


@pytest.mark.parametrize(
    ("static", "symmetric", "M"), [*itertools.product((False, True), (False, True), (0, 1, 5))]
)
def test_parts_are_what_they_are_alone(static, symmetric, M):
    scales = [0.01, 0.5, 0.002]
    inputs = inputs_of(static, symmetric)
    whole = layer(static, symmetric, scales, **inputs)
    fused = QuantizedLinear(whole, torch.arange(64.0), logical_widths=WIDTHS)
    x = torch.randn(M, K)
    at, parts = 0, []
    for width, scale in zip(WIDTHS, scales, strict=True):
        config = dataclasses.replace(whole.config, is_fused_module=False, weight_shape=(width, K))
        tensors = {**whole.tensors, "weight": whole.tensors["weight"][at : at + width]}
        tensors["weight_scale"] = torch.tensor([scale])
        one = QuantizedLinear(CanonicalLinear(config, tensors), torch.arange(64.0)[at : at + width])
        parts.append(one(x))
        at += width
    torch.testing.assert_close(fused(x), torch.cat(parts, -1), rtol=1e-6, atol=1e-6)


def test_one_scale_is_that_of_all():
    fused = QuantizedLinear(layer(False, True, [0.25]), logical_widths=WIDTHS)
    assert torch.equal(fused.weight_scale, torch.full((64,), 0.25))


@pytest.mark.parametrize("scales", [[0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
def test_as_many_scales_as_parts(scales):
    with pytest.raises(WeightError, match=f"{len(scales)} elements for a fused layer of 3 parts"):
        QuantizedLinear(layer(False, True, scales), logical_widths=WIDTHS)


def test_widths_are_those_of_the_layer():
    with pytest.raises(WeightError, match="their sum must be the layer's 64 outputs"):
        QuantizedLinear(layer(False, True, [0.1, 0.2]), logical_widths=(32, 16))


def test_widths_that_an_engine_set_wrong():
    fused = QuantizedLinear(layer(False, True, [0.1, 0.2, 0.3]), logical_widths=WIDTHS)
    fresh = type(fused.kernel).from_config(fused.kernel.config)
    fused.logical_widths = [32, 16]
    fused.weight_scale = torch.nn.Parameter(torch.tensor([0.1, 0.2]), False)
    with pytest.raises(WeightError, match="the layer has 64 outputs"):
        fresh.process_weights_after_loading(fused)


def test_processing_twice_changes_nothing():
    fused = QuantizedLinear(layer(False, True, [0.1, 0.2, 0.3]), logical_widths=WIDTHS)
    scale = fused.weight_scale.clone()
    fused.kernel.process_weights_after_loading(fused)
    assert torch.equal(fused.weight_scale, scale)


def test_static_scales_of_the_parts_are_merged():
    """What each part can represent, the merged scale can."""
    scale, zero = torch.tensor([0.01, 0.03]), torch.tensor([100, -20], dtype=torch.int32)
    merged, azp = merge_input_scales(scale, zero)
    low = ((-128 - zero) * scale).min()
    high = ((127 - zero) * scale).max()
    assert abs((-128 - azp) * merged - low) <= merged / 2
    assert abs((127 - azp) * merged - high) <= merged / 2
    assert merge_input_scales(scale, None)[0] == scale.max()
    inputs = {"input_scale": scale, "input_zero_point": zero}
    fused = QuantizedLinear(
        layer(True, False, [0.1, 0.2], (40, 24), **inputs), logical_widths=(40, 24)
    )
    assert torch.equal(fused.input_scale, merged)
    assert torch.equal(fused.input_zero_point, azp)


def test_each_scale_has_a_zero_point():
    with pytest.raises(WeightError, match="input_zero_point has 1 elements and input_scale 2"):
        merge_input_scales(torch.tensor([1.0, 2.0]), torch.tensor([0]))


def test_spread():
    got = spread_over_parts(torch.tensor([[1.0], [2.0]]), [1, 3])
    assert got.tolist() == [1.0, 2.0, 2.0, 2.0]

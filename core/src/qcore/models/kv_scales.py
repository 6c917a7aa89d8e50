"""Find a checkpoint's scales of the KV cache, check them, and leave them with the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qcore.errors import CheckpointError, WeightError
from qcore.layers.params import FLOAT_DTYPES
from qcore.models.safetensors_file import TensorInfo, read_tensor
from qcore.quantization.kv_cache import Fp8KVCacheMethod, KVScales

__all__ = ["KV_METHOD", "KV_SCALES", "KVScalePlan", "attach_kv_scales", "plan_kv_scales"]

KV_SCALES = "_qcore_kv_scales"
"""Attribute of a loaded model: the `KVScales` of each layer, by its index."""

KV_METHOD = "_qcore_kv_method"
"""Attribute of a loaded model: the `Fp8KVCacheMethod` of its checkpoint."""

_ATTENTION_NAMES = ("attn", "attention", "mixer")
_SHOWN = 6


@dataclass
class KVScalePlan:
    """Where the scales of the KV cache are.

    Attributes:
        method: what the config says.
        found: (layer, k or v, tensor), in the checkpoint's order.
        layers: indices of the layers that have attention.
        unplaced: names of scales whose layer the model does not have.
    """

    method: Fp8KVCacheMethod
    found: list[tuple[int, str, TensorInfo]] = field(default_factory=list)
    layers: tuple[int, ...] = ()
    unplaced: list[str] = field(default_factory=list)


def plan_kv_scales(
    model: Any,
    method: Fp8KVCacheMethod,
    available: Mapping[str, TensorInfo],
    names: Iterable[str],
) -> KVScalePlan:
    """Match scales with the model's layers, from the headers alone.

    Args:
        model: with its parameters on the meta device.
        method: of the checkpoint.
        available: its tensors, by the model's names.
        names: of those that no layer takes.

    Raises:
        CheckpointError: a scale is not one float.
    """
    modules = dict(model.named_modules())
    plan = KVScalePlan(method, layers=_attention_layers(modules))
    for name in names:
        what = method.scale_of(name)
        if what is None:
            continue
        owner, of = what
        layer = _layer_of(modules, owner)
        if layer is None:
            plan.unplaced.append(name)
            continue
        info = available[name]
        if info.dtype not in (*FLOAT_DTYPES, torch.float64) or info.nbytes != info.dtype.itemsize:
            raise CheckpointError(
                f"{info.file}: {info}; a scale of the KV cache is one float for the whole layer"
            )
        plan.found += [(layer, one, info) for one in of]
    return plan


def _attention_layers(modules: Mapping[str, torch.nn.Module]) -> tuple[int, ...]:
    found = set()
    for name, module in modules.items():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and name.rpartition(".")[2].endswith(_ATTENTION_NAMES):
            found.add(index)
    return tuple(sorted(found))


def _layer_of(modules: Mapping[str, torch.nn.Module], owner: str) -> int | None:
    """The index that the cache knows a layer by: that of the innermost module that has one."""
    while owner:
        index = getattr(modules.get(owner), "layer_idx", None)
        if isinstance(index, int):
            return index
        owner = owner.rpartition(".")[0]
    return None


def attach_kv_scales(model: Any, plan: KVScalePlan) -> list[str]:
    """Read the scales, and leave them with the model for `qcore.models.fp8_cache`.

    Returns:
        Notes about what is missing.

    Raises:
        CheckpointError: a scale is not positive and finite, or a layer has two that differ.
    """
    values: dict[tuple[int, str], tuple[float, str]] = {}
    for layer, of, info in plan.found:
        try:
            value = plan.method.read_scale(read_tensor(info))
        except WeightError as error:
            raise CheckpointError(f"{info.file}: {info.name} is {error}") from None
        other = values.setdefault((layer, of), (value, info.name))
        if other[0] != value:
            raise CheckpointError(
                f"{info.file}: {other[1]} is {other[0]} and {info.name} is {value}; both are the "
                f"{of} scale of layer {layer}'s KV cache"
            )
    layers = sorted({layer for layer, _ in values})
    ones = {key: value for key, (value, _) in values.items()}
    scales = {
        layer: KVScales(ones.get((layer, "k"), 1.0), ones.get((layer, "v"), 1.0))
        for layer in layers
    }
    setattr(model, KV_SCALES, scales)
    setattr(model, KV_METHOD, plan.method)
    return _missing(plan, ones)


def _missing(plan: KVScalePlan, values: Mapping[tuple[int, str], float]) -> list[str]:
    method = plan.method
    if method.dynamic or method.refused is not None or (method.asked is None and not values):
        return []
    lost = [f"{of} of layer {n}" for n in plan.layers for of in "kv" if (n, of) not in values]
    if not lost:
        return []
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return [
        "the checkpoint has no scale of the KV cache for "
        f"{', '.join(lost[:_SHOWN])}{more}; an FP8 cache takes 1.0 there"
    ]

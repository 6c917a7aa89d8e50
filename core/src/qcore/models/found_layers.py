"""Layers as a checkpoint's tensors show them, and the experts among them as one layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qcore.errors import CheckpointError, UnsupportedQuantizationError
from qcore.layers.base import MMLinearLayerConfig
from qcore.models.experts import EXPERT_LAYER, ROLES
from qcore.quantization.experts import experts_config

__all__ = ["FoundLayer", "group_experts"]

_ACTIVATIONS = {"swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


@dataclass(frozen=True)
class FoundLayer:
    """A quantized layer.

    Attributes:
        prefix: its name.
        scheme: how it is stored, in a few words.
        config: what a kernel is selected for.
        K: inputs.
        N: outputs.
        nbytes: that its tensors take.
    """

    prefix: str
    scheme: str
    config: MMLinearLayerConfig
    K: int
    N: int
    nbytes: int


def group_experts(layers: Iterable[FoundLayer], activation: str) -> list[FoundLayer]:
    """The layers, with those of experts joined, where the first of them was.

    Args:
        layers: the linear layers of a checkpoint.
        activation: ``hidden_act`` of its ``config.json``.

    Raises:
        CheckpointError: an expert lacks a layer, or has one of another shape than the first.
        UnsupportedQuantizationError: no expert kernel takes such layers.
    """
    mixtures: dict[str, dict[tuple[int, str], FoundLayer]] = {}
    found: list[FoundLayer | str] = []
    for layer in layers:
        match = EXPERT_LAYER.fullmatch(layer.prefix)
        if match is None:
            found.append(layer)
            continue
        if match["experts"] not in mixtures:
            found.append(match["experts"])
        mixture = mixtures.setdefault(match["experts"], {})
        mixture[int(match["expert"]), match["role"]] = layer
    return [
        _experts(item, mixtures[item], activation) if isinstance(item, str) else item
        for item in found
    ]


def _experts(prefix: str, mixture: dict[tuple[int, str], FoundLayer], act: str) -> FoundLayer:
    given = {role for _, role in mixture}
    names = next(names for names in ROLES if given & set(names))
    count = max(expert for expert, _ in mixture) + 1
    for expert in range(count):
        for name in names:
            layer = mixture.get((expert, name))
            where = f"{prefix}.{expert}.{name}"
            if layer is None:
                raise CheckpointError(f"{where} is missing; other experts are quantized")
            first = mixture.get((0, name), layer)
            if layer.config != first.config:
                raise CheckpointError(
                    f"{where} is {layer.config.describe()}, {layer.K} x {layer.N}; that of expert "
                    f"0 is {first.config.describe()}, {first.K} x {first.N}"
                )
    gate, _, down = (mixture[0, name] for name in names)
    try:
        config = experts_config(count, _ACTIVATIONS.get(act, act), gate.config, down.config)
    except UnsupportedQuantizationError as error:
        raise UnsupportedQuantizationError(f"{prefix}: {error}") from None
    nbytes = sum(layer.nbytes for layer in mixture.values())
    return FoundLayer(prefix, gate.scheme, config, gate.K, gate.K, nbytes)

"""HQQ's own ``save_to_safetensors``: no config; tensors of each layer state its parameters."""

from __future__ import annotations

from collections.abc import Mapping

from qcore.errors import CheckpointError
from qcore.models.safetensors_file import TensorInfo, read_tensor
from qcore.quantization.hqq import HQQConfig

__all__ = ["read_hqq_layers"]

_CODES = ".W_q"
_NUMBERS = ("nbits", "group_size", "axis", "view_as_float", "quant_scale", "quant_zero")


def read_hqq_layers(tensors: Mapping[str, TensorInfo]) -> HQQConfig | None:
    """The config of a checkpoint that states none; None if it has no layers of HQQ's.

    Besides the headers, a few numbers of each layer are read.

    Raises:
        CheckpointError: a layer does not say its parameters.
        UnsupportedQuantizationError: they are not supported.
    """
    names = [name.removesuffix(_CODES) for name in tensors if name.endswith(_CODES)]
    layers = {}
    for name in names:
        found = {number: tensors.get(f"{name}.{number}") for number in _NUMBERS}
        for number in ("nbits", "group_size", "axis"):
            if found[number] is None:
                raise CheckpointError(
                    f"{name} has codes of HQQ's, but neither {name}.{number} nor a "
                    "quantization_config says how they are stored"
                )
        layers[name] = {number: _number(info) for number, info in found.items() if info}
    return HQQConfig.from_layers(layers) if layers else None


def _number(info: TensorInfo) -> int:
    if info.shape not in ((), (1,)):
        raise CheckpointError(f"{info}: must be one number")
    return int(read_tensor(info).item())

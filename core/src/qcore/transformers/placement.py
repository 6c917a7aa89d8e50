"""Which device each quantized layer goes to, from a ``device_map`` of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from qcore.errors import TargetError

__all__ = ["check_device_map", "device_of"]

_NOWHERE = ("disk", "meta")


def device_of(name: str, device_map: Mapping[str, Any] | None) -> torch.device:
    """The device of a module: that of the longest prefix of its name that the map has."""
    place = _stated(name, device_map)
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def _stated(name: str, device_map: Mapping[str, Any] | None) -> Any:
    if device_map is None:
        return "cpu"
    prefix = name
    while prefix and prefix not in device_map:
        prefix = prefix.rpartition(".")[0]
    return device_map.get(prefix, "cpu")


def check_device_map(names: Iterable[str], device_map: Mapping[str, Any] | None) -> None:
    """Check that every quantized layer can stay where the map puts it.

    Args:
        names: of the quantized layers.
        device_map: resolved: module to device.

    Raises:
        TargetError: a layer would be offloaded; the message names it and says what to do.
    """
    kinds = {
        device_of("", {"": place}).type
        for place in (device_map or {}).values()
        if str(place) not in _NOWHERE
    }
    for name in names:
        place = str(_stated(name, device_map))
        if place in _NOWHERE:
            raise TargetError(
                f"device_map puts {name} on {place!r}, but its weights are packed for a kernel and "
                "stay in memory; give it a device (larger max_memory, or another device_map)"
            )
        if place == "cpu" and kinds - {"cpu"}:
            others = ", ".join(sorted(kinds - {"cpu"}))
            raise TargetError(
                f"device_map puts {name} on the CPU and other layers on {others}: transformers "
                "would move its weights at every call, and they are packed for a CPU kernel; put "
                "all quantized layers on accelerators, or the whole model on the CPU"
            )

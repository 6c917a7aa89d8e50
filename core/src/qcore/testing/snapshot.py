"""`Snapshot`: the bits of all tensors that a layer and its kernel hold, to compare later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

__all__ = ["Snapshot", "bits", "layer_tensors"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values as bytes, on the CPU; a copy."""
    flat = tensor.detach().cpu()
    if flat.layout is not torch.strided:
        flat = flat.to_dense()
    return flat.contiguous().reshape(-1).view(torch.uint8).clone()


def layer_tensors(layer: torch.nn.Module, *others: object) -> dict[str, torch.Tensor]:
    """Every tensor of ``layer`` (parameters, buffers, attributes) and of other objects, by name."""
    found: dict[str, torch.Tensor] = dict(layer.named_parameters(remove_duplicate=False))
    found.update(layer.named_buffers(remove_duplicate=False))
    for module_name, module in layer.named_modules():
        found.update(_attributes(module, f"{module_name}." if module_name else ""))
    for other in others:
        found.update(_attributes(other, f"{type(other).__name__}."))
    return found


def _attributes(owner: object, prefix: str) -> dict[str, torch.Tensor]:
    return {
        prefix + name: value
        for name, value in vars(owner).items()
        if isinstance(value, torch.Tensor)
    }


class Snapshot:
    """Shapes, strides, dtypes and bits of some tensors.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._kept = {
            name: ((tuple(t.shape), t.stride(), t.dtype, str(t.device)), bits(t))
            for name, t in tensors.items()
        }

    def difference(self, tensors: Mapping[str, torch.Tensor], names: Iterable[str] = ()) -> str:
        """How ``tensors`` differ from what was kept, in words; "" if they do not.

        Args:
            tensors: by name.
            names: the only names to compare; by default all.
        """
        wanted = set(names) or {*self._kept, *tensors}
        for name in sorted(wanted):
            if name not in self._kept or name not in tensors:
                return f"tensor {name!r} is there in one and not in the other"
            form, values = self._kept[name]
            tensor = tensors[name]
            now = (tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
            if form != now:
                return f"tensor {name!r} was {form} and is {now} (shape, strides, dtype, device)"
            changed = int((bits(tensor) != values).sum())
            if changed:
                return f"tensor {name!r} differs in {changed} of {values.numel()} bytes"
        return ""

"""`CompositeLinearKernel`: several kernels in one layer, chosen at each call by M."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import torch

from qcore.errors import RegistrationError
from qcore.kernels.base import PACKED_BY, Answer, LinearKernel, answer, drop_tensor
from qcore.kernels.loading import process_weights
from qcore.layers.base import MMLinearLayerConfig

__all__ = ["CompositeLinearKernel"]

ConfigT = TypeVar("ConfigT", bound=MMLinearLayerConfig)


def _objections(replies: dict[type[LinearKernel[Any]], Answer]) -> list[str]:
    """What parts object to, each reason once."""
    found: dict[str | None, list[str]] = {}
    for part, (able, reason) in replies.items():
        if not able:
            found.setdefault(reason, []).append(part.__name__)
    return [
        f"its part{'s' * (len(parts) > 1)} {' and '.join(parts)}: {reason}"
        for reason, parts in found.items()
    ]


class CompositeLinearKernel(LinearKernel[ConfigT], Generic[ConfigT]):
    """Runs each call on the first part whose ``max_m`` is not exceeded.

    It is supported, and implements a config, if and only if all of its parts do::

        class SkinnyThenWide(CompositeLinearKernel[MPLinearLayerConfig]):
            kernel_type = "mp"
            parts = ((16, SkinnyKernel), (None, WideKernel))
    """

    parts: ClassVar[tuple[tuple[int | None, type[LinearKernel[Any]]], ...]]
    """(largest M, class) in rising order; the last has None, for any M."""

    shared_weights: ClassVar[bool] = True
    """Whether all parts read the layout that the first part packs; else each packs a copy."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the thresholds of a subclass that has its parts."""
        super().__init_subclass__(**kwargs)
        parts = cls.__dict__.get("parts")
        if parts is None:
            return
        limits = [limit for limit, _ in parts]
        bounds = [limit for limit in limits[:-1] if limit is not None]
        rising = bounds == sorted(set(bounds))
        if not limits or limits[-1] is not None or None in limits[:-1] or not rising:
            raise RegistrationError(
                f"{cls.__name__}.parts has the limits {limits}; they must rise and end with None"
            )

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        self.kernels = tuple(part.from_config(config) for _, part in self.parts)

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether every part is, from the composite's own least capability on."""
        _, reason = super().is_supported(compute_capability)
        replies = {part: part.is_supported(compute_capability) for _, part in cls.parts}
        return answer(reason, *_objections(replies))

    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Whether every part can."""
        return answer(*_objections({part: part.can_implement(config) for _, part in cls.parts}))

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Pack once, or once for each part where they do not share a layout."""
        if getattr(layer, PACKED_BY, None) is self:
            return
        if self.shared_weights:
            process_weights(self.kernels[0], layer)
            setattr(layer, PACKED_BY, self)
            return
        holders = []
        for kernel in self.kernels:
            holder = torch.nn.Module()
            for name, value in layer.__dict__.items():
                if not name.startswith("_"):
                    setattr(holder, name, value)
            for name, tensor in layer._parameters.items():
                holder.register_parameter(name, tensor)
            for name, buffer in layer._buffers.items():
                holder.register_buffer(name, buffer)
            process_weights(kernel, holder)
            holders.append(holder)
        for name in self.config.params():
            drop_tensor(layer, name)
        layer.composite_parts = torch.nn.ModuleList(holders)
        setattr(layer, PACKED_BY, self)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the part that the number of rows of ``x`` asks for."""
        M = x.numel() // x.shape[-1] if x.shape[-1] else 0
        for index, (limit, _) in enumerate(self.parts):
            if limit is None or limit >= M:
                holder: Any = layer if self.shared_weights else layer.composite_parts[index]  # type: ignore[index]
                return self.kernels[index].apply_weights(holder, x, bias)
        raise AssertionError("the last part has no limit")

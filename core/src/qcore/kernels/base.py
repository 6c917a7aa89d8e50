"""`LinearKernel`: what every kernel class answers and does.

A kernel class is asked twice, without being built: `is_supported` (this hardware?) and
`can_implement` (this layer?). Both return ``(True, None)`` or ``(False, reason)``, the reason in
words that a user can act on. An instance then packs the layer's weights once and runs the layer.

The method names are vLLM's, so a kernel written for vLLM needs other imports and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

import torch

from qcore.errors import KernelRefusedError, WeightError
from qcore.facts.current_platform import current_platform
from qcore.kernels.parameters import replace_parameter
from qcore.layers.base import MMLinearLayerConfig
from qcore.layers.params import check_params

__all__ = [
    "PACKED_BY",
    "Answer",
    "LinearKernel",
    "answer",
    "drop_tensor",
    "tensor_of",
    "tensors_of",
]

ConfigT = TypeVar("ConfigT", bound=MMLinearLayerConfig)

Answer = tuple[bool, "str | None"]
"""``(True, None)``, or ``(False, why not)``."""

PACKED_BY = "_qcore_packed_by"
"""Attribute of a layer: the kernel instance whose layout its weights have."""


def answer(*refusals: str | bool | None) -> Answer:
    """Join refusals into an answer.

    Each argument is a reason, or something false where there is nothing to object to::

        return answer(
            config.has_g_idx and "g_idx (activation order) is not implemented",
            config.group_size % 32 != 0 and f"group_size={config.group_size}; multiples of 32 only",
        )

    Raises:
        TypeError: an argument is ``True``, which says that there is a reason but not which.
    """
    if any(refusal is True for refusal in refusals):
        raise TypeError("answer() takes reasons in words, got True")
    reasons = [str(refusal) for refusal in refusals if refusal]
    return (False, "; ".join(reasons)) if reasons else (True, None)


class LinearKernel(ABC, Generic[ConfigT]):
    """Base of all kernels.

    A kernel packs its weights in one of two ways: it overrides `pack_weights`, a pure function of
    tensors (do this in new code), or, as vLLM's kernels do, `process_weights_after_loading`.

    Args:
        config: the layer.

    Raises:
        KernelRefusedError: `can_implement` refuses the config.
    """

    kernel_type: ClassVar[str]
    """Which configs it takes; a key of `qcore.kernels.KERNEL_TYPES`."""

    accumulation: ClassVar[torch.dtype | float] = torch.float32
    """The dtype of its sums, or their unit roundoff where the hardware adds in none of torch's. The
    conformance kit allows for it."""

    weight_rounding: ClassVar[torch.dtype | Literal["input"] | None] = None
    """The dtype to which it rounds dequantized weights, ``input`` for the input's; None if it does
    not. The conformance kit allows for it."""

    def __init__(self, config: ConfigT) -> None:
        able, reason = self.can_implement(config)
        if not able:
            raise KernelRefusedError(f"{type(self).__name__} cannot run this layer: {reason}")
        self.config = config

    # -- questions to the class --------------------------------------------------------------

    @classmethod
    def get_min_capability(cls) -> int:
        """The least compute capability (75 for sm_75); -1 where there is no such thing."""
        return -1

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the hardware and the installed software can run this kernel.

        Args:
            compute_capability: 90 for sm_90; None for that of the platform being weighed.
        """
        if compute_capability is None:
            capability = current_platform.get_device_capability()
            compute_capability = capability.to_int() if capability else None
        least = cls.get_min_capability()
        if least > 0 and compute_capability is not None and compute_capability < least:
            return False, f"needs compute capability {least}, this is {compute_capability}"
        return True, None

    @classmethod
    @abstractmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Whether this kernel can run such a layer, on hardware that it supports."""

    @classmethod
    def from_config(cls, config: ConfigT) -> LinearKernel[ConfigT]:
        """An instance for a layer whose tensors have their canonical names."""
        return cls(config)

    # -- packing -----------------------------------------------------------------------------

    def layer_names(self) -> Mapping[str, str]:
        """Canonical tensor name -> the layer's name for it."""
        return {name: name for name in self.config.params()}

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The kernel's own layout of the weights. A pure function: nothing is changed in place.

        Args:
            tensors: the canonical tensors that the layer has, by canonical name, already checked
                against the config.

        Returns:
            The tensors that the layer is to hold. A canonical name means the layer's tensor of
            that name; others are new attributes. Canonical tensors that are not returned are freed.
        """
        return tensors

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Give ``layer`` the kernel's layout of its weights; a second call changes nothing.

        Raises:
            WeightError: a tensor of the canonical layout is missing or does not fit the config.
        """
        if getattr(layer, PACKED_BY, None) is self:
            return
        names = self.layer_names()
        found = {canonical: getattr(layer, name, None) for canonical, name in names.items()}
        check_params(self.config.params(), found, str(getattr(layer, "prefix", "") or "layer"))
        packed = self.pack_weights({name: t for name, t in found.items() if t is not None})
        for canonical, name in names.items():
            if canonical not in packed and found[canonical] is not None:
                drop_tensor(layer, name)
        for canonical, tensor in packed.items():
            if tensor is not found.get(canonical):
                replace_parameter(layer, names.get(canonical, canonical), tensor)
        setattr(layer, PACKED_BY, self)

    # -- running -----------------------------------------------------------------------------

    @abstractmethod
    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer.

        Args:
            layer: the layer, processed.
            x: [..., K].
            bias: [N].

        Returns:
            [..., N].
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.describe()})"


def drop_tensor(layer: torch.nn.Module, name: str) -> None:
    """Forget a tensor but keep its name, as None."""
    if name in layer._parameters:
        layer._parameters[name] = None
    elif name in layer._buffers:
        layer._buffers[name] = None
    elif hasattr(layer, name):
        setattr(layer, name, None)


def tensor_of(layer: torch.nn.Module, name: str) -> torch.Tensor:
    """The layer's tensor ``name``.

    Kernels ask for it in every call of a layer: parameters are looked up where they are, in a tenth
    of the time that ``getattr`` takes.

    Raises:
        WeightError: it is not there.
    """
    held: torch.Tensor | None = layer._parameters.get(name)
    if held is not None:
        return held
    value: Any = getattr(layer, name, None)
    if not isinstance(value, torch.Tensor):
        raise WeightError(f"{getattr(layer, 'prefix', '') or 'layer'}: no tensor {name!r}")
    return value


def find_tensor(layer: torch.nn.Module, name: str) -> Any:
    """The layer's ``name``; None where it has none.

    Looked up where it may be: ``getattr`` takes longest for what is not there. A call that knows
    what its layer has asks for that alone, by `tensors_of`.
    """
    for held in (layer._parameters, layer._buffers):
        if name in held:
            return held[name]
    known = name in layer.__dict__ or hasattr(type(layer), name)
    return getattr(layer, name) if known else None


@overload
def tensors_of(layer: torch.nn.Module, *names: str) -> Sequence[torch.Tensor]: ...
@overload
def tensors_of(layer: torch.nn.Module, *names: str | None) -> Sequence[torch.Tensor | None]: ...
def tensors_of(layer: torch.nn.Module, *names: str | None) -> Sequence[torch.Tensor | None]:
    """The layer's tensors of these names, as `tensor_of` finds them; None for a name that is None.

    Raises:
        WeightError: one is not there.
    """
    held: Any = layer._parameters  # asked for None, too, which is no name there
    found: list[torch.Tensor | None] = []
    for name in names:
        tensor = held.get(name)
        if tensor is None and name is not None:
            tensor = tensor_of(layer, name)
        found.append(tensor)
    return found

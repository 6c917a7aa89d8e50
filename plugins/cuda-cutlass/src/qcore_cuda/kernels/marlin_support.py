"""What the kernels for Marlin's layout share: where they run, padding, the call."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from qcore.errors import KernelRefusedError
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, LinearKernel, answer, tensors_of
from qcore.layers.base import MMLinearLayerConfig

from qcore_cuda import library
from qcore_cuda.kernels.padding import pad_to
from qcore_cuda.marlin import kernels
from qcore_cuda.marlin.instances import Scheme
from qcore_cuda.marlin.layout import pack_codes, padded_shape, scale_order
from qcore_cuda.marlin.schemes import scheme_of

__all__ = ["MarlinSupport", "capability_of_target", "padding_cost"]

Tensor = torch.Tensor
log = logging.getLogger("qcore.cuda")

_WORKSPACE = 1024  # counters: more blocks than any GPU runs at a time are of no use
_ASSUMED = 80  # where the target's capability is not known


def capability_of_target() -> int:
    """The compute capability that is being weighed."""
    return current_platform.target.compute_capability or _ASSUMED


def padding_cost(K: int, N: int, padded: tuple[int, int]) -> str | None:
    """What padding a weight to ``padded`` costs, in words; None where it is none."""
    if padded == (K, N):
        return None
    more = padded[0] * padded[1] / (K * N) - 1
    return f"K={K}, N={N} padded to {padded[0]}, {padded[1]}: {more:.1%} more weight to read"


class MarlinSupport:
    """Comes before the base of a kernel type."""

    padding: str | None = None
    """What the layer's padding costs; None where there is none."""

    # What a kernel class keeps for its calls.
    b_type_id: int
    out_features: int
    out_dtype: torch.dtype

    @classmethod
    def get_min_capability(cls) -> int:
        """Tensor cores of float16: SM75."""
        return 75

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library has code for the device."""
        capability = compute_capability or current_platform.target.compute_capability
        if capability is not None and capability < 75:
            return False, f"needs compute capability 75, this is {capability}"
        if capability is not None and capability < 80:
            here = current_platform.target.is_current
            return answer(
                (library.unusable_here() if here else None)
                or (
                    not library.compiled_for_turing()
                    and "compiled without sm_75 (build with QCORE_CUDA_ARCHS=7.5;8.0;...)"
                )
            )
        return answer(library.refusal(compute_capability))

    @classmethod
    def scheme_refusal(cls, config: MMLinearLayerConfig, **facts: bool) -> str | None:
        """Why no generated kernel multiplies such a layer, or why it cannot be had here."""
        scheme = scheme_of(config, capability_of_target(), **facts)
        if isinstance(scheme, str):
            return scheme
        if current_platform.target.is_current and library.unusable_here() is None:
            return kernels.refusal(scheme)
        return None

    def prepare(self, config: MMLinearLayerConfig, **facts: bool) -> Scheme:
        """The layer's scheme, its kernels loaded where there is a GPU."""
        capability = capability_of_target()
        scheme = scheme_of(config, capability, **facts)
        if isinstance(scheme, str):  # `can_implement` has said so
            raise KernelRefusedError(f"{type(self).__name__} cannot run this layer: {scheme}")
        library.load()
        if library.unusable_here() is None:
            kernels.prepare(scheme, capability)
        return scheme

    def pack(
        self,
        codes: Tensor,
        scales: Tensor,
        bits: int,
        group_size: int,
        *,
        a_8bit: bool = False,
        grouped: bool,
    ) -> dict[str, Tensor]:
        """The weight and its scales in Marlin's layout, padded.

        Args:
            codes: uint8 [K, N].
            scales: [G, N], or [1] for one.
            bits: 4 or 8.
            group_size: -1 for one group.
            a_8bit: whether activations will have 8 bits.
            grouped: whether scales are in the order of groups.
        """
        K, N = codes.shape
        padded = padded_shape(K, N, group_size, a_8bit)
        self.padding = padding_cost(K, N, padded)
        if self.padding is not None:
            log.info("%s: %s", type(self).__name__, self.padding)
        codes = pad_to(pad_to(codes, 0, padded[0]), 1, padded[1])
        # As bytes: not all of torch knows what to do with numbers of 8 bits.
        raw = scales.view(torch.uint8) if scales.element_size() == 1 else scales
        if raw.dim() < 2 or raw.shape[1] != N:
            raw = raw.reshape(1, 1).expand(1, N)
        ordered = scale_order(pad_to(raw.contiguous(), 1, padded[1]), grouped, a_8bit)
        return {
            "weight": pack_codes(codes, bits, a_8bit),
            "weight_scale": ordered,
            "marlin_workspace": torch.zeros(_WORKSPACE, dtype=torch.int32, device=codes.device),
        }

    @staticmethod
    def held(layer: torch.nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The layer's tensors, by the keys of ``names``."""
        return dict(zip(names, tensors_of(layer, *names.values()), strict=True))

    def own_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias in the output's dtype."""
        return bias if bias is None or bias.dtype == self.out_dtype else bias.to(self.out_dtype)

    def multiply(
        self,
        layer: torch.nn.Module,
        x: Tensor,
        bias: Tensor | None,
        names: Mapping[str, str],
        a_scales: Tensor | None = None,
    ) -> Tensor:
        """The op; ``names`` are the layer's for weight and weight_scale, and for others it has."""
        held = self.held(layer, names)
        (workspace,) = tensors_of(layer, "marlin_workspace")
        return torch.ops.qcore_cuda.marlin_linear.default(  # type: ignore[no-any-return]
            x,
            held["weight"],
            held["weight_scale"],
            held.get("zeros"),
            held.get("g_idx"),
            held.get("perm"),
            a_scales,
            held.get("global_scale"),
            self.own_bias(bias),
            workspace,
            self.b_type_id,
            self.out_features,
            None if x.dtype is self.out_dtype else self.out_dtype,  # a dtype takes time to pass
        )

    def __repr__(self) -> str:
        kernel: Any = self
        config = kernel.config.describe() if isinstance(self, LinearKernel) else ""
        return f"{type(self).__name__}({config}{'; ' + self.padding if self.padding else ''})"

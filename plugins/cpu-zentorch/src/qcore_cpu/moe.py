"""The experts of a mixture on any CPU: `CPUMoeWNA16Kernel`, `CPUMoeMxfp4Kernel`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from qcore.errors import WeightError
from qcore.kernels.base import Answer, tensor_of
from qcore.kernels.moe import ExpertsKernel, MoeMxfp4Kernel, MoeWNA16Kernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.moe import (
    PROJECTIONS,
    ExpertsLayerConfig,
    MoeMxfp4LayerConfig,
    MoeWNA16LayerConfig,
)
from qcore.numerics.small_floats import decode_e8m0

from qcore_cpu import library
from qcore_cpu.layout import stored_bits

__all__ = ["CPUMoeMxfp4Kernel", "CPUMoeWNA16Kernel"]

ConfigT = TypeVar("ConfigT", bound=ExpertsLayerConfig)

_PARTS = ("packed", "scale", "zero", "perm", "chunks")


class _CPUExperts(ExpertsKernel[ConfigT]):
    """What both have in common: everything but how one expert's matrix is packed.

    All experts run in one op, `experts`, whose result for a token does not depend on the other
    tokens. What is between the two products is float32.
    """

    codes: str
    """What the op is to make of the packed codes."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: ConfigT) -> Answer:
        """Every config."""
        return True, None

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        library.load()

    @abstractmethod
    def pack_matrix(
        self, projection: str, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """``packed``, ``scale`` and so on of one matrix, from its canonical tensors."""

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """`pack_matrix` of each expert, stacked as ``w13_packed``, ``w13_scale`` and so on."""
        E = self.config.num_experts
        result: dict[str, torch.Tensor] = {}
        for projection in PROJECTIONS:
            linear = self.config.projection(projection)
            names = {name: self.config.stacked_name(projection, name) for name in linear.params()}
            stacks: dict[str, torch.Tensor] = {}
            for expert in range(E):
                mine = {n: tensors[s][expert] for n, s in names.items() if s in tensors}
                for part, tensor in self.pack_matrix(projection, mine).items():
                    shape = (E, *tensor.shape)
                    stack = stacks.setdefault(part, tensor.new_empty(shape))
                    if stack.shape != shape:
                        raise WeightError(
                            f"{projection}_g_idx: groups of expert {expert} have other sizes than "
                            "those of expert 0"
                        )
                    stack[expert] = tensor
            result |= {f"{projection}_{part}": stack for part, stack in stacks.items()}
            if self.config.has_bias:
                result[f"{projection}_bias"] = tensors[f"{projection}_bias"].contiguous()
        return result

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
    ) -> torch.Tensor:
        """See `ExpertsKernel.apply`."""
        weights = [
            tensor_of(layer, f"{projection}_{part}")
            if part != "bias" or self.config.has_bias
            else None
            for projection in PROJECTIONS
            for part in (*_PARTS, "bias")
        ]
        out = torch.ops.qcore_cpu.experts(
            x,
            topk_weights.to(torch.float32).contiguous(),
            topk_ids.to(torch.int64).contiguous(),
            *weights,
            self.config.intermediate_size,
            self.codes,
            self.config.activation,
        )
        return out.to(x.dtype)  # type: ignore[no-any-return]


class CPUMoeWNA16Kernel(_CPUExperts[MoeWNA16LayerConfig], MoeWNA16Kernel):
    """2 to 8 bits, any group size, zero points, ``g_idx``; sums in float32."""

    def __init__(self, config: MoeWNA16LayerConfig) -> None:
        super().__init__(config)
        self.stored_bits = stored_bits(config.weight_type.size_bits)
        self.codes = f"uint{self.stored_bits}"

    def pack_matrix(
        self, projection: str, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """`wna16_pack`, with a permutation for all inputs wherever the layer has ``g_idx``."""
        linear: MPLinearLayerConfig = self.config.projection(projection)
        zeros, g_idx = tensors.get("weight_zero_point"), tensors.get("weight_g_idx")
        found = torch.ops.qcore_cpu.wna16_pack(
            tensors["weight_packed"].contiguous(),
            tensors["weight_scale"].contiguous(),
            zeros.contiguous() if linear.zero_points and zeros is not None else None,
            g_idx.contiguous() if linear.has_g_idx and g_idx is not None else None,
            linear.weight_type.size_bits,
            linear.weight_type.bias,
            linear.group_size,
            linear.in_features,
        )
        parts = dict(zip(_PARTS, found, strict=True))
        if linear.has_g_idx and not parts["perm"].numel():
            # Slot by slot, as the op leaves it out: other experts of the layer may need theirs.
            K, slots = linear.in_features, parts["packed"].shape[1] * 32 // self.stored_bits
            perm = torch.arange(slots, dtype=torch.int32)
            parts["perm"] = torch.where(perm < K, perm, -1).to(torch.int32)
        return parts


class CPUMoeMxfp4Kernel(_CPUExperts[MoeMxfp4LayerConfig], MoeMxfp4Kernel):
    """MXFP4 weights as they are: 4 bits each, and 16 for the scale of 32; sums in float32.

    The codes lie as `wna16_pack` lays codes of 4 bits, and a power of two is a bfloat16, so no
    number is rounded.
    """

    codes = "e2m1"

    def pack_matrix(
        self, projection: str, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """`wna16_pack` of the codes, eight to a word, and of the scales."""
        words = tensors["weight"].contiguous().view(torch.int32)
        scale = decode_e8m0(tensors["weight_scale"]).to(torch.bfloat16)
        K = self.config.shape(projection)[0]
        found = torch.ops.qcore_cpu.wna16_pack(words, scale, None, None, 4, 8, 32, K)
        return dict(zip(_PARTS, found, strict=True))

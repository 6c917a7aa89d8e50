"""`CPUMoeWNA16Kernel`: the experts of a mixture with packed integer weights on any CPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from qcore.errors import WeightError
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.moe import GroupedMoeWNA16Kernel
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.layers.moe import PROJECTIONS, MoeWNA16LayerConfig

from qcore_cpu import library

__all__ = ["CPUMoeWNA16Kernel"]

_PARTS = ("packed", "scale", "zero", "perm", "chunks")


class CPUMoeWNA16Kernel(GroupedMoeWNA16Kernel):
    """2 to 8 bits, any group size, zero points, ``g_idx``; sums in float32.

    Tokens are grouped by expert; each expert's rows go through `wna16_linear`, whose result for a
    row does not depend on the other rows. What is between the two products is float32.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return answer(library.refusal() if current_platform.target.is_current else None)

    @classmethod
    def can_implement(cls, config: MoeWNA16LayerConfig) -> Answer:
        """Every config."""
        return True, None

    def __init__(self, config: MoeWNA16LayerConfig) -> None:
        super().__init__(config)
        library.load()
        bits = config.weight_type.size_bits
        self.stored_bits = 2 if bits == 2 else 4 if bits <= 4 else 8
        self.linears = {name: config.projection(name) for name in PROJECTIONS}

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """``wna16_pack`` of each expert, stacked as ``w13_packed``, ``w13_scale`` and so on."""
        result: dict[str, torch.Tensor] = {}
        for projection, linear in self.linears.items():
            names = {name: self.config.stacked_name(projection, name) for name in linear.params()}
            stacks: dict[str, torch.Tensor] = {}
            for expert in range(self.config.num_experts):
                mine = {n: tensors[s][expert] for n, s in names.items() if s in tensors}
                for part, tensor in _pack(linear, mine, self.stored_bits).items():
                    shape = (self.config.num_experts, *tensor.shape)
                    stack = stacks.setdefault(part, tensor.new_empty(shape))
                    if stack.shape != shape:
                        raise WeightError(
                            f"{projection}_g_idx: groups of expert {expert} have other sizes than "
                            "those of expert 0"
                        )
                    stack[expert] = tensor
            result |= {f"{projection}_{part}": stack for part, stack in stacks.items()}
        return result

    def project(
        self, layer: torch.nn.Module, projection: str, expert: int, rows: torch.Tensor
    ) -> torch.Tensor:
        """One expert's ``wna16_linear``."""
        linear = self.linears[projection]
        packed, scale, zero, perm, chunks = (
            tensor_of(layer, f"{projection}_{part}")[expert] for part in _PARTS
        )
        return torch.ops.qcore_cpu.wna16_linear(  # type: ignore[no-any-return]
            rows,
            packed,
            scale,
            zero,
            perm,
            chunks,
            None,
            self.stored_bits,
            linear.in_features,
            linear.out_features,
            torch.float32,
        )


def _pack(
    linear: MPLinearLayerConfig, tensors: Mapping[str, torch.Tensor], stored_bits: int
) -> dict[str, torch.Tensor]:
    """One expert, with a permutation for all inputs wherever the layer has ``g_idx``."""
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
        K, slots = linear.in_features, parts["packed"].shape[1] * (32 // stored_bits)
        perm = torch.arange(slots, dtype=torch.int32)
        parts["perm"] = torch.where(perm < K, perm, -1).to(torch.int32)
    return parts

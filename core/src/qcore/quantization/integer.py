"""What the integer weight-only formats have in common: one description, one way to canonical.

GPTQ, AWQ and compressed-tensors store the same thing (codes of a few bits, a scale and perhaps a
zero point for each group of inputs); they differ in order and packing only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from qcore.errors import WeightError
from qcore.facts.scalar_type import ScalarType
from qcore.layers.base import dtype_name
from qcore.layers.mixed_precision import MPLinearLayerConfig
from qcore.numerics.packing import pack_int32
from qcore.quantization.base import CanonicalLinear

__all__ = ["IntegerWeights"]


@dataclass(frozen=True)
class IntegerWeights:
    """Unsigned codes with a scale a group, and zero points or the middle code as zero.

    Attributes:
        bits: of a code.
        group_size: inputs that share a scale; -1 for all.
        zero_points: whether the zero is stored; else it is ``2**(bits-1)``.
        has_g_idx: whether a table may assign inputs to groups.
        inputs: what each token's activations are rounded to, int8 or e4m3; None for not at all.
    """

    bits: int
    group_size: int
    zero_points: bool
    has_g_idx: bool = False
    inputs: torch.dtype | None = None

    def num_groups(self, K: int) -> int:
        """G."""
        return 1 if self.group_size == -1 else -(-K // self.group_size)

    def layer_config(self, K: int, N: int, act_dtype: torch.dtype) -> MPLinearLayerConfig:
        """The layer."""
        bias = 0 if self.zero_points else 1 << (self.bits - 1)
        return MPLinearLayerConfig(
            full_weight_shape=(K, N),
            partition_weight_shape=(K, N),
            weight_type=ScalarType.uint(self.bits, bias),
            act_type=self.inputs or act_dtype,
            # A group that no input fills up is one group of all: more kernels take that.
            group_size=-1 if self.group_size > K else self.group_size,
            zero_points=self.zero_points,
            has_g_idx=self.has_g_idx and self.num_groups(K) > 1,
            out_type=act_dtype,
        )

    def describe(self) -> str:
        """``4 bit g128 symmetric``."""
        group = "channel" if self.group_size == -1 else f"g{self.group_size}"
        symmetry = "asymmetric" if self.zero_points else "symmetric"
        order = ", activation order" if self.has_g_idx else ""
        inputs = f", {dtype_name(self.inputs)} activations" if self.inputs else ""
        return f"{self.bits} bit {group} {symmetry}{order}{inputs}"

    def canonical(
        self,
        K: int,
        N: int,
        act_dtype: torch.dtype,
        *,
        packed: torch.Tensor,
        scale: torch.Tensor,
        zeros: torch.Tensor | None,
        g_idx: torch.Tensor | None,
    ) -> CanonicalLinear:
        """The layer, in the simplest form that its values allow.

        Zero points that are all the middle code are left out, and so is a ``g_idx`` that sends
        input k to group ``k // group_size``: many kernels take neither.

        Args:
            K: inputs.
            N: outputs.
            act_dtype: of the layer's input and output.
            packed: int32 [N, ceil(K / pack)], codes packed along K.
            scale: float [N, G].
            zeros: uint8 [N, G], or None.
            g_idx: int32 [K], or None.

        Raises:
            WeightError: ``g_idx`` names a group that is not there; a symmetric layer has zero
                points off the middle.
        """
        middle = 1 << (self.bits - 1)
        if zeros is not None and bool((zeros == middle).all()):
            zeros = None
        if zeros is not None and not self.zero_points:
            raise WeightError(
                f"the config says symmetric, so that all zero points are {middle}, but they go "
                f"from {int(zeros.min())} to {int(zeros.max())}; "
                "the config must say asymmetric, or another checkpoint format"
            )
        g_idx = self._meaningful(g_idx, K)
        weights = replace(self, zero_points=zeros is not None, has_g_idx=g_idx is not None)
        tensors = {"weight_packed": packed.contiguous(), "weight_scale": scale.contiguous()}
        if zeros is not None:
            tensors["weight_zero_point"] = pack_int32(zeros, self.bits, dim=0)
        if g_idx is not None:
            tensors["weight_g_idx"] = g_idx
        return CanonicalLinear(weights.layer_config(K, N, act_dtype), tensors)

    def _meaningful(self, g_idx: torch.Tensor | None, K: int) -> torch.Tensor | None:
        if g_idx is None or self.num_groups(K) == 1:
            return None
        low, high = int(g_idx.min()), int(g_idx.max())
        if low < 0 or high >= self.num_groups(K):
            raise WeightError(
                f"g_idx goes from {low} to {high}; "
                f"the layer has the groups 0 to {self.num_groups(K) - 1}"
            )
        plain = torch.arange(K, device=g_idx.device) // self.group_size
        return None if torch.equal(g_idx.long(), plain) else g_idx.to(torch.int32).contiguous()

"""FP8 on any CPU: `CPUFP8ScaledMMLinearKernel`, `CPUFp8BlockScaledMMLinearKernel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.block_scaled_mm import Fp8BlockScaledMMLinearKernel
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import Fp8BlockScaledMMLinearLayerConfig, FP8ScaledMMLinearLayerConfig

from qcore_cpu import library
from qcore_cpu.wfp import Packed, Rounding, known_rounding, pack_e4m3, rounding_of

__all__ = ["CPUFP8ScaledMMLinearKernel", "CPUFp8BlockScaledMMLinearKernel"]


class CPUFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """e4m3 weights with tensor or channel scales; e4m3 or float activations; sums in float32.

    Weights stay bytes. Where the config says so, activations are rounded to e4m3 with the scales
    that it says, and multiplied as floats, which holds them exactly.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """Static, dynamic (tensor, token) or no activation scales."""
        rounding = rounding_of(config.activation_quant_key)
        if isinstance(rounding, str):
            return answer(rounding)
        return answer(
            rounding.group > 0
            and f"activation scales in groups of {rounding.group}; fp8_block layers have them"
        )

    def __init__(
        self,
        c: FP8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(c, layer_param_names)
        library.load()
        self.rounding = known_rounding(c.activation_quant_key)

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Four inputs of sixteen outputs side by side; a scale for each output."""
        N, _ = self.config.weight_shape
        scale = tensors["weight_scale"].reshape(-1, 1).expand(N, 1)
        found = pack_e4m3(tensors["weight"].t(), scale, -1)
        kept = {"weight": found.packed, "weight_scale": found.scale, "weight_chunks": found.chunks}
        wanted = (
            ("input_scale", self.rounding.static),
            ("input_scale_ub", bool(self.rounding.activations) and not self.rounding.static),
        )
        for name, is_wanted in wanted:
            if is_wanted and name in tensors:
                kept[name] = tensors[name]
        return kept

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided, and FP8 already."""
        if x.dtype == self.fp8_dtype:
            return super().apply_weights(layer, x, bias)
        weight, scale, input_scale, bound = self._get_layer_params(layer)
        chunks = tensor_of(layer, "weight_chunks")
        return self._multiply(x, weight, scale, chunks, bias, self.rounding, input_scale, bound)

    def apply_scaled_mm(
        self,
        *,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor | None,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
        output_shape: list[int],
    ) -> torch.Tensor:
        """The same for activations that are quantized already; ``B`` and ``Bs`` are packed."""
        _, K = self.config.weight_shape
        x = A.to(torch.float32) if A.dtype == self.fp8_dtype else A
        x = x if As is None else x * As.reshape(-1, 1)
        chunks = pack_e4m3(
            torch.zeros(1, K, dtype=torch.float8_e4m3fn), torch.ones(1, 1), -1
        ).chunks
        out = self._multiply(x, B, Bs, chunks, bias, Rounding())
        return out.reshape(*output_shape[:-1], out.shape[-1]).to(out_dtype)

    def _multiply(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        chunks: torch.Tensor,
        bias: torch.Tensor | None,
        rounding: Rounding,
        input_scale: torch.Tensor | None = None,
        bound: torch.Tensor | None = None,
    ) -> torch.Tensor:
        N, K = self.config.weight_shape
        return torch.ops.qcore_cpu.wfp_linear(  # type: ignore[no-any-return]
            x,
            weight,
            scale,
            None,
            chunks,
            bias,
            "e4m3",
            K,
            N,
            self.config.out_dtype,
            None,
            None,
            None,
            rounding.activations,
            rounding.group,
            input_scale if rounding.static else None,
            None if rounding.static else bound,
        )


class CPUFp8BlockScaledMMLinearKernel(Fp8BlockScaledMMLinearKernel):
    """e4m3 weights with a scale for each block, of any shape; as `CPUFP8ScaledMMLinearKernel`.

    Activations have static scales, scales for groups of inputs, or are not rounded.
    """

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library loads, if it is this machine that is asked about."""
        return library.supported()

    @classmethod
    def can_implement(cls, config: Fp8BlockScaledMMLinearLayerConfig) -> Answer:
        """Every config whose activations can be rounded."""
        rounding = rounding_of(config.activation_quant_key)
        return answer(rounding if isinstance(rounding, str) else None)

    def __init__(self, config: Fp8BlockScaledMMLinearLayerConfig) -> None:
        super().__init__(config)
        library.load()
        self.rounding = known_rounding(config.activation_quant_key)

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """As for channel scales, with a scale for each group of inputs of each output."""
        found = self._pack(tensors["weight"], tensors["weight_scale_inv"])
        kept = {
            "weight": found.packed,
            "weight_scale_inv": found.scale,
            "weight_perm": found.perm,
            "weight_chunks": found.chunks,
        }
        return kept | ({"input_scale": tensors["input_scale"]} if self.rounding.static else {})

    def _pack(self, weight: torch.Tensor, block_scale: torch.Tensor) -> Packed:
        bn, bk = self.config.weight_block
        scale = block_scale.repeat_interleave(bn, 0)[: weight.shape[0]]
        return pack_e4m3(weight, scale, bk, self.rounding.group)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the layer; ``x`` may be strided."""
        found = Packed(
            tensor_of(layer, "weight"),
            tensor_of(layer, "weight_scale_inv"),
            tensor_of(layer, "weight_perm"),
            tensor_of(layer, "weight_chunks"),
        )
        input_scale = tensor_of(layer, "input_scale") if self.rounding.static else None
        return self._multiply(x, found, bias, self.rounding, input_scale)

    def apply_block_scaled_mm(
        self, A: torch.Tensor, B: torch.Tensor, As: torch.Tensor | None, Bs: torch.Tensor
    ) -> torch.Tensor:
        """The same for activations that are quantized already; ``B`` and ``Bs`` are packed."""
        K, bk = self.config.weight_shape[1], self.config.weight_block[1]
        left = A.to(torch.float32)
        if As is not None:
            size = self.rounding.group if self.rounding.group > 0 else K
            left = left * As.reshape(-1, As.shape[-1]).repeat_interleave(size, 1)[:, :K]
        # Where the groups and chunks are depends on the shape alone.
        zeros = torch.zeros(1, K, dtype=torch.float8_e4m3fn)
        plan = self._pack(zeros, torch.ones(1, -(-K // bk)))
        return self._multiply(left, Packed(B, Bs, plan.perm, plan.chunks), None, Rounding())

    def _multiply(
        self,
        x: torch.Tensor,
        found: Packed,
        bias: torch.Tensor | None,
        rounding: Rounding,
        input_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        N, K = self.config.weight_shape
        return torch.ops.qcore_cpu.wfp_linear(  # type: ignore[no-any-return]
            x,
            *found,
            bias,
            "e4m3",
            K,
            N,
            self.config.out_dtype,
            None,
            None,
            None,
            rounding.activations,
            rounding.group,
            input_scale,
        )

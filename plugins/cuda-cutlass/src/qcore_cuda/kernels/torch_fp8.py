"""FP8 layers through `torch._scaled_mm`: what torch has, where nothing faster does a layer.

Three classes, by how torch's product takes scales. In all of them activations are quantized by this
plugin's ops where its library can be used, and otherwise by plain torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig
from qcore.numerics.tensor_core import FP8_SUM_UNIT

from qcore_cuda import library, ops
from qcore_cuda.kernels.padding import pad_to

__all__ = [
    "ChannelWiseTorchFP8ScaledMMLinearKernel",
    "PerTensorTorchFP8ScaledMMLinearKernel",
    "RowWiseTorchFP8ScaledMMLinearKernel",
]

_ALIGNMENT = 16  # of K and N, by torch._scaled_mm


class _TorchFP8ScaledMMLinearKernel(FP8ScaledMMLinearKernel):
    """What the three have in common: quantizing, padding, no rows at all."""

    accumulation = FP8_SUM_UNIT

    @classmethod
    def get_min_capability(cls) -> int:
        """Tensor cores of 8-bit floats: SM89."""
        return 89

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the device has such tensor cores and torch can use it."""
        supported, reason = super().is_supported(compute_capability)
        return answer(reason if not supported else _torch_refusal())

    @classmethod
    def can_implement(cls, config: FP8ScaledMMLinearLayerConfig) -> Answer:
        """e4m3fn on both sides; activations per tensor or per token."""
        key = config.activation_quant_key
        dtypes = {config.weight_quant_key.dtype} | ({key.dtype} if key is not None else set())
        group = key.scale.group_shape if key is not None else None
        return answer(
            key is None and "weight-only layers (activations as they are) are not implemented",
            dtypes != {torch.float8_e4m3fn} and "only float8_e4m3fn is implemented",
            group is not None
            and not (group.is_per_tensor() or group.is_per_token())
            and f"activation scales per {group}; per tensor and per token are implemented",
            cls._refuse(config),
        )

    @classmethod
    @abstractmethod
    def _refuse(cls, config: FP8ScaledMMLinearLayerConfig) -> str | None:
        """Why this way of taking scales does not do for ``config``."""

    def __init__(
        self,
        c: FP8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(c, layer_param_names)
        key = c.activation_quant_key
        assert key is not None
        self.static = key.scale.static
        self.per_token = not self.static and key.scale.group_shape.is_per_token()
        self.compiled_ops = library.unusable_here() is None and library.refusal() is None

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """[K', N'] by columns, padded to 16 both ways, and float32 scales: one, or N' of them."""
        # As bytes: torch fills and copies those on every device.
        rows = tensors["weight"].t().view(torch.uint8)
        rows = pad_to(pad_to(rows, 1, _ALIGNMENT), 0, _ALIGNMENT).contiguous()
        scale = tensors["weight_scale"].to(torch.float32).reshape(-1)
        if scale.numel() > 1:
            scale = pad_to(scale, 0, _ALIGNMENT, value=1.0)
        scale = self._pack_scale(scale, rows.shape[0])
        weight = rows.view(torch.float8_e4m3fn).t()
        return {**tensors, "weight": weight, "weight_scale": scale.contiguous()}

    def _pack_scale(self, scale: torch.Tensor, N: int) -> torch.Tensor:
        return scale

    def quantize_input(
        self,
        rows: torch.Tensor,
        input_scale: torch.Tensor | None,
        upper_bound: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By this plugin's op where it can be used."""
        scale = input_scale if self.static else None
        # A scale per tensor with a bound is left to torch: the op has no such argument.
        if self.compiled_ops and rows.is_cuda and (self.per_token or upper_bound is None):
            if scale is not None:
                scale = scale.reshape(1)
            return ops.scaled_fp8_quant(
                rows,
                scale,
                scale_ub=upper_bound if self.per_token else None,
                use_per_token_if_dynamic=self.per_token,
            )
        return super().quantize_input(rows, input_scale, None if self.static else upper_bound)

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
        """See the base class; the columns that pad B are cut off again."""
        assert As is not None  # `can_implement` refuses weight-only layers
        M, N = A.shape[0], output_shape[-1]
        if M == 0:
            return A.new_empty(output_shape, dtype=out_dtype)
        missing = B.shape[0] - A.shape[1]
        if missing:
            A = torch.nn.functional.pad(A.view(torch.uint8), (0, missing)).view(A.dtype)
        A = A.contiguous()
        if bias is not None and B.shape[1] != N:
            bias = torch.nn.functional.pad(bias, (0, B.shape[1] - N))
        out = self._multiply(A, B, out_dtype, As.to(torch.float32), Bs, bias)
        return (out if out.shape[1] == N else out[:, :N]).reshape(output_shape)

    @abstractmethod
    def _multiply(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The product of what is aligned, [M, N'] of ``out_dtype``."""


class PerTensorTorchFP8ScaledMMLinearKernel(_TorchFP8ScaledMMLinearKernel):
    """One scale for the weight and one for the input, static or dynamic."""

    @classmethod
    def _refuse(cls, config: FP8ScaledMMLinearLayerConfig) -> str | None:
        if _per_tensor(config):
            return None
        return "scales by channel or token; this kernel takes one for each side"

    def _multiply(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        # cuBLAS adds a bias to 16-bit results only.
        inside = bias is not None and out_dtype != torch.float32
        out = torch._scaled_mm(
            A,
            B,
            scale_a=As.reshape(()),
            scale_b=Bs.reshape(()),
            bias=bias.to(out_dtype) if inside and bias is not None else None,
            out_dtype=out_dtype,
            use_fast_accum=True,
        )
        return out if bias is None or inside else out + bias.to(out_dtype)


class RowWiseTorchFP8ScaledMMLinearKernel(_TorchFP8ScaledMMLinearKernel):
    """A scale for each row of both sides; results in bfloat16.

    One scale for a whole side is repeated for its rows.
    """

    @classmethod
    def get_min_capability(cls) -> int:
        """torch's row-wise product for SM90, and for later ones."""
        return 90

    @classmethod
    def _refuse(cls, config: FP8ScaledMMLinearLayerConfig) -> str | None:
        reasons = [
            _per_tensor(config) and "one scale for each side; this kernel takes one for each row",
            config.out_dtype != torch.bfloat16
            and f"the output is {str(config.out_dtype).removeprefix('torch.')}; torch's row-wise "
            "product has bfloat16 results only",
        ]
        return "; ".join(reason for reason in reasons if reason) or None

    def _pack_scale(self, scale: torch.Tensor, N: int) -> torch.Tensor:
        return scale.expand(N) if scale.numel() == 1 else scale

    def _multiply(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        return torch._scaled_mm(
            A,
            B,
            scale_a=As.reshape(-1, 1).expand(A.shape[0], 1).contiguous(),
            scale_b=Bs.reshape(1, -1),
            bias=bias.to(torch.bfloat16) if bias is not None else None,
            out_dtype=out_dtype,
            use_fast_accum=True,
        )


class ChannelWiseTorchFP8ScaledMMLinearKernel(_TorchFP8ScaledMMLinearKernel):
    """Scales by channel or token on either side: a product without scales in float32, then they."""

    @classmethod
    def _refuse(cls, config: FP8ScaledMMLinearLayerConfig) -> str | None:
        if _per_tensor(config):
            return "one scale for each side; this kernel takes scales by channel or token"
        return None

    def _multiply(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        out_dtype: torch.dtype,
        As: torch.Tensor,
        Bs: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        one = torch.ones((), dtype=torch.float32, device=A.device)
        out = torch._scaled_mm(
            A, B, scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True
        )
        out = out * As.reshape(-1, 1) * Bs.reshape(1, -1)
        if bias is not None:
            out = out + bias.to(torch.float32)
        return out.to(out_dtype)


def _per_tensor(config: FP8ScaledMMLinearLayerConfig) -> bool:
    """Whether both sides have one scale."""
    key = config.activation_quant_key
    return (
        config.weight_quant_key.scale.group_shape.is_per_tensor()
        and key is not None
        and (key.scale.static or key.scale.group_shape.is_per_tensor())
    )


def _torch_refusal() -> str | None:
    """Why torch cannot run a product on this machine's GPU, where this machine is weighed."""
    if not current_platform.target.is_current:
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is false: torch finds no GPU that it can use"
    return None

"""`AiterFp8ScaledMM`: what AITER's products of e4m3 have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from qcore.kernels.base import Answer
from qcore.kernels.scaled_mm import FP8ScaledMMLinearKernel, QuantFP8
from qcore.layers.float8 import FP8ScaledMMLinearLayerConfig

from qcore_rocm import aiter_package
from qcore_rocm.kernels.fp8_kind import device_dtype

__all__ = ["AiterFp8ScaledMM"]


class AiterFp8ScaledMM(FP8ScaledMMLinearKernel):
    """Activations are rounded to the device's e4m3, ``dtype``; a child multiplies."""

    functions: ClassVar[tuple[str, ...]]
    """Of the package, as `aiter_package.FUNCTIONS` names them."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the package has the functions, on this machine."""
        return aiter_package.supported(*cls.functions)

    def __init__(
        self,
        c: FP8ScaledMMLinearLayerConfig,
        layer_param_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(c, layer_param_names)
        assert c.activation_quant_key is not None
        self.fp8_dtype = self.dtype = device_dtype()
        # The same values as with e4m3fn: e4m3fnuz's largest in use is 224 instead of 448.
        self.quant_fp8 = QuantFP8(replace(c.activation_quant_key, dtype=self.dtype))

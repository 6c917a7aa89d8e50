"""`MPLinearKernel`: packed integer weights, activations of 16 or 32 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from qcore.kernels.base import LinearKernel, tensor_of
from qcore.kernels.parameters import replace_parameter
from qcore.layers.mixed_precision import MPLinearLayerConfig

__all__ = ["MPLinearKernel"]


class MPLinearKernel(LinearKernel[MPLinearLayerConfig]):
    """Base of the "mp" kernels.

    Args:
        c: the layer.
        w_q_param_name: the layer's attribute with the packed codes.
        w_s_param_name: ... with the scales.
        w_zp_param_name: ... with the packed zero points, if there may be any.
        w_gidx_param_name: ... with the group of each input, if there may be one.

    Raises:
        KernelRefusedError: `can_implement` refuses the config.
    """

    kernel_type: ClassVar[str] = "mp"

    def __init__(
        self,
        c: MPLinearLayerConfig,
        w_q_param_name: str = "weight_packed",
        w_s_param_name: str = "weight_scale",
        w_zp_param_name: str | None = "weight_zero_point",
        w_gidx_param_name: str | None = "weight_g_idx",
    ) -> None:
        super().__init__(c)
        self.w_q_name = w_q_param_name
        self.w_s_name = w_s_param_name
        self.w_zp_name = w_zp_param_name
        self.w_gidx_name = w_gidx_param_name

    def layer_names(self) -> Mapping[str, str]:
        """Canonical tensor name -> the layer's name for it, as given to the constructor."""
        names = {"weight_packed": self.w_q_name, "weight_scale": self.w_s_name}
        if self.w_zp_name is not None:
            names["weight_zero_point"] = self.w_zp_name
        if self.w_gidx_name is not None:
            names["weight_g_idx"] = self.w_gidx_name
        return names

    def _transform_param(
        self,
        layer: torch.nn.Module,
        name: str | None,
        fn: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Replace the parameter ``name``, where the layer has it, by ``fn`` of it."""
        if name is not None and getattr(layer, name, None) is not None:
            old = tensor_of(layer, name)
            replace_parameter(layer, name, fn(old).data)

    def _get_weight_params(
        self, layer: torch.nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Codes, scales, zero points or None, g_idx or None."""
        return (
            tensor_of(layer, self.w_q_name),
            tensor_of(layer, self.w_s_name),
            getattr(layer, self.w_zp_name, None) if self.w_zp_name else None,
            getattr(layer, self.w_gidx_name, None) if self.w_gidx_name else None,
        )

"""`MarlinDynamicLinearKernel`: Marlin's layout; few rows by its kernels, many by torch's product.

Marlin's kernels multiply with ``mma.sync``, which does not reach the peak of tensor cores from SM90
on. There it is faster, from some number of rows on, to make the weight whole in 16 bits for each
call. Both read one layout.
"""

from __future__ import annotations

import torch
from qcore.kernels.base import Answer, answer
from qcore.kernels.composite import CompositeLinearKernel
from qcore.layers.mixed_precision import MPLinearLayerConfig

from qcore_cuda.kernels.marlin import MarlinLinearKernel

__all__ = ["MarlinDequantizedPart", "MarlinDynamicLinearKernel"]


class MarlinDequantizedPart(MarlinLinearKernel):
    """The composite's part for many rows. Not declared by itself."""

    @classmethod
    def can_implement(cls, config: MPLinearLayerConfig) -> Answer:
        """What `MarlinLinearKernel` can, with inputs in their order and in 16 bits."""
        return answer(
            config.act_type.itemsize != 2 and "8-bit activations have Marlin's kernels alone",
            config.has_g_idx and "activation order has Marlin's kernels alone",
            MarlinLinearKernel.can_implement(config)[1],
        )

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Make the weight whole, multiply; ``x`` may be strided."""
        c = self.config
        held = self.held(layer, self.names)
        words, scales = held["weight"], held["weight_scale"]
        whole = torch.ops.qcore_cuda.marlin_dequantize.default(
            words,
            scales,
            held.get("zeros"),
            None,
            self.b_type_id,
            words.shape[0] * 16,
            scales.shape[1],
            self.out_dtype,
        )
        weight = whole[: c.in_features, : c.out_features].t()
        return torch.nn.functional.linear(x, weight, self.own_bias(bias))


class MarlinDynamicLinearKernel(CompositeLinearKernel[MPLinearLayerConfig]):
    """The layers of `MarlinLinearKernel` with activations in 16 bits and inputs in their order."""

    kernel_type = "mp"
    weight_rounding = "input"

    # Measured on an H200: benchmarks/results/cuda_marlin_crossing.json.
    parts = ((384, MarlinLinearKernel), (None, MarlinDequantizedPart))

    @classmethod
    def get_min_capability(cls) -> int:
        """SM90; before, Marlin's kernels reach the peak themselves."""
        return 90

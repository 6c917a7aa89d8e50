"""Weights in small floats, bfloat16 activations: qcore's kernels, Marlin's, bfloat16.

For `cuda_mixed.py --formats`, which says how it measures. ``floor`` counts the bytes that a format
has in a file (scales of MX formats are one byte). Errors are those of 16 rows against float64.
Blocks of FP8 have no class of Marlin's, but it has kernels for scales of 128 inputs, which are
called here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from cuda_timing import copies_of, relative_errors
from qcore.facts.quant_key import kFp8Static128BlockSym, kFp8StaticChannelSym
from qcore.facts.scalar_type import scalar_types
from qcore.kernels import process_weights
from qcore.layers import (
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.testing import make_layer
from qcore_cuda.kernels import marlin_floats, small_floats
from qcore_cuda.marlin.layout import pack_codes, scale_order

__all__ = ["FORMATS", "FORMAT_ROWS", "FormatLayer"]

FORMAT_ROWS = (1, 8, 16, 32, 64, 256, 2048)
BFLOAT = torch.bfloat16
WAYS = {"few rows": 0, "medium": 1, "many": 2}
Call = Callable[[int], Any]
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BLOCK = 128


class Format(NamedTuple):
    """What a format's layers are, and the classes for them."""

    bits: int
    ours: Any
    theirs: Any  # None: see `FormatLayer._marlin_blocks`
    config: Callable[[tuple[int, int]], Any]
    scales: str  # of groups, in a layer that is packed
    columns: str | None  # and of outputs


FORMATS = {
    "FP8": Format(
        8,
        small_floats.HopperFP8ScaledMMLinearKernel,
        marlin_floats.MarlinFP8ScaledMMLinearKernel,
        lambda s: FP8ScaledMMLinearLayerConfig(kFp8StaticChannelSym, None, s, BFLOAT, BFLOAT),
        "weight_ones",
        "weight_scale",
    ),
    "FP8-BLOCK": Format(
        8,
        small_floats.HopperFp8BlockScaledMMKernel,
        None,
        lambda s: Fp8BlockScaledMMLinearLayerConfig(kFp8Static128BlockSym, None, s, BFLOAT, BFLOAT),
        "weight_scale_inv",
        "weight_factor",
    ),
    "NVFP4": Format(
        4,
        small_floats.HopperNvFp4LinearKernel,
        marlin_floats.MarlinNvFp4LinearKernel,
        lambda s: NvFp4LinearLayerConfig(s, None, BFLOAT),
        "weight_scale",
        "weight_global_scale",
    ),
    "MXFP4": Format(
        4,
        small_floats.HopperMxFp4LinearKernel,
        marlin_floats.MarlinMxFp4LinearKernel,
        lambda s: MxFp4LinearLayerConfig(s, None, BFLOAT),
        "weight_scale",
        None,
    ),
    "MXFP8": Format(
        8,
        small_floats.HopperMxfp8LinearKernel,
        marlin_floats.MarlinMxfp8LinearKernel,
        lambda s: Mxfp8LinearLayerConfig(s, None, BFLOAT),
        "weight_scale",
        None,
    ),
}


class FormatLayer:
    """Random weights of one shape and format: each contender's layout of it, several times."""

    def __init__(self, name: str, N: int, K: int) -> None:
        self.N, self.K = N, K
        self.format = FORMATS[name]
        self.bits = self.format.bits
        self.tensors = self._tensors(name)
        of_scales = sum(
            t.numel() * t.element_size() for n, t in self.tensors.items() if n != "weight"
        )
        self.bytes = N * K * self.bits // 8 + of_scales
        self.copies = copies_of(self.bytes, 12)
        self.exact = self._exact(name)
        self.dense = [self.exact.to(BFLOAT) for _ in range(copies_of(2 * N * K, 6))]
        self.ours = self._layers(self.format.ours)
        self.forms: dict[str, Callable[[torch.Tensor], Call]] = {
            "qcore": lambda x: self._of_layers(self.ours, x),
            "bfloat16 @": lambda x: lambda i: torch.matmul(x, self.dense[i % len(self.dense)]),
        }
        try:
            self.forms["Marlin"] = self._marlin()
        except Exception as error:
            print(f"Marlin does not take part: {type(error).__name__}: {error}", flush=True)
        for way, number in WAYS.items():
            self.forms[way] = partial(self._way, number)

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        N, K = self.N, self.K
        if self.bits == 4:
            weight = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda")
        else:
            weight = torch.randn(N, K, device="cuda").to(torch.float8_e4m3fn)
        if name == "FP8":
            return {"weight": weight.t(), "weight_scale": torch.rand(N, 1, device="cuda") * 0.02}
        if name == "FP8-BLOCK":
            scale = torch.rand(-(-N // BLOCK), -(-K // BLOCK), device="cuda") * 0.02
            return {"weight": weight, "weight_scale_inv": scale}
        if name == "NVFP4":
            scale = torch.rand(N, K // 16, device="cuda").mul(447).add(1).to(torch.float8_e4m3fn)
            factor = torch.full((1,), 1e-5, device="cuda")
            return {"weight": weight, "weight_scale": scale, "weight_global_scale": factor}
        scale = torch.randint(118, 122, (N, K // 32), dtype=torch.uint8, device="cuda")
        return {"weight": weight, "weight_scale": scale}

    def _exact(self, name: str) -> torch.Tensor:
        """float32 [K, N]."""
        weight = self.tensors["weight"]
        if name == "FP8":
            return weight.float() * self.tensors["weight_scale"].t()
        if name == "FP8-BLOCK":
            return weight.t().float() * self._of_blocks().repeat_interleave(BLOCK, 0)[: self.K]
        if self.bits == 4:
            values = torch.tensor([*E2M1, *(-v for v in E2M1)], device="cuda")
            codes = torch.stack([weight & 15, weight >> 4], -1).flatten(-2)
            weight = values[codes.int()]
        scale = self.tensors["weight_scale"]
        if name == "NVFP4":
            scales = scale.float() * self.tensors["weight_global_scale"]
            return (weight * scales.repeat_interleave(16, 1)).t().contiguous()
        scales = torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
        return (weight.float() * scales).t().contiguous()

    def _of_blocks(self) -> torch.Tensor:
        """Scales of blocks for each output, [K / 128, N]."""
        return self.tensors["weight_scale_inv"].repeat_interleave(BLOCK, 0)[: self.N].t()

    def _layers(self, kernel_class: Any) -> list[tuple[Any, Any]]:
        config = self.format.config((self.N, self.K))
        layers = []
        for _ in range(self.copies):
            kernel = kernel_class.from_config(config)
            tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
            if kernel_class.kernel_type == "fp8":
                tensors["weight"] = self.tensors["weight"].t().clone().t()
            layer = make_layer(config, tensors, device="cuda")
            process_weights(kernel, layer)
            layers.append((kernel, layer))
        return layers

    def _marlin(self) -> Callable[[torch.Tensor], Call]:
        if self.format.theirs is None:
            return self._marlin_blocks()
        layers = self._layers(self.format.theirs)
        return lambda x: self._of_layers(layers, x)

    def _marlin_blocks(self) -> Callable[[torch.Tensor], Call]:
        codes = self.tensors["weight"].view(torch.uint8).t().contiguous()
        packed = pack_codes(codes, 8, False)
        words = [packed.clone() for _ in range(self.copies)]
        scale = scale_order(self._of_blocks().to(BFLOAT).contiguous(), True, False)
        scales = [scale.clone() for _ in range(self.copies)]
        workspace = torch.zeros(1024, dtype=torch.int32, device="cuda")
        rest = (*(None,) * 6, workspace, scalar_types.float8_e4m3fn.id, self.N, None)
        op = torch.ops.qcore_cuda.marlin_linear
        return lambda x: lambda i: op(x, words[i], scales[i], *rest)

    def _of_layers(self, layers: list[tuple[Any, Any]], x: torch.Tensor) -> Call:
        return lambda i: layers[i][0].apply_weights(layers[i][1], x)

    def _way(self, way: int, x: torch.Tensor) -> Call:
        op = torch.ops.qcore_cuda.small_float_linear

        def call(i: int) -> torch.Tensor:
            kernel, layer = self.ours[i]
            scales, columns = self.format.scales, self.format.columns
            column = columns and getattr(layer, columns)
            rest = (self.bits, kernel.group_size, self.K, self.N, False, way)
            return op(x, layer.weight, getattr(layer, scales), column, None, *rest)  # type: ignore[no-any-return]

        return call

    def contenders(self, M: int) -> dict[str, Call]:
        """Functions of the number of a copy."""
        x = torch.randn(M, self.K, device="cuda").to(BFLOAT)
        most = {"few rows": 64, "medium": 256}
        return {name: form(x) for name, form in self.forms.items() if most.get(name, M) >= M}

    def errors(self) -> dict[str, float]:
        """Relative to the norm of the result."""
        x = torch.randn(16, self.K, device="cuda").to(BFLOAT)
        return relative_errors(self.forms, x, x.double() @ self.exact.double())

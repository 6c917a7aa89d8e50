"""FP8, MXFP4 and MXFP8 weights, bfloat16 activations: qcore's kernels, Marlin's, bfloat16.

For `cuda_mixed.py --formats`, which says how it measures. ``floor`` counts the bytes that a format
has in a file (scales of MX formats are one byte). Errors are those of 16 rows against float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cuda_timing import Step, copies_of, medians_us, relative_errors
from qcore.facts.quant_key import kFp8StaticChannelSym
from qcore.kernels import process_weights
from qcore.layers import (
    FP8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
)
from qcore.testing import make_layer
from qcore_cuda.kernels import marlin_floats, small_floats

__all__ = ["FORMAT_ROWS", "format_products"]

FORMAT_ROWS = (1, 8, 16, 32, 64, 256, 2048)
BFLOAT = torch.bfloat16
WAYS = {"few rows": 0, "medium": 1, "many": 2}
Call = Callable[[int], Any]
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class FormatLayer:
    """Random weights of one shape and format: each contender's layout of it, several times."""

    def __init__(self, name: str, N: int, K: int) -> None:
        self.N, self.K = N, K
        self.bits = 4 if name == "MXFP4" else 8
        of_scales = 4 * N if name == "FP8" else N * K // 32
        self.bytes = N * K * self.bits // 8 + of_scales
        self.copies = copies_of(self.bytes, 12)
        self.tensors = self._tensors(name)
        self.exact = self._exact(name)
        self.dense = [self.exact.to(BFLOAT) for _ in range(copies_of(2 * N * K, 6))]
        config: Any
        ours: Any
        theirs: Any
        if name == "FP8":
            config = FP8ScaledMMLinearLayerConfig(
                kFp8StaticChannelSym, None, (N, K), BFLOAT, BFLOAT
            )
            ours = small_floats.HopperFP8ScaledMMLinearKernel
            theirs = marlin_floats.MarlinFP8ScaledMMLinearKernel
        elif name == "MXFP4":
            config = MxFp4LinearLayerConfig((N, K), None, BFLOAT)
            ours = small_floats.HopperMxFp4LinearKernel
            theirs = marlin_floats.MarlinMxFp4LinearKernel
        else:
            config = Mxfp8LinearLayerConfig((N, K), None, BFLOAT)
            ours = small_floats.HopperMxfp8LinearKernel
            theirs = marlin_floats.MarlinMxfp8LinearKernel
        self.ours = self._layers(ours, config)
        self.forms: dict[str, Callable[[torch.Tensor], Call]] = {
            "qcore": lambda x: self._of_layers(self.ours, x),
            "bfloat16 @": lambda x: lambda i: torch.matmul(x, self.dense[i % len(self.dense)]),
        }
        try:
            marlin = self._layers(theirs, config)
            self.forms["Marlin"] = lambda x: self._of_layers(marlin, x)
        except Exception as error:
            print(f"Marlin does not take part: {type(error).__name__}: {error}", flush=True)
        for way, number in WAYS.items():
            self.forms[way] = partial(self._way, number)

    def _tensors(self, name: str) -> dict[str, torch.Tensor]:
        N, K = self.N, self.K
        if name == "FP8":
            weight = torch.randn(N, K, device="cuda").to(torch.float8_e4m3fn).t()
            return {"weight": weight, "weight_scale": torch.rand(N, 1, device="cuda") * 0.02}
        scale = torch.randint(118, 122, (N, K // 32), dtype=torch.uint8, device="cuda")
        if name == "MXFP4":
            weight = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda")
        else:
            weight = torch.randn(N, K, device="cuda").to(torch.float8_e4m3fn)
        return {"weight": weight, "weight_scale": scale}

    def _exact(self, name: str) -> torch.Tensor:
        """float32 [K, N]."""
        weight, scale = self.tensors["weight"], self.tensors["weight_scale"]
        if name == "FP8":
            return weight.float() * scale.t()
        if name == "MXFP4":
            values = torch.tensor([*E2M1, *(-v for v in E2M1)], device="cuda")
            codes = torch.stack([weight & 15, weight >> 4], -1).flatten(-2)
            weight = values[codes.int()]
        scales = torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
        return (weight.float() * scales).t().contiguous()

    def _layers(self, kernel_class: Any, config: Any) -> list[tuple[Any, Any]]:
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

    def _of_layers(self, layers: list[tuple[Any, Any]], x: torch.Tensor) -> Call:
        return lambda i: layers[i][0].apply_weights(layers[i][1], x)

    def _way(self, way: int, x: torch.Tensor) -> Call:
        op = torch.ops.qcore_cuda.small_float_linear

        def call(i: int) -> torch.Tensor:
            kernel, layer = self.ours[i]
            fp8 = hasattr(layer, "weight_ones")
            scales = layer.weight_ones if fp8 else layer.weight_scale
            column = layer.weight_scale if fp8 else None
            rest = (self.bits, kernel.group_size, self.K, self.N, False, way)
            return op(x, layer.weight, scales, column, None, *rest)  # type: ignore[no-any-return]

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


def format_products(
    args: argparse.Namespace, shapes: tuple[tuple[int, int], ...], speed: float
) -> list[dict[str, Any]]:
    """Every format, shape and number of rows."""
    results: list[dict[str, Any]] = []
    for name in args.formats:
        for N, K in shapes:
            layer = FormatLayer(name, N, K)
            wrong = layer.errors()
            for M in args.rows:
                steps: dict[str, list[Step]] = {
                    contender: [partial(call, i) for i in range(layer.copies)]
                    for contender, call in layer.contenders(M).items()
                }
                times = medians_us(steps, args.rounds)
                floor = (layer.bytes + 2 * M * (N + K)) / speed * 1e6
                row = {"format": name, "N": N, "K": K, "M": M, "floor_us": floor, "us": times}
                row["of_floor"] = {n: floor / t for n, t in times.items()}
                results.append(row)
                line = "  ".join(f"{n} {t:.1f}" for n, t in times.items())
                print(f"{name} {N:6d} x {K:5d}  M {M:5d}  floor {floor:6.1f}  {line}", flush=True)
            print(f"{'':14s}  errors  " + "  ".join(f"{n} {e:.1e}" for n, e in wrong.items()))
            results.append({"format": name, "N": N, "K": K, "errors": wrong})
            del layer
            torch.cuda.empty_cache()
    return results

"""qcore's CPU kernels for small floats and codebooks, against what ran such layers before.

    python benchmarks/cpu_small_floats.py [--shape N K] [--threads N] [--dtype D ...] [--isa I ...]
                                          [--rows M ...] [--budget S] [--out FILE.json]

Beside each layer stand qcore's reference kernel for it (one call, as it takes long) and torch's
linear with a float weight of the input's dtype. Rounds are interleaved, the median is kept, and
there are as many copies of each weight as it takes to exceed the caches. The error is that of the
result against float64, with activations rounded as the config says, relative to its norm.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cpu_layers import activations
from cpu_linear import dense, measure, ours
from environment import environment
from qcore.facts.quant_key import (
    QuantKey,
    kFp8Dynamic128Sym,
    kFp8DynamicTokenSym,
    kFp8Static128BlockSym,
    kFp8StaticChannelSym,
    kMxfp8Dynamic,
    kNvfp4Dynamic,
)
from qcore.kernels import process_weights
from qcore.layers import (
    CodebookLinearLayerConfig,
    Fp8BlockScaledMMLinearLayerConfig,
    FP8ScaledMMLinearLayerConfig,
    MxFp4LinearLayerConfig,
    Mxfp8LinearLayerConfig,
    NvFp4LinearLayerConfig,
)
from qcore.numerics.dequantize import dequantize_weight
from qcore.reference import kernels as reference
from qcore.reference.linear import reference_linear
from qcore.testing import make_layer, random_tensors
from qcore_cpu import library
from roofline import Roofline


def layers_of(shape: tuple[int, int], dtype: torch.dtype) -> Iterator[tuple[str, Any, Any, bool]]:
    """A name, the config, the reference kernel, and whether the codebook is to count."""

    def fp8(key: QuantKey | None) -> FP8ScaledMMLinearLayerConfig:
        return FP8ScaledMMLinearLayerConfig(kFp8StaticChannelSym, key, shape, dtype, dtype)

    def codebook(bits: int, offset: bool) -> CodebookLinearLayerConfig:
        return CodebookLinearLayerConfig(shape, bits, 64, offset, dtype)

    block = Fp8BlockScaledMMLinearLayerConfig(
        kFp8Static128BlockSym, kFp8Dynamic128Sym, shape, dtype, dtype
    )
    yield "fp8 weights", fp8(None), reference.ReferenceFP8ScaledMMLinearKernel, False
    yield "fp8 token", fp8(kFp8DynamicTokenSym), reference.ReferenceFP8ScaledMMLinearKernel, False
    yield "fp8 128x128", block, reference.ReferenceFp8BlockScaledMMLinearKernel, False
    for name, key in (("mxfp8 weights", None), ("mxfp8", kMxfp8Dynamic)):
        config = Mxfp8LinearLayerConfig(shape, key, dtype)
        yield name, config, reference.EmulationMxfp8LinearKernel, False
    mxfp4 = MxFp4LinearLayerConfig(shape, None, dtype)
    yield "mxfp4 weights", mxfp4, reference.EmulationMxFp4LinearKernel, False
    for name, key in (("nvfp4 weights", None), ("nvfp4", kNvfp4Dynamic)):
        nvfp4 = NvFp4LinearLayerConfig(shape, key, dtype)
        yield name, nvfp4, reference.EmulationNvFp4LinearKernel, False
    yield "codebook 4 g64", codebook(4, False), reference.ReferenceCodebookLinearKernel, False
    yield "counting 4 g64", codebook(4, True), reference.ReferenceCodebookLinearKernel, True
    yield "codebook 8 g64", codebook(8, False), reference.ReferenceCodebookLinearKernel, False


def results_of(
    name: str, config: Any, kernel_class: Any, counts: bool, args: Any
) -> Iterator[dict[str, Any]]:
    """One result for each M and contender."""
    N, K = config.weight_shape

    def tensors_of(seed: int) -> dict[str, torch.Tensor]:
        tensors = random_tensors(config, seed=seed)
        if counts:
            tensors["weight_codebook"] = torch.arange(1 << config.bits, dtype=torch.float32)
        return tensors

    tensors = tensors_of(0)
    weight = dequantize_weight(config, tensors)
    contenders = [ours(name, config, tensors_of, isa, False) for isa in args.isas]
    contenders.append(dense(weight.to(config.input_dtype)))
    slow = kernel_class.from_config(config)
    layer = make_layer(config, dict(tensors))
    process_weights(slow, layer)
    for M in args.rows:
        x = torch.from_numpy(activations(M, K)).to(config.input_dtype)
        exact = reference_linear(
            config, tensors, x, compute_dtype=torch.float64, out_dtype=torch.float64
        )
        times = measure(contenders, M, args.budget)
        begin = time.perf_counter()
        slow.apply_weights(layer, x)
        times[kernel_class.__name__] = time.perf_counter() - begin
        sizes = {c.name: c.size for c in contenders}
        for contender, seconds in times.items():
            size, error = sizes.get(contender), None
            if contender != kernel_class.__name__:
                made = next(c for c in contenders if c.name == contender).result(M)
                difference = torch.from_numpy(made) - exact
                error = float(difference.norm() / exact.norm())
            yield {
                "layer": name,
                "N": N,
                "K": K,
                "M": M,
                "dtype": str(config.input_dtype).removeprefix("torch."),
                "contender": contender,
                "us": seconds * 1e6,
                "bits_per_weight": size and size * 8 / (N * K),
                "weight_gb_per_s": size and size / seconds / 1e9,
                "gop_per_s": 2 * M * N * K / seconds / 1e9,
                "relative_error": error,
            }


def table_row(row: dict[str, Any]) -> str:
    rate, bits = row["weight_gb_per_s"], row["bits_per_weight"]
    return (
        f"{row['layer']:<15} {row['dtype']:<9} M={row['M']:<4} {row['contender']:<62} "
        f"{row['us']:>10.1f} us {bits or 0:>5.2f} bits {rate or 0:>6.1f} GB/s "
        f"{row['gop_per_s']:>7.1f} GOP/s {row['relative_error'] or 0:>8.1e}"
    )


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[4096, 4096], metavar=("N", "K"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], dest="dtypes")
    parser.add_argument("--isa", nargs="+", default=None, dest="isas")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--layer", nargs="+", default=[""], help="only those with such a name")
    parser.add_argument("--budget", type=float, default=0.4, help="seconds for each contender")
    parser.add_argument("--out", type=Path, help="write JSON here")
    args = parser.parse_args()
    args.isas = args.isas or [library.isa()]
    torch.set_num_threads(args.threads)
    roofline = Roofline()
    limits = {
        "load": os.getloadavg()[0],
        "memory": roofline.bandwidth(args.threads),
        "operations": roofline.operations(args.threads),
    }
    print(f"memory {limits['memory'] / 1e9:.1f} GB/s, load {limits['load']}")
    results = []
    with torch.inference_mode():
        for dtype in args.dtypes:
            for layer in layers_of(tuple(args.shape), getattr(torch, dtype)):
                if not any(part in layer[0] for part in args.layer):
                    continue
                for row in results_of(*layer, args):
                    results.append(row)
                    print(table_row(row), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"environment": environment("qcore-cpu"), "limits": limits, "results": results}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""qcore's CPU kernels of experts against transformers' float experts, and against the memory.

    python benchmarks/cpu_experts.py [--quick] [--threads N] [--dtype D] [--out FILE.json]

Every contender gets the same tokens and the same random routing in the same run: rounds are
interleaved; the medians of wall and of processor time are kept, and the least wall time. The last
two say more where the machine does other work (see load_average). Each call goes to other experts
and there are copies of the layers, so that what a call reads is not in the caches. The bytes are
those of the weights of the experts that a call needs. "one op an expert" is the same products with
a loop over experts in Python, as the kernel was before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qcore
import torch
from cpu_linear import CACHE_BYTES
from environment import environment
from qcore.kernels import GroupedExpertsKernel, process_weights, tensor_of
from qcore.layers import ExpertsLayerConfig, MoeMxfp4LayerConfig, MoeWNA16LayerConfig
from qcore.numerics.dequantize import dequantize_expert
from qcore.testing import make_layer, random_tensors
from qcore_cpu.moe import CPUMoeWNA16Kernel
from roofline import Roofline

# name, scheme, E, J, H, I
LAYERS = [
    ("mixtral-like", "int4-g128", 8, 2, 1024, 3584),
    ("qwen3-like", "int4-g128", 64, 8, 2048, 768),
    ("gpt-oss-like", "mxfp4", 16, 4, 2880, 2880),
]
TOKENS = [1, 4, 64]
ROUTINGS = 37
Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def config_of(scheme: str, E: int, H: int, I: int, dtype: torch.dtype) -> ExpertsLayerConfig:  # noqa: E741
    """The layer."""
    if scheme == "mxfp4":
        return MoeMxfp4LayerConfig(E, H, I, dtype, "swigluoai", has_bias=True)
    return MoeWNA16LayerConfig(E, H, I, qcore.scalar_types.uint4b8, dtype, 128, False)


class OneOpAnExpert(CPUMoeWNA16Kernel, GroupedExpertsKernel[MoeWNA16LayerConfig]):
    """The loop over experts in Python."""

    apply = GroupedExpertsKernel.apply

    def project(
        self, layer: torch.nn.Module, projection: str, expert: int, rows: torch.Tensor
    ) -> torch.Tensor:
        """One ``wna16_linear``."""
        parts = ("packed", "scale", "zero", "perm", "chunks")
        weights = (tensor_of(layer, f"{projection}_{part}")[expert] for part in parts)
        K, N = self.config.shape(projection)
        return torch.ops.qcore_cpu.wna16_linear(
            rows, *weights, None, self.stored_bits, K, N, torch.float32
        )


def quantized(kernel_class: Any, config: ExpertsLayerConfig, copies: int) -> tuple[list[Step], int]:
    """Steps over ``copies`` layers, and the bytes of one."""
    tensors, steps, size = random_tensors(config), [], 0
    for _ in range(copies):
        layer = make_layer(config, {name: t.clone() for name, t in tensors.items()})
        kernel = kernel_class.from_config(config)
        process_weights(kernel, layer)
        size = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
        steps.append(
            lambda x, weights, ids, k=kernel, m=layer: k.apply(m, x, weights.to(x.dtype), ids)
        )
    return steps, size


def experts_of_transformers(
    config: ExpertsLayerConfig, dtype: torch.dtype
) -> dict[str, tuple[list[Step], int]]:
    """The modules of experts of transformers, with the dequantized weights, by implementation."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    E, H, I = config.num_experts, config.hidden_size, config.intermediate_size  # noqa: E741
    is_gpt_oss = config.activation == "swigluoai"
    fields = SimpleNamespace(
        num_experts=E,
        num_local_experts=E,
        hidden_size=H,
        moe_intermediate_size=I,
        intermediate_size=I,
        hidden_act="silu",
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
        _experts_implementation="eager",
    )
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    module = (GptOssExperts if is_gpt_oss else Qwen3MoeExperts)(fields).requires_grad_(False)
    torch.set_default_dtype(old)
    tensors = random_tensors(config)
    for e in range(E):
        w13, w2 = (dequantize_expert(config, tensors, name, e) for name in ("w13", "w2"))
        if is_gpt_oss:
            module.gate_up_proj[e, :, ::2] = w13[:I].t()
            module.gate_up_proj[e, :, 1::2] = w13[I:].t()
            module.gate_up_proj_bias[e, ::2] = tensors["w13_bias"][e, :I]
            module.gate_up_proj_bias[e, 1::2] = tensors["w13_bias"][e, I:]
            module.down_proj[e] = w2.t()
            module.down_proj_bias[e] = tensors["w2_bias"][e]
        else:
            module.gate_up_proj[e], module.down_proj[e] = w13, w2
    size = sum(p.nbytes for p in module.parameters())

    def step_of(implementation: str) -> Step:
        def step(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            module.config._experts_implementation = implementation
            return module(x.to(dtype), ids, weights.to(dtype))

        return step

    name = f"transformers {str(dtype).removeprefix('torch.')}"
    return {f"{name}, {i}": ([step_of(i)], size) for i in ("eager", "grouped_mm")}


def routings(E: int, J: int, T: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(weights, ids), each token to different experts, another each time."""
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(ROUTINGS):
        ids = torch.rand((T, E), generator=random).argsort(1)[:, :J]
        found.append((torch.rand((T, J), generator=random).softmax(-1), ids))
    return found


def measure(
    contenders: dict[str, list[Step]], x: torch.Tensor, routed: list[Any], budget: float
) -> dict[str, tuple[float, float, float]]:
    """Median and least seconds of a step, and median of the processor's, by contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for steps in contenders.values():
            for turn, step in enumerate(steps[:3]):
                step(x, *routed[turn])
        start, turn = time.perf_counter(), 0
        while time.perf_counter() - start < budget or turn < 7:
            for name, steps in contenders.items():
                step = steps[turn % len(steps)]
                begin, processor = time.perf_counter(), time.process_time()
                step(x, *routed[turn % len(routed)])
                busy[name].append(time.process_time() - processor)
                times[name].append(time.perf_counter() - begin)
            turn += 1
    middle = statistics.median
    return {name: (middle(t), min(t), middle(busy[name])) for name, t in times.items()}


def rows_of(layer: tuple[Any, ...], dtype: torch.dtype, budget: float) -> list[dict[str, Any]]:
    """One result for each number of tokens and contender."""
    name, scheme, E, J, H, I = layer  # noqa: E741
    config = config_of(scheme, E, H, I, dtype)
    kernel_class = qcore.select(config).kernel_class
    size = quantized(kernel_class, config, 1)[1]
    copies = max(1, -(-CACHE_BYTES // size))
    found = {kernel_class.__name__: quantized(kernel_class, config, copies)}
    if scheme == "int4-g128":
        found["one op an expert"] = quantized(OneOpAnExpert, config, copies)
    for float_dtype in (torch.float32, torch.bfloat16):
        found |= experts_of_transformers(config, float_dtype)
    tensors, results = random_tensors(config), []
    from qcore.reference.moe import ReferenceMoeMxfp4Kernel, ReferenceMoeWNA16Kernel

    exact_class = ReferenceMoeMxfp4Kernel if scheme == "mxfp4" else ReferenceMoeWNA16Kernel
    exact_kernel, exact_layer = exact_class(config), make_layer(config, tensors)
    for T in TOKENS:
        x, routed = torch.randn(T, H).to(dtype), routings(E, J, T)
        exact = exact_kernel.apply(exact_layer, x.float(), *routed[0])
        share = statistics.mean(len(ids.unique()) / E for _, ids in routed)
        seconds = measure({n: steps for n, (steps, _) in found.items()}, x, routed, budget)
        for contender, (steps, size) in found.items():
            median, least, processor = seconds[contender]
            with torch.inference_mode():
                off = (steps[0](x, *routed[0]).float() - exact).norm() / exact.norm()
            results.append(
                {
                    "layer": name,
                    "scheme": scheme,
                    "experts": E,
                    "of_a_token": J,
                    "H": H,
                    "I": I,
                    "tokens": T,
                    "contender": contender,
                    "us": median * 1e6,
                    "us_least": least * 1e6,
                    "us_processor": processor * 1e6,
                    "weight_gb_per_s": size * share / median / 1e9,
                    "gflop_per_s": 6 * T * J * H * I / median / 1e9,
                    "relative_error": float(off),
                }
            )
    return results


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--out", type=Path, help="write JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limit = Roofline().bandwidth(args.threads)
    print(f"memory: {limit / 1e9:.1f} GB/s with {args.threads} threads")
    heading = f"{'layer':<13} {'tokens':>6}  {'contender':<34}"
    print(f"{heading} {'us':>9} {'least':>9} {'cpu':>9} {'GB/s':>7} {'GFLOP/s':>8} {'error':>8}")
    results = []
    for layer in LAYERS:
        for row in rows_of(layer, getattr(torch, args.dtype), 0.5 if args.quick else 3.0):
            results.append(row)
            print(
                f"{row['layer']:<13} {row['tokens']:>6}  {row['contender']:<34} {row['us']:>9.0f}"
                f" {row['us_least']:>9.0f} {row['us_processor']:>9.0f}"
                f" {row['weight_gb_per_s']:>7.1f} {row['gflop_per_s']:>8.1f}"
                f" {row['relative_error']:>8.1e}",
                flush=True,
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "environment": environment("qcore-cpu", "transformers"),
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "dtype": args.dtype,
            "memory_gb_per_s": limit / 1e9,
            "results": results,
        }
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

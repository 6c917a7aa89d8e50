"""Compile every Triton kernel for architectures that need not be here, as the ops launch them.

Run as a program: ``python triton_aot.py cuda:80 hip:gfx950``. Ops are called on CPU tensors with
launches recorded in place of run; each launch is then compiled, to the end. It must not be run with
``TRITON_INTERPRET``. Prints a line of JSON for each launch.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.float8_e4m3fn: "*fp8e4nv",
}


class Launches(list[tuple[Any, dict[str, Any], dict[str, Any]]]):
    """Stands in for running: remembers kernel, arguments and options."""

    def __enter__(self) -> Launches:
        from triton.runtime.jit import JITFunction

        self.run = JITFunction.run

        def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            names = kernel.arg_names
            named = {k: v for k, v in kwargs.items() if k in names}
            bound = inspect.signature(kernel.fn).bind(*args, **named)
            options = {k: v for k, v in kwargs.items() if k not in names}
            self.append((kernel, dict(bound.arguments), options))

        JITFunction.run = record
        return self

    def __exit__(self, *error: object) -> None:
        from triton.runtime.jit import JITFunction

        JITFunction.run = self.run


def compile_launch(kernel: Any, args: dict[str, Any], options: dict[str, Any], target: Any) -> Any:
    from triton.compiler import ASTSource, compile

    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(kernel.params):
        value = args[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
        else:
            signature[parameter.name] = "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return compile(source, target=target, options=options)


def calls(fp8: bool) -> Iterator[str]:
    """Every kind of launch; yields what comes next."""
    from qcore.triton import ops

    e4m3, bf16, f16 = torch.float8_e4m3fn, torch.bfloat16, torch.float16
    N, K = 256, 512
    scale, bias = torch.ones(N), torch.ones(N, dtype=bf16)
    for M in (1, 200):
        x = torch.ones(M, K, dtype=bf16)
        w8 = torch.ones(N, K, dtype=torch.int8)
        adj = torch.ones(N, dtype=torch.int32)
        one, zero = torch.ones(1), torch.ones(1, dtype=torch.int32)
        yield f"int8 M={M}"
        ops.int8_linear(x, w8, scale, bias, None, None, None, bf16)
        yield f"int8 azp M={M}"
        ops.int8_linear(x, w8, one, None, None, None, adj, torch.float32)
        if M == 1:
            yield "int8 static azp"
            ops.int8_linear(x, w8, scale, bias, one, zero, adj, f16)
        if fp8:
            yield f"fp8_block M={M}"
            blocks = torch.ones(2, 4)
            ops.fp8_block_linear(x, w8.to(e4m3), blocks, bias, 128, 128, bf16)
            if M == 200:
                yield "fp8_block 64x32"
                blocks = torch.ones(4, 16)
                ops.fp8_block_linear(x, w8.to(e4m3), blocks, bias, 64, 32, f16)
        four = torch.ones(K // 2, N, dtype=torch.uint8)
        eight = torch.ones(K, N, dtype=torch.uint8)
        for dtype in (bf16, f16):
            x = torch.ones(M, K, dtype=dtype)
            packed: list[tuple[Any, ...]] = [
                (four, torch.ones(4, N, dtype=dtype), None, None, None, "int4", 8, 128, ""),
                (four, torch.ones(16, N), eight[:16], None, None, "int4", 0, 32, ""),
                (eight, torch.ones(1, N), None, None, None, "int8", 128, 0, ""),
                (four, eight[:32], None, scale, one, "e2m1", 0, 16, "nvfp4"),
                (four, eight[:16], None, scale, None, "e2m1", 0, 32, "mxfp4"),
                (eight, eight[:16], None, scale, None, "e4m3", 0, 32, "mxfp8"),
            ]
            for codes, scales, zeros, factor, rows, kind, z, group, rounding in packed:
                yield f"{kind} g{group} {rounding} {dtype} M={M}"
                ops.packed_linear(
                    x, codes, scales, zeros, factor, rows, bias, kind, z, group, rounding, N, dtype
                )
                if rounding:
                    yield f"{kind} g{group} as they are {dtype} M={M}"
                    ops.packed_linear(
                        x, codes, scales, zeros, factor, None, None, kind, z, group, "", N, dtype
                    )


def main(targets: list[str]) -> None:
    from triton.backends.compiler import GPUTarget

    for text in targets:
        backend, _, arch = text.partition(":")
        cuda = backend == "cuda"
        target = GPUTarget(backend, int(arch) if cuda else arch, 32 if cuda else 64)
        if not cuda and arch.startswith("gfx1"):
            target = GPUTarget(backend, arch, 32)
        fp8 = int(arch) >= 89 if cuda else arch == "gfx950"
        seen = set()
        with Launches() as launches:
            for name in calls(fp8):
                launches.append((name, {}, {}))
        name = ""
        for kernel, args, options in launches:
            if isinstance(kernel, str):
                name = kernel
                continue
            plain = {k: v.dtype if isinstance(v, torch.Tensor) else v for k, v in args.items()}
            key = (kernel.fn.__name__, str(plain), str(options))
            if key in seen:
                continue
            seen.add(key)
            line = {"target": text, "kernel": kernel.fn.__name__, "launch": name}
            try:
                built = compile_launch(kernel, args, options, target)
                line["shared"] = built.metadata.shared
                assembly = built.asm.get("ptx") or built.asm.get("amdgcn") or ""
                line["mma"] = sorted({w for w in _MMA if w in assembly})
                if not cuda:
                    spilled = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", assembly)
                    assert spilled, "the assembly does not say what is spilled"
                    line["spills"] = sum(map(int, spilled))
            except Exception as error:  # a compiler may raise anything
                line["error"] = f"{type(error).__name__}: {str(error)[-300:]}"
            print(json.dumps(line), flush=True)


_MMA = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma", "v_wmma")

if __name__ == "__main__":
    main(sys.argv[1:])

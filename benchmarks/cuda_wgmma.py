"""What a warpgroup of SM90 can do beside wgmma: the limit of products with packed weights.

    python benchmarks/cuda_wgmma.py OUT.json            on a GPU, with nvcc

Weights that become 16-bit floats in registers are made by the same warps that have them multiplied.
This measures, for a number of other instructions beside each wgmma, the cycles from one wgmma to
the next of a processor with two warpgroups, each of which makes what it multiplies next while its
wgmma before is under way. Nothing is read from memory. A round of the loop, of two wgmma, has some
ten instructions of its own. Without others it is the tensor cores' peak: ``n / 2`` cycles for
64 x n x 16 products of bfloat16.

The instructions that are taken in turn:

    twice     shift, and-or, subtract, multiply: four codes' way to two pairs of weights
    at once   shift, and, multiply-add
    logic     and-or alone
    integer   32-bit multiply-adds alone
    float     float32 multiply-adds alone: the end of a product with scales by block
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

WIDTHS = (64, 128)
BESIDE = (0, 8, 16, 20, 24, 28, 32)
SHIFT = 'asm volatile("shf.r.wrap.b32 %0, %0, %1, %2;" : "+r"(t[{i}]) : "r"(t[12]), "r"(s));'
AND_OR = 'asm volatile("lop3.b32 %0, %0, 983055, %1, 0xea;" : "+r"(t[{i}]) : "r"(c));'
AND = 'asm volatile("and.b32 %0, %0, 983055;" : "+r"(t[{i}]));'
SUBTRACT = 'asm volatile("sub.rn.bf16x2 %0, %0, %1;" : "+r"(t[{i}]) : "r"(c));'
MULTIPLY = 'asm volatile("mul.rn.bf16x2 %0, %0, %1;" : "+r"(t[{i}]) : "r"(s));'
BOTH = 'asm volatile("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(t[{i}]) : "r"(s), "r"(c));'
INTEGER = 'asm volatile("mad.lo.u32 %0, %0, %1, %1;" : "+r"(t[{i}]) : "r"(s));'
FLOAT = 'asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(f[{i}]) : "f"(f[12]));'
KINDS = {
    "twice": (SHIFT, AND_OR, SUBTRACT, MULTIPLY),
    "at once": (SHIFT, AND, BOTH),
    "logic": (AND_OR,),
    "integer": (INTEGER,),
    "float": (FLOAT,),
}
GROUPS, LOOPS = 2, 20000
CHAINS = 11  # that depend on nothing but themselves, each of all instructions of a kind

KERNEL = """
__global__ void {name}(long long* cycles, int loops, unsigned c, unsigned s, unsigned* sink) {{
  extern __shared__ __align__(1024) unsigned char shared[];
  auto* const words = (unsigned*)shared;
  for (int i = threadIdx.x; i < 16384; i += blockDim.x) words[i] = 0x3f803f80u + i % 127;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  const unsigned long long b = (address & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
  float d[{registers}], f[13];
  unsigned a[4], t[13];
  for (int i = 0; i < {registers}; ++i) d[i] = 0;
  for (int i = 0; i < 4; ++i) a[i] = 0x3f803f80u + threadIdx.x * 0x10001u;
  for (int i = 0; i < 13; ++i) f[i] = t[i] = threadIdx.x * (i + 1);
  __syncthreads();
  const long long start = clock64();
  for (int i = 0; i < loops; ++i) {{
    {fence}
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    {products}
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    {beside}
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
  }}
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  {fence}
  __syncthreads();
  const long long end = clock64();
  float sum = 0;
  unsigned bits = 0;
  for (int i = 0; i < {registers}; ++i) sum += d[i];
  for (int i = 0; i < 13; ++i) bits += t[i] + (unsigned)f[i];
  if (sum == 1.2345f) *sink = bits;  // never, which the compiler cannot know
  if (threadIdx.x == 0) cycles[blockIdx.x] = end - start;
}}
extern "C" double run_{name}(int groups, int loops) {{
  constexpr int kBlocks = 132, kShared = 200 * 1024;
  long long *cycles, found[kBlocks];
  unsigned* sink;
  cudaMalloc(&cycles, sizeof(found));
  cudaMalloc(&sink, sizeof(unsigned));
  cudaFuncSetAttribute({name}, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  for (int i = 0; i < 2; ++i) {{
    {name}<<<kBlocks, 128 * groups, kShared>>>(cycles, loops, 0x43004300u, 4, sink);
  }}
  cudaMemcpy(found, cycles, sizeof(found), cudaMemcpyDeviceToHost);
  cudaFree(cycles);
  cudaFree(sink);
  if (const cudaError_t error = cudaGetLastError()) return -static_cast<double>(error);
  double sum = 0;
  for (const long long one : found) sum += one;
  return sum / kBlocks / loops / groups / {count};
}}
"""


def source(name: str, n: int, count: int, kind: str) -> str:
    """A kernel with ``count`` instructions of a kind beside each of two wgmma of 64 x n x 16."""
    registers, together = n // 2, 2
    sums = ", ".join(f"%{i}" for i in range(registers))
    left = ", ".join(f"%{registers + i}" for i in range(4))
    bound = ", ".join(f'"+f"(d[{i}])' for i in range(registers))
    operands = ", ".join(f'"r"(a[{i}])' for i in range(4))
    product = (
        f'asm volatile("wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{sums}}}, '
        f'{{{left}}}, %{registers + 4}, 1, 1, 1, 0;" : {bound} : {operands}, "l"(b + {{at}}));'
    )
    beside = islice(cycle(KINDS[kind]), together * count)
    return KERNEL.format(
        name=name,
        registers=registers,
        count=together,
        fence="".join(f'asm volatile("" : "+f"(d[{i}]) :: "memory");' for i in range(registers)),
        products="\n    ".join(product.replace("{at}", str(2 * i)) for i in range(together)),
        beside="\n    ".join(step.format(i=i % CHAINS) for i, step in enumerate(beside)),
    )


def build(cases: list[tuple[str, int, int, str]], folder: Path) -> ctypes.CDLL:
    """All kernels, compiled."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("nvcc is not on the PATH; it comes with the CUDA toolkit")
    file, library = folder / "wgmma.cu", folder / "wgmma.so"
    file.write_text("#include <cuda_runtime.h>\n" + "".join(source(*c) for c in cases))
    flags = ["-O3", "-std=c++17", "-shared", "-Xcompiler=-fPIC", "--diag-suppress=177"]
    architecture = "--generate-code=arch=compute_90a,code=sm_90a"
    subprocess.run([nvcc, *flags, architecture, str(file), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="write JSON here")
    parser.add_argument("--compile", action="store_true", help="compile, run nothing")
    args = parser.parse_args()
    cases = [
        (f"k{n}_{count}_{kind.replace(' ', '_')}", n, count, kind)
        for n in WIDTHS
        for kind in KINDS
        for count in BESIDE
        if count or kind == "twice"
    ]
    with tempfile.TemporaryDirectory(prefix="qcore-wgmma-") as folder:
        library = build(cases, Path(folder))
        if args.compile:
            return
        import torch
        from environment import environment

        results = []
        for name, n, count, kind in cases:
            run = getattr(library, f"run_{name}")
            run.restype = ctypes.c_double
            found = run(GROUPS, LOOPS)
            if found < 0:
                sys.exit(f"{name}: CUDA error {-found:.0f}")
            results.append({"n": n, "beside": count, "kind": kind, "cycles": round(found, 2)})
            print(f"n {n:4d}  {count:3d} {kind:8s}  {found:6.1f} cycles", flush=True)
    document = {
        "environment": environment("qcore-cuda"),
        "device": torch.cuda.get_device_name(),
        "results": results,
    }
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

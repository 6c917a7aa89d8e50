"""What the processor of this machine can execute, in the names that targets use."""

from __future__ import annotations

import platform
import sys
from functools import lru_cache
from pathlib import Path

__all__ = ["CPU_FEATURES", "CPU_LEVELS", "cpu_vendor", "current_cpu_features"]

CPU_FEATURES: dict[str, str] = {
    "avx2": "256-bit integer SIMD",
    "fma": "fused multiply-add",
    "f16c": "float16 conversion",
    "avx_vnni": "8-bit dot products on 256 bits",
    "avx512f": "512-bit SIMD",
    "avx512bw": "512-bit SIMD on bytes and words",
    "avx512vl": "AVX-512 instructions on shorter vectors",
    "avx512dq": "AVX-512 on double and quad words",
    "avx512_vnni": "8-bit dot products on 512 bits",
    "avx512_vbmi": "byte permutes on 512 bits",
    "avx512_bf16": "bfloat16 dot products",
    "avx512_fp16": "float16 arithmetic",
    "amx_tile": "matrix tiles",
    "amx_int8": "8-bit matrix tiles",
    "amx_bf16": "bfloat16 matrix tiles",
    "neon": "128-bit SIMD of ARM",
    "dotprod": "8-bit dot products of ARM",
    "i8mm": "8-bit matrix products of ARM",
    "sve": "scalable vectors of ARM",
    "amd": "made by AMD",
    "intel": "made by Intel",
}
"""Every CPU feature that a kernel may require, with what it is."""

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")

CPU_LEVELS: dict[str, tuple[str, ...]] = {
    "avx2": _AVX2,
    "avx_vnni": (*_AVX2, "avx_vnni"),
    "avx512": _AVX512,
    "avx512f": _AVX512,
    "avx512_vnni": (*_AVX512, "avx512_vnni"),
    "avx512_bf16": (*_AVX512, "avx512_vnni", "avx512_bf16"),
    "avx512_fp16": (*_AVX512, "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    "amx": (*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "amx_int8": (*_AVX512, "avx512_vnni", "amx_tile", "amx_int8"),
    "amx_bf16": (*_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"),
    "zen3": (*_AVX2, "amd"),
    "zen4": (*_AVX512, "avx512_vnni", "avx512_vbmi", "avx512_bf16", "amd"),
    "neon": ("neon",),
    "i8mm": ("neon", "dotprod", "i8mm"),
}
"""What a name after ``cpu:`` implies: no processor has VNNI without what came before it."""

# /proc/cpuinfo and sysctl spell some of them in their own way.
_ALIASES = {"asimd": "neon", "asimddp": "dotprod", "avx512vbmi": "avx512_vbmi"}


def _proc_cpuinfo() -> tuple[set[str], str]:
    """Flags and vendor from the first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return set(), ""
    flags: set[str] = set()
    vendor = ""
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
        elif key.strip() == "vendor_id":
            vendor = value.strip()
    return flags, vendor


@lru_cache(maxsize=1)
def cpu_vendor() -> str:
    """``amd``, ``intel`` or ``""`` when it cannot be told."""
    vendor = _proc_cpuinfo()[1] or platform.processor()
    if "AMD" in vendor:
        return "amd"
    return "intel" if "Intel" in vendor else ""


@lru_cache(maxsize=1)
def current_cpu_features() -> frozenset[str]:
    """The features of `CPU_FEATURES` that this machine has. Never raises."""
    flags, _ = _proc_cpuinfo()
    found = {_ALIASES.get(flag, flag) for flag in flags} & set(CPU_FEATURES)
    if not flags:
        found |= _features_by_torch()
    if vendor := cpu_vendor():
        found.add(vendor)
    return frozenset(found)


def _features_by_torch() -> set[str]:
    """What torch found out, where the system has no /proc/cpuinfo."""
    import torch

    if platform.machine().lower() in ("arm64", "aarch64"):
        # Every 64-bit ARM has NEON; Apple's have had the dot products since the M1.
        return {"neon", "dotprod"} if sys.platform == "darwin" else {"neon"}
    level = torch.backends.cpu.get_cpu_capability().lower()
    return set(CPU_LEVELS.get(level, ()))

"""DeepGEMM's product of FP8 blocks, as one op, for the plugins that have a kernel of it.

The package ``deep_gemm`` is DeepSeek's, or SGLang's build of it (``sgl-deep-gemm`` on PyPI). What
is called is ``deep_gemm.fp8_gemm_nt``, which DeepGEMM has since its second version and the build
has as of 0.2: it takes both sides by rows, each with its float32 scales, and writes bfloat16.
Nothing imports the package before it is asked for.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module

import torch

__all__ = ["deep_gemm_fault", "fp8_gemm_nt"]


@cache
def deep_gemm_fault(not_installed: str | None = None) -> str | None:
    """Why ``deep_gemm.fp8_gemm_nt`` cannot be called as it is here; None where it can.

    Args:
        not_installed: what to say where there is no such package; None for what importing raised.
    """
    try:
        package = import_module("deep_gemm")
    except Exception as error:  # it compiles and looks for CUDA when it is imported
        if not_installed is not None and isinstance(error, ModuleNotFoundError):
            return not_installed
        return f"importing deep_gemm raised {type(error).__name__}: {error}"
    function = getattr(package, "fp8_gemm_nt", None)
    if function is None:
        return "this deep_gemm has no fp8_gemm_nt; version 2 and later have it"
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of a compiled function nothing can be read
        return None
    if names[:3] != ["a", "b", "d"]:
        return f"deep_gemm.fp8_gemm_nt takes ({', '.join(names)}); (a, b, d, ...) was expected"
    return None


@torch.library.custom_op("qcore_deep_gemm::fp8_gemm_nt", mutates_args=())
def fp8_gemm_nt(
    a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    """``deep_gemm.fp8_gemm_nt`` of a [M, K] and b [N, K], bytes of e4m3: bfloat16 [M, N]."""
    # Bytes come in: torch copies and compares those on every device.
    out = a.new_empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16)
    if out.numel():
        left, right = (a.view(torch.float8_e4m3fn), a_scale), (b.view(torch.float8_e4m3fn), b_scale)
        import_module("deep_gemm").fp8_gemm_nt(left, right, out)
    return out


@fp8_gemm_nt.register_fake
def _(
    a: torch.Tensor, a_scale: torch.Tensor, b: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16)

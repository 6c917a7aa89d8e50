"""What the ops share: their registration, and checks of arguments in words."""

from __future__ import annotations

import torch
from qcore.errors import ConfigError
from qcore.kernels.op_library import OpLibrary

from qcore_rocm.launching import FLOAT_TYPES

Tensor = torch.Tensor

FLOAT_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
TILE_COLUMNS = 64

OPS = OpLibrary("qcore_rocm", ("CUDA", "CPU"))
"""ROCm's tensors are CUDA's to torch; CPU is for stand-ins."""


def refusal(op: str, argument: str, given: object, allowed: str) -> ConfigError:
    """The error that names an argument, what was given and what is allowed."""
    return ConfigError(f"qcore_rocm.{op}: {argument} is {given}; it must be {allowed}")


def check(
    op: str,
    argument: str,
    tensor: Tensor | None,
    dtypes: tuple[torch.dtype, ...],
    sizes: tuple[tuple[int, ...], ...],
    like: Tensor,
) -> None:
    """An argument has one of some shapes, lies in one piece, on the device of ``like``."""
    if tensor is None:
        return
    given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise refusal(op, argument, given, names)
    if tuple(tensor.shape) not in sizes:
        raise refusal(op, argument, given, " or ".join(str(list(size)) for size in sizes))
    if not tensor.is_contiguous():
        raise refusal(op, argument, "strided", "contiguous")
    if tensor.device != like.device:
        raise refusal(op, argument, given, f"on {like.device}")


def check_rows(op: str, x: Tensor, least: int, most: int, out_dtype: torch.dtype) -> None:
    """``x`` and the result are floats, and ``x`` has that many columns."""
    if x.dtype not in FLOAT_TYPES:
        raise refusal(op, "x", x.dtype, "float32, float16 or bfloat16")
    if out_dtype not in FLOAT_TYPES:
        raise refusal(op, "out_dtype", out_dtype, "float32, float16 or bfloat16")
    if x.dim() == 0 or not least <= x.shape[-1] <= most:
        allowed = f"[..., {least}] to [..., {most}], as the weight's inputs are padded"
        raise refusal(op, "x", list(x.shape), allowed)


def blocks(size: int, by: int) -> int:
    """``size / by``, rounded up."""
    return -(-size // by)


FLOATS = tuple(FLOAT_TYPES)

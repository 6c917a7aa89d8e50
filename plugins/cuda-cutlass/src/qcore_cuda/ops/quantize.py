"""Activations to int8, FP8 and FP4.

Scales multiply: ``x = (q - azp) * scale``.
"""

from __future__ import annotations

import torch

from qcore_cuda import library
from qcore_cuda.ops.fakes import fake, fake_nothing

__all__ = [
    "per_token_group_fp8_quant",
    "per_token_group_fp8_quant_packed",
    "scaled_fp4_quant",
    "scaled_fp8_quant",
    "scaled_int8_quant",
]

Tensor = torch.Tensor


def scaled_int8_quant(
    input: Tensor, scale: Tensor | None = None, azp: Tensor | None = None, symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize to int8, by a known scale or with one for each row.

    Args:
        input: float32, float16 or bfloat16 [..., K].
        scale: float32, one element; None to compute amax / 127 for each row, or
            (high - low) / 255 where ``symmetric`` is False.
        azp: int32, one element: the zero point that goes with ``scale``.
        symmetric: without a zero point; must agree with ``azp`` where ``scale`` is given.

    Returns:
        int8 [..., K], the scale (float32 [1] as given, or [..., 1]) and the zero point (int32, the
        scale's shape) or None.

    Raises:
        ValueError: ``azp`` and ``symmetric`` contradict each other.
    """
    library.load()
    if scale is not None:
        if symmetric != (azp is None):
            raise ValueError(
                f"scaled_int8_quant: symmetric is {symmetric}, but azp is "
                f"{'not given' if azp is None else 'given'}; a static zero point is for "
                "symmetric=False, and that needs one"
            )
        return torch.ops.qcore_cuda.static_scaled_int8_quant.new(input, scale, azp), scale, azp
    out, scale, azp = torch.ops.qcore_cuda.dynamic_scaled_int8_quant.new(input, symmetric)
    return out, scale, None if symmetric else azp


def scaled_fp8_quant(
    input: Tensor,
    scale: Tensor | None = None,
    *,
    scale_ub: Tensor | None = None,
    use_per_token_if_dynamic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Quantize to e4m3, by a known scale, with one for the tensor, or with one for each row.

    Args:
        input: float32, float16 or bfloat16 [..., K].
        scale: float32, one element; None to compute amax / 448.
        scale_ub: float32, one element: the largest magnitude that a row's scale covers.
        use_per_token_if_dynamic: a scale for each row, where it is computed.

    Returns:
        float8_e4m3fn [..., K] and the scale: float32 [1] or [..., 1].

    Raises:
        ValueError: ``scale_ub`` without scales for rows.
    """
    library.load()
    if scale_ub is not None and (scale is not None or not use_per_token_if_dynamic):
        raise ValueError(
            "scaled_fp8_quant: scale_ub is for scales that are computed for each row; "
            "pass use_per_token_if_dynamic=True and no scale"
        )
    space = torch.ops.qcore_cuda
    if scale is not None:
        return space.static_scaled_fp8_quant.new(input, scale), scale
    if use_per_token_if_dynamic:
        return space.dynamic_per_token_scaled_fp8_quant.new(input, scale_ub)  # type: ignore[no-any-return]
    return space.dynamic_scaled_fp8_quant.new(input)  # type: ignore[no-any-return]


def per_token_group_fp8_quant(
    input: Tensor,
    group_size: int,
    eps: float = 1e-10,
    *,
    column_major_scales: bool = False,
    tma_aligned_scales: bool = False,
    use_ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """Quantize groups of each row to e4m3: ``scale = max(eps, amax) / 448``.

    Args:
        input: float32, float16 or bfloat16 [..., K].
        group_size: elements that share a scale; a row's last group may be shorter.
        eps: least magnitude that a scale covers.
        column_major_scales: scales of a group side by side; needs a 2-D input.
        tma_aligned_scales: and columns of scales padded to a multiple of four.
        use_ue8m0: round scales up to powers of two.

    Returns:
        float8_e4m3fn [..., K] and scales float32 [..., ceil(K / group_size)].

    Raises:
        RuntimeError: an argument does not fit, as column-major scales of an input that is not 2-D.
    """
    library.load()
    return torch.ops.qcore_cuda.per_token_group_fp8_quant.new(  # type: ignore[no-any-return]
        input, group_size, eps, column_major_scales, tma_aligned_scales, use_ue8m0
    )


def per_token_group_fp8_quant_packed(
    input: Tensor, group_size: int, eps: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Quantize groups of each row to e4m3, with scales as bytes of e8m0, four in a word.

    Args:
        input: float16 or bfloat16 [M, K].
        group_size: elements that share a scale.
        eps: least magnitude that a scale covers.

    Returns:
        float8_e4m3fn [M, K] and int32 [M, ceil(G / 4)] with strides (1, M rounded up to 4): byte
        ``g % 4`` of word [m, g // 4] is the biased exponent of group g; padding is 0.

    Raises:
        RuntimeError: an argument does not fit, as an input that is not 2-D.
    """
    library.load()
    return torch.ops.qcore_cuda.per_token_group_fp8_quant_packed.new(  # type: ignore[no-any-return]
        input, group_size, eps
    )


def scaled_fp4_quant(
    input: Tensor, input_scale: Tensor, is_sf_swizzled_layout: bool = True
) -> tuple[Tensor, Tensor]:
    """Quantize to NVFP4, on any generation of GPUs.

    Args:
        input: float32, float16 or bfloat16 [M, N]; N a multiple of 16.
        input_scale: float32, one element: ``448 * 6 / amax`` of the tensor.
        is_sf_swizzled_layout: scales in the 128x4 order of SM100's tensor cores.

    Returns:
        uint8 [M, N / 2], the even element in the low half; and the scales: e4m3 as int32
        [ceil128(M), ceil4(N / 16) / 4] where swizzled, else as uint8 [M, N / 16].
    """
    library.load()
    return torch.ops.qcore_cuda.scaled_fp4_quant(  # type: ignore[no-any-return]
        input, input_scale, is_sf_swizzled_layout
    )


fake_nothing(
    "static_scaled_int8_quant",
    "dynamic_scaled_int8_quant",
    "static_scaled_fp8_quant",
    "dynamic_scaled_fp8_quant",
    "dynamic_per_token_scaled_fp8_quant",
    "per_token_group_fp8_quant",
    "per_token_group_fp8_quant_packed",
    "scaled_fp4_quant.out",
)


@fake("scaled_fp4_quant")
def _scaled_fp4_quant(
    input: Tensor, input_scale: Tensor, is_sf_swizzled_layout: bool
) -> tuple[Tensor, Tensor]:
    M, N = input.shape
    out = input.new_empty((M, N // 2), dtype=torch.uint8)
    if is_sf_swizzled_layout:
        shape = (-(-M // 128) * 128, -(-(N // 16) // 4))
        return out, input.new_empty(shape, dtype=torch.int32)
    return out, input.new_empty((M, N // 16), dtype=torch.uint8)


def _column(input: Tensor, dtype: torch.dtype) -> Tensor:
    return input.new_empty((*input.shape[:-1], 1), dtype=dtype)


@fake("static_scaled_int8_quant.new")
def _static_int8(input: Tensor, scale: Tensor, azp: Tensor | None = None) -> Tensor:
    return input.new_empty(input.shape, dtype=torch.int8)


@fake("dynamic_scaled_int8_quant.new")
def _dynamic_int8(input: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    azp = input.new_empty(0, dtype=torch.int32) if symmetric else _column(input, torch.int32)
    return input.new_empty(input.shape, dtype=torch.int8), _column(input, torch.float32), azp


def _e4m3(input: Tensor) -> Tensor:
    return input.new_empty(input.shape, dtype=torch.float8_e4m3fn)


@fake("static_scaled_fp8_quant.new")
def _static_fp8(input: Tensor, scale: Tensor) -> Tensor:
    return _e4m3(input)


@fake("dynamic_scaled_fp8_quant.new")
def _dynamic_fp8(input: Tensor) -> tuple[Tensor, Tensor]:
    return _e4m3(input), input.new_empty(1, dtype=torch.float32)


@fake("dynamic_per_token_scaled_fp8_quant.new")
def _per_token_fp8(input: Tensor, scale_ub: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _e4m3(input), _column(input, torch.float32)


@fake("per_token_group_fp8_quant.new")
def _groups(
    input: Tensor,
    group_size: int,
    eps: float,
    column_major: bool,
    tma_aligned: bool,
    use_ue8m0: bool,
) -> tuple[Tensor, Tensor]:
    groups = -(-input.shape[-1] // group_size)
    if not column_major:
        shape = (*input.shape[:-1], groups)
        return _e4m3(input), input.new_empty(shape, dtype=torch.float32)
    M = input.shape[0]
    rows = -(-M // 4) * 4 if tma_aligned else M
    return _e4m3(input), input.new_empty((groups, rows), dtype=torch.float32).t()[:M]


@fake("per_token_group_fp8_quant_packed.new")
def _packed(input: Tensor, group_size: int, eps: float) -> tuple[Tensor, Tensor]:
    M, K = input.shape
    groups = -(-K // group_size)
    words = -(-groups // 4)
    return _e4m3(input), input.new_empty((words, -(-M // 4) * 4), dtype=torch.int32).t()[:M]

"""FlashInfer's functions with the signatures of a release, computing what they say in float64.

The signatures and the backends' compute capabilities are those of ``signatures.json``, which
`signatures.py` read off the real package. A call is bound to the signature, so a keyword that a
release does not have fails; then the arguments must be what the real function asks for (checks in
``flashinfer/gemm/gemm_base.py`` and in the CUDA sources). Layouts are undone here by index, one
scale at a time, and not by the code that made them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

KNOWN: dict[str, Any] = json.loads(
    Path(__file__).with_name("signatures.json").read_text(encoding="utf-8")
)
E4M3, U8 = torch.float8_e4m3fn, torch.uint8
_HALF = (torch.bfloat16, torch.float16)
_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6.0]).double()


def members(release: str) -> dict[str, Callable[..., Any]]:
    """Every function that this plugin calls."""
    functions = KNOWN[release]["functions"]
    return {name: _function(name, functions[name]) for name in _BODIES if name in functions}


def _function(name: str, known: dict[str, Any]) -> Callable[..., Any]:
    signature = inspect.Signature(
        [
            inspect.Parameter(
                parameter,
                inspect._ParameterKind[kind],
                default=inspect.Parameter.empty if default is None else default,
            )
            for parameter, (kind, default) in known["parameters"].items()
        ]
    )

    def call(*args: Any, **keywords: Any) -> torch.Tensor:
        given = signature.bind(*args, **keywords).arguments
        backend = given.get("backend")
        assert backend is None or known["backends"] is None or backend in known["backends"]
        return _BODIES[name](**given)

    call.__name__ = name
    call.__signature__ = signature  # type: ignore[attr-defined]
    if known["backends"] is not None:
        call.is_backend_supported = lambda backend, cc=None: (  # type: ignore[attr-defined]
            backend in known["backends"] and (cc is None or cc in known["backends"][backend])
        )
    return call


def _bmm_fp8(
    A: torch.Tensor,
    B: torch.Tensor,
    A_scale: torch.Tensor,
    B_scale: torch.Tensor,
    dtype: torch.dtype,
    backend: str,
) -> torch.Tensor:
    assert A.dtype == B.dtype == E4M3
    assert dtype in _HALF
    assert A.dim() == B.dim() == 3
    assert A.shape[0] == B.shape[0] == 1
    assert A.shape[2] == B.shape[1]
    assert A.is_contiguous()
    assert B.transpose(1, 2).is_contiguous(), "B is to be column-major"
    assert A.shape[2] % 16 == B.shape[2] % 16 == 0
    for scale in (A_scale, B_scale):
        assert scale.dtype == torch.float32
        assert scale.numel() == 1
    return ((A.double() @ B.double()) * A_scale.double() * B_scale.double()).to(dtype)


def _fp8_blockscale_gemm_sm90(
    input: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    (M, K), N = input.shape, weight.shape[0]
    assert input.dtype == torch.bfloat16
    assert weight.dtype == E4M3
    assert weight.shape == (N, K)
    assert N % 64 == K % 128 == 0
    assert weight_scale.shape == (-(-N // 128), K // 128)
    assert weight_scale.dtype == torch.float32
    assert out_dtype == torch.bfloat16, "the runner writes bfloat16 whatever it is asked for"
    for tensor in (input, weight, weight_scale):
        assert tensor.is_contiguous()
    groups = input.float().reshape(M, -1, 128)
    amax = groups.abs().nan_to_num(0.0).amax(-1, keepdim=True)  # maxima pass over NaN
    factor = torch.where(amax != 0, 448.0 / amax, torch.ones_like(amax))
    a = (groups * factor).to(E4M3).double() * (1.0 / factor).double()
    spread = weight_scale.double().repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)
    return (a.reshape(M, K) @ (weight.double() * spread).t()).to(torch.bfloat16)


def _unswizzled(scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Bytes [rows, columns] out of tiles of 128 x 4."""
    flat, wide = scale.contiguous().reshape(-1), -(-columns // 4)
    assert flat.numel() == -(-rows // 128) * wide * 512
    m, k = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    tile = (m // 128) * wide + k // 4
    return flat[tile * 512 + (m % 32) * 16 + (m % 128) // 32 * 4 + k % 4]


def _e8m0(codes: torch.Tensor) -> torch.Tensor:
    values = torch.ldexp(torch.ones(codes.shape, dtype=torch.float64), codes.int() - 127)
    return torch.where(codes == 255, torch.full_like(values, float("nan")), values)


def _fp4_values(packed: torch.Tensor, scale: torch.Tensor, block: int) -> torch.Tensor:
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1).long()
    bytes_ = _unswizzled(scale, packed.shape[0], codes.shape[1] // block)
    scales = bytes_.view(E4M3).double() if block == 16 else _e8m0(bytes_)
    return _E2M1[codes] * scales.repeat_interleave(block, 1)


def _mm_fp4(
    a: torch.Tensor,
    b: torch.Tensor,
    a_descale: torch.Tensor,
    b_descale: torch.Tensor,
    alpha: torch.Tensor | None,
    out_dtype: torch.dtype,
    block_size: int,
    use_8x4_sf_layout: bool,
    backend: str,
    use_nvfp4: bool,
) -> torch.Tensor:
    assert a.dtype == b.dtype == a_descale.dtype == b_descale.dtype == U8
    assert a.shape[1] == b.shape[0]
    assert a.is_contiguous()
    weight, weight_scale = b.t(), b_descale.t()
    assert weight.is_contiguous(), "b is to be column-major"
    assert weight_scale.is_contiguous()
    assert out_dtype in _HALF
    assert block_size == (16 if use_nvfp4 else 32)
    assert not use_8x4_sf_layout
    assert alpha is None or (alpha.dtype == torch.float32 and alpha.numel() == 1)
    K, N = 2 * a.shape[1], weight.shape[0]
    assert use_nvfp4 == (backend != "cute-dsl")
    assert K % 32 == 0
    assert N % (8 if backend == "cute-dsl" else 32) == 0
    w = _fp4_values
    if backend == "trtllm":
        assert out_dtype == torch.bfloat16
        back = torch.argsort(_SHUFFLE(N))
        scales = _unswizzled(weight_scale, N, K // 16)[back]
        codes = weight[back]
        right = torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()
        values = _E2M1[right] * scales.view(E4M3).double().repeat_interleave(16, 1)
    else:
        values = w(weight, weight_scale, block_size)
    out = w(a, a_descale, block_size) @ values.t()
    return (out if alpha is None else out * alpha.double()).to(out_dtype)


def _mm_mxfp8(
    a: torch.Tensor,
    b: torch.Tensor,
    a_descale: torch.Tensor,
    b_descale: torch.Tensor,
    out_dtype: torch.dtype,
    use_8x4_sf_layout: bool,
    backend: str,
) -> torch.Tensor:
    assert a.dtype == b.dtype == E4M3
    assert a_descale.dtype == b_descale.dtype == U8
    assert a_descale.dim() == b_descale.dim() == 1
    assert a.is_contiguous()
    assert b.t().is_contiguous(), "b is to be column-major"
    assert out_dtype in _HALF
    assert not use_8x4_sf_layout
    (M, K), N = a.shape, b.shape[1]
    assert N >= 128
    assert K >= 128
    assert N % 32 == K % 32 == 0
    left = a.double() * _e8m0(_unswizzled(a_descale, M, K // 32)).repeat_interleave(32, 1)
    right = b.t().double() * _e8m0(_unswizzled(b_descale, N, K // 32)).repeat_interleave(32, 1)
    return (left @ right.t()).to(out_dtype)


def _SHUFFLE(rows: int) -> torch.Tensor:  # noqa: N802
    """Any order of rows within 128: the real one is FlashInfer's business."""
    assert rows % 128 == 0
    return (torch.arange(rows).reshape(-1, 128) ^ 37).reshape(-1)


def _shuffle_matrix_a(input_tensor: torch.Tensor, epilogue_tile_m: int) -> torch.Tensor:
    assert epilogue_tile_m == 128
    assert input_tensor.dtype == U8
    return input_tensor[_SHUFFLE(input_tensor.shape[0])]


_BODIES: dict[str, Callable[..., torch.Tensor]] = {
    "bmm_fp8": _bmm_fp8,
    "fp8_blockscale_gemm_sm90": _fp8_blockscale_gemm_sm90,
    "mm_fp4": _mm_fp4,
    "mm_mxfp8": _mm_mxfp8,
    "shuffle_matrix_a": _shuffle_matrix_a,
}

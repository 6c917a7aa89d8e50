"""`FbgemmNvFp4LinearKernel`: NVFP4 by FBGEMM's product, where it is installed.

The package is ``fbgemm-gpu-genai`` on PyPI, whose op is ``torch.ops.fbgemm.f4f4bf16``. Its
arguments have changed (read in releases 1.4.2 to 1.9.0): where there is a ``use_mx``, that says
whether the codes are NVFP4's or MXFP4's, later the presence of a global scale does; so they are
given by name, as the schema has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch
from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer, tensor_of
from qcore.kernels.block_formats import NvFp4LinearKernel
from qcore.layers.microscaling import NvFp4LinearLayerConfig

from qcore_cuda.kernels.cutlass_nvfp4_operands import nvfp4_refusal, pack_weight, quantize_rows

__all__ = ["FbgemmNvFp4LinearKernel", "arguments", "missing_function"]

_OPERANDS = ["XQ", "WQ", "x_scale", "w_scale"]
_N = 16
"""FBGEMM takes N and K / 2 in multiples of it."""

_FAMILY_SINCE = (1, 9)
"""As of this release wheels are compiled for SM100's family, before it for SM100 alone."""


@lru_cache(maxsize=1)
def arguments() -> tuple[str, ...]:
    """The arguments of ``torch.ops.fbgemm.f4f4bf16``; none where there is no such op."""
    op = getattr(torch.ops.fbgemm, "f4f4bf16", None)
    return tuple(argument.name for argument in op.default._schema.arguments) if op else ()


@lru_cache(maxsize=1)
def missing_function() -> str | None:
    """Why ``torch.ops.fbgemm.f4f4bf16`` cannot be called as it is here; None where it can."""
    try:
        import_module("fbgemm_gpu.experimental.gen_ai")
    except Exception as error:  # it loads a library that is built for one release of torch
        return f"importing fbgemm_gpu.experimental.gen_ai raised {type(error).__name__}: {error}"
    names = list(arguments())
    if not names:
        return "this fbgemm_gpu has no f4f4bf16; fbgemm-gpu-genai 1.4 and later have it"
    if names[:4] != _OPERANDS or "global_scale" not in names:
        wanted = ", ".join([*_OPERANDS, "global_scale"])
        return f"fbgemm's f4f4bf16 takes ({', '.join(names)}); {wanted} were expected"
    return None


def _older_than_family() -> bool:
    try:
        parts = version("fbgemm-gpu-genai").split(".")
        return (int(parts[0]), int(parts[1])) < _FAMILY_SINCE
    except (PackageNotFoundError, ValueError, IndexError):
        return False  # built by hand: it will have been built for what is here


@torch.library.custom_op("qcore_cuda_fbgemm::f4f4bf16", mutates_args=())
def _f4f4bf16(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    alpha: torch.Tensor,
) -> torch.Tensor:
    if a.shape[0] == 0:
        return a.new_empty((0, b.shape[0]), dtype=torch.bfloat16)
    by_name = {"use_mx": False} if "use_mx" in arguments() else {}
    out: torch.Tensor = torch.ops.fbgemm.f4f4bf16(
        a, b, a_scale.reshape(-1), b_scale.reshape(-1), global_scale=alpha, **by_name
    )
    return out


@_f4f4bf16.register_fake
def _(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    alpha: torch.Tensor,
) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16)


class FbgemmNvFp4LinearKernel(NvFp4LinearKernel):
    """NVFP4 weights and activations on SM100 and SM103, bfloat16 results.

    N is padded to 16 and K to 32.
    """

    @classmethod
    def get_min_capability(cls) -> int:
        """Tensor cores of 4-bit floats as SM100 has them."""
        return 100

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether FBGEMM is compiled for the GPU, and on this machine whether it has the op."""
        target = current_platform.target
        capability = compute_capability or target.compute_capability
        here = target.is_current
        return answer(
            capability is not None
            and capability not in (100, 103)
            and f"FBGEMM has it for sm_100 and sm_103; this device is sm_{capability}",
            capability == 103
            and here
            and _older_than_family()
            and "fbgemm-gpu-genai is compiled for sm_103 as of release 1.9",
            here and missing_function(),
        )

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> Answer:
        """Both sides NVFP4, one scale of scales for the input, bfloat16 results."""
        return answer(nvfp4_refusal(config, (torch.bfloat16,)))

    def pack_weights(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Padded codes, scales in tiles, and what multiplies the product."""
        outer = tensors["input_global_scale"].to(torch.float32).reshape(1)
        codes, scale = pack_weight(tensors["weight"], tensors["weight_scale"], _N)
        return {
            "weight": codes,
            "weight_scale": scale,
            "input_global_scale": outer,
            "input_global_scale_inv": 1.0 / outer,
            "alpha": tensors["weight_global_scale"].to(torch.float32).reshape(1) * outer,
        }

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Quantize ``x``, multiply, cut the padding off, add the bias."""
        assert self.config.weight_shape is not None
        N = self.config.weight_shape[0]
        codes, scale = quantize_rows(
            x.reshape(-1, x.shape[-1]),
            tensor_of(layer, "input_global_scale"),
            tensor_of(layer, "input_global_scale_inv"),
        )
        weight, weight_scale = tensor_of(layer, "weight"), tensor_of(layer, "weight_scale")
        out = _f4f4bf16(codes, weight, scale, weight_scale, tensor_of(layer, "alpha"))[:, :N]
        if bias is not None:
            out = out + bias.to(out.dtype)
        return out.reshape(*x.shape[:-1], N)

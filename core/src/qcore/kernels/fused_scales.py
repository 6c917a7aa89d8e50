"""The scales of a fused int8 layer: several layers in one tensor, each with scales of its own.

Engines join q, k and v, or gate and up, along N; the layer's ``logical_widths`` say how wide each
part is. Kernels take one scale for each channel, which says the same, and one scale of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qcore.errors import WeightError

__all__ = ["merge_input_scales", "spread_over_parts"]


def spread_over_parts(scale: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """Each part's scale for all its channels: float [parts] to [sum of ``widths``].

    Raises:
        WeightError: there are not as many scales as parts.
    """
    flat = scale.reshape(-1)
    if flat.numel() != len(widths) or min(widths, default=0) < 1:
        raise WeightError(
            f"weight_scale has {flat.numel()} elements for a fused layer of {len(widths)} parts "
            f"(widths {list(widths)}); it must have one for each part"
        )
    return flat.repeat_interleave(torch.tensor(list(widths), device=flat.device))


def merge_input_scales(
    scale: torch.Tensor, zero_point: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One static scale (and zero point) that covers what each part's covers.

    The parts have the same input, so that it is quantized once: by the largest scale, or with zero
    points by the range from the least value of any part to the largest.

    Args:
        scale: float32 [parts].
        zero_point: int32 [parts]; None where activations are symmetric.

    Returns:
        float32 [1] and int32 [1].

    Raises:
        WeightError: there are not as many zero points as scales.
    """
    scale = scale.to(torch.float32).reshape(-1)
    if zero_point is None:
        return scale.max().reshape(1), None
    zeros = zero_point.reshape(-1).to(torch.float32)
    if zeros.shape != scale.shape:
        raise WeightError(
            f"input_zero_point has {zeros.numel()} elements and input_scale {scale.numel()}"
        )
    high, low = ((127 - zeros) * scale).max(), ((-128 - zeros) * scale).min()
    merged = (high - low) / 255
    zero = torch.round(-128 - low / merged).clamp(-128, 127)
    return merged.reshape(1), zero.to(torch.int32).reshape(1)

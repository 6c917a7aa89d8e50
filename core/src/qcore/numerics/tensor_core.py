"""How exactly NVIDIA's tensor cores add 8-bit floats."""

from __future__ import annotations

__all__ = ["FP8_SUM_UNIT"]

FP8_SUM_UNIT = 2.0**-13 * 34 / 32
"""What a product of 8-bit floats may lose on its way through the sums, as a fraction of the largest
of these sums.

Tensor cores of Hopper and Ada add 32 products to an accumulator by aligning all 33 numbers with
the largest and cutting off what lies more than 13 bits below its first bit (DeepSeek-V3 Technical
Report, arXiv 2412.19437, 3.5.2: 14 bits are used, the rest is truncated; SageAttention2, arXiv
2411.10958: an accumulator of 1 + 8 + 13 bits). So each of the 33, and then the sum, loses less than
2**-13 of a number that is no larger than the largest product or partial sum: 34 such losses for 32
products. qcore-cuda's `tests/tensor_core.py` computes such sums, and found to the last bit what an
H200 did.
"""

"""`TritonSupport`: where Triton's kernels run, for their classes to inherit from."""

from __future__ import annotations

from typing import ClassVar

from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer
from qcore.triton.runtime import refusal

__all__ = ["TritonSupport"]


class TritonSupport:
    """Comes before the base of a kernel type."""

    cuda_capability: ClassVar[int] = 80
    """The least on NVIDIA's GPUs."""

    @classmethod
    def get_min_capability(cls) -> int:
        """`cuda_capability` on CUDA; elsewhere there is no such number to compare."""
        return cls.cuda_capability if current_platform.is_cuda() else -1

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the device is new enough and Triton can be used."""
        if compute_capability is None:
            compute_capability = current_platform.target.compute_capability
        least = cls.get_min_capability()
        return answer(
            compute_capability is not None
            and compute_capability < least
            and f"needs compute capability {least}, this is {compute_capability}",
            cls.device_refusal(),
            refusal(),
        )

    @classmethod
    def device_refusal(cls) -> str | None:
        """What else the device being weighed lacks; None if nothing."""
        return None

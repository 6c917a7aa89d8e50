"""`PortableKernel`: where kernels run that the library has for every generation from SM80 on."""

from __future__ import annotations

from qcore.kernels.base import Answer, answer

from qcore_cuda import library

__all__ = ["PortableKernel"]


class PortableKernel:
    """Comes before the base of a kernel type."""

    @classmethod
    def get_min_capability(cls) -> int:
        """Tensor cores of bfloat16 and integers with asynchronous copies: SM80."""
        return 80

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the compiled library has code for the device."""
        return answer(library.refusal(compute_capability))

"""`FlashInferSupport`: whether FlashInfer runs a kernel on a GPU, for kernel classes to inherit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from qcore.facts.current_platform import current_platform
from qcore.kernels.base import Answer, answer

from qcore_flashinfer import library

__all__ = ["FlashInferSupport"]


class FlashInferSupport:
    """Comes before the base of a kernel type."""

    function: ClassVar[str]
    """The function of FlashInfer's that multiplies."""
    backend: ClassVar[str]
    """The backend of `function` that is asked for."""
    parameters: ClassVar[Sequence[str]]
    """The keywords with which `function` is called."""
    min_capability: ClassVar[int]
    """Below it no release of FlashInfer has `function`."""

    @classmethod
    def get_min_capability(cls) -> int:
        """`min_capability`."""
        return cls.min_capability

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """What FlashInfer says of this GPU, and on this machine whether it can be used here."""
        if compute_capability is None:
            compute_capability = current_platform.target.compute_capability
        why = library.signature_fault(cls.function, cls.parameters)
        if why is not None:
            return answer(why)
        return answer(
            cls.device_refusal(compute_capability), library.here_refusal(cls.backend_here())
        )

    @classmethod
    def device_refusal(cls, capability: int | None) -> str | None:
        """Why FlashInfer does not run this on such a GPU; None where it does."""
        return library.backend_refusal(cls.function, cls.backend, capability)

    @classmethod
    def backend_here(cls) -> str:
        """The backend whose needs are looked for on this machine."""
        return cls.backend

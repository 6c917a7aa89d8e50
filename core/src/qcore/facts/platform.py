"""`Platform`: whose hardware, in the sense of which kernels can run on it at all."""

from __future__ import annotations

from enum import Enum

__all__ = ["Platform", "PlatformEnum"]


class Platform(str, Enum):
    """Whose hardware. A kernel is declared for one or more of these."""

    CPU = "cpu"
    CUDA = "cuda"
    ROCM = "rocm"
    XPU = "xpu"
    TPU = "tpu"
    OOT = "oot"
    """Out of tree: hardware that only a third-party plugin knows."""
    UNSPECIFIED = "unspecified"

    def __str__(self) -> str:
        return self.value

    @property
    def torch_device_type(self) -> str:
        """What `torch.device` calls it; ROCm answers to ``cuda``."""
        return {"rocm": "cuda", "tpu": "xla", "oot": "privateuseone", "unspecified": "cpu"}.get(
            self.value, self.value
        )


PlatformEnum = Platform
"""vLLM's name for it."""

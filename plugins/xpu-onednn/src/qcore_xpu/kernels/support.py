"""`XpuSupport`: where the kernels run, for their classes to inherit from."""

from __future__ import annotations

from qcore.kernels.base import Answer, answer

import qcore_xpu.ops  # noqa: F401 - registers the ops that the kernels call
from qcore_xpu import library

__all__ = ["XpuSupport"]


class XpuSupport:
    """Comes before the base of a kernel type."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> Answer:
        """Whether the target is an Intel GPU and, if it is this machine's, the library loads."""
        return answer(library.refusal())

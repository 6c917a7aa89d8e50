"""Whether zentorch can be used here, asked of the processor and of zentorch.

zentorch registers its ops on any x86 machine. On one without AVX-512 some of them return memory
that was never written, or end the process with an illegal instruction: that an op is there says
nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache

import torch
from qcore.facts.cpu_features import current_cpu_features

__all__ = ["NEEDED_FEATURES", "is_installed", "refusal"]

NEEDED_FEATURES = (
    "amd",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
)
"""What a processor must have: AMD's Zen 4 and later."""


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("zentorch") is not None


@lru_cache(maxsize=1)
def _import_error() -> str | None:
    """Import zentorch (seconds); why it cannot be, or None."""
    try:
        importlib.import_module("zentorch")
    except (Exception, SystemExit) as error:  # a foreign package may raise anything
        return f"importing zentorch failed: {type(error).__name__}: {error}"
    return None


def refusal(*ops: str) -> str | None:
    """Why these ops cannot be used on this machine; None where they can. Imports zentorch last.

    Args:
        ops: names in ``torch.ops.zentorch``.
    """
    missing = [name for name in NEEDED_FEATURES if name not in current_cpu_features()]
    if missing:
        return (
            f"zentorch's quantized ops need {', '.join(missing)}, which this processor has not "
            "(they are made for AMD Zen 4 and later)"
        )
    if not is_installed():
        return "zentorch is not installed"
    if (error := _import_error()) is not None:
        return error
    needed = (*ops, "zentorch_is_avx512_supported", "zentorch_is_bf16_supported")
    absent = [name for name in needed if not hasattr(torch.ops.zentorch, name)]
    if absent:
        return f"this zentorch has no op {', '.join(absent)}"
    if not torch.ops.zentorch.zentorch_is_avx512_supported():
        return "zentorch says that it does not support AVX-512 here"
    if not torch.ops.zentorch.zentorch_is_bf16_supported():
        return "zentorch says that it does not support bfloat16 here"
    return None

"""Floor 8: read checkpoints, load them as transformers models, say which kernels run them."""

from typing import TYPE_CHECKING, Any

from qcore.models.compiled import compile_decoding
from qcore.models.explanation import Explanation, ExplanationRow, explain
from qcore.models.fp8_cache import fp8_cache
from qcore.models.inspection import CheckpointReport, LayerReport, inspect_checkpoint
from qcore.models.load import load_model
from qcore.quantization.kv_cache import KVScales

if TYPE_CHECKING:
    from qcore.models.decoding import generate
    from qcore.models.kv_cache import Fp8Cache, cache_bytes

__all__ = [
    "CheckpointReport",
    "Explanation",
    "ExplanationRow",
    "Fp8Cache",
    "KVScales",
    "LayerReport",
    "cache_bytes",
    "compile_decoding",
    "explain",
    "fp8_cache",
    "generate",
    "inspect_checkpoint",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Names whose module imports transformers, which may not be installed."""
    if name in ("Fp8Cache", "cache_bytes"):
        from qcore.models import kv_cache

        return getattr(kv_cache, name)
    if name == "generate":
        from qcore.models.decoding import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

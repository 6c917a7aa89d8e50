"""Floor 8: read checkpoints, load them as transformers models, say which kernels run them."""

from qcore.models.explanation import Explanation, ExplanationRow, explain
from qcore.models.inspection import CheckpointReport, LayerReport, inspect_checkpoint
from qcore.models.load import load_model

__all__ = [
    "CheckpointReport",
    "Explanation",
    "ExplanationRow",
    "LayerReport",
    "explain",
    "inspect_checkpoint",
    "load_model",
]

"""Make a quantized checkpoint of a float one: round to nearest, one tensor at a time.

`quantize_checkpoint` is the whole of it; the formats are in `qcore.quantize.scheme`.
"""

from qcore.quantize.checkpoint import quantize_checkpoint
from qcore.quantize.report import KeptLayer, QuantizedLayer, QuantizeReport
from qcore.quantize.scheme import SCHEME_EXAMPLES, QuantizeScheme

__all__ = [
    "SCHEME_EXAMPLES",
    "KeptLayer",
    "QuantizeReport",
    "QuantizeScheme",
    "QuantizedLayer",
    "quantize_checkpoint",
]

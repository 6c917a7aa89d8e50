"""Round a float checkpoint to nearest: into a file, or while it is loaded.

`quantize_checkpoint` writes a checkpoint; ``qcore.load_model(path, quantize=...)`` rounds at load
and makes the same of it. The schemes are in `qcore.quantize.scheme`.
"""

from qcore.quantize.activation_scales import ActivationRange, ActivationScales
from qcore.quantize.calibration import calibrate
from qcore.quantize.checkpoint import quantize_checkpoint
from qcore.quantize.report import KeptLayer, QuantizedLayer, QuantizeReport
from qcore.quantize.scheme import SCHEME_EXAMPLES, SCHEME_NAMES, QuantizeScheme

__all__ = [
    "SCHEME_EXAMPLES",
    "SCHEME_NAMES",
    "ActivationRange",
    "ActivationScales",
    "KeptLayer",
    "QuantizeReport",
    "QuantizeScheme",
    "QuantizedLayer",
    "calibrate",
    "quantize_checkpoint",
]

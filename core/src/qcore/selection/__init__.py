"""Floor 6: which kernel runs a layer, here, and why. One algorithm for every kernel type."""

from qcore.selection.algorithm import select
from qcore.selection.decision import Candidate, Decision, Stage
from qcore.selection.doors import (
    choose_mp_linear_kernel,
    choose_scaled_mm_linear_kernel,
    init_fp8_linear_kernel,
    init_int8_linear_kernel,
    init_mxfp4_linear_kernel,
    init_mxfp8_linear_kernel,
    init_nvfp4_linear_kernel,
    register_linear_kernel,
)

__all__ = [
    "Candidate",
    "Decision",
    "Stage",
    "choose_mp_linear_kernel",
    "choose_scaled_mm_linear_kernel",
    "init_fp8_linear_kernel",
    "init_int8_linear_kernel",
    "init_mxfp4_linear_kernel",
    "init_mxfp8_linear_kernel",
    "init_nvfp4_linear_kernel",
    "register_linear_kernel",
    "select",
]

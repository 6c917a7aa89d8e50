"""The conformance kit: what every kernel must do, as checks to run on it.

`check_kernel` runs all of them and gives a report; `KernelConformance` is the same as a class of
pytest tests; the single checks take a kernel class (or a `Subject`) and one config. The kit needs
pytest for `KernelConformance` alone. With ``QCORE_TEST_REPORT`` a report is written: see
`qcore.testing.record`.
"""

from qcore.testing.answers import check_answers, check_refusals
from qcore.testing.configs import conformance_configs
from qcore.testing.experts import check_experts
from qcore.testing.graphs import check_compile, check_opcheck
from qcore.testing.isolation import isolated_registry
from qcore.testing.oracle import Arithmetic, Expected, Oracle
from qcore.testing.outcome import Outcome, Worst
from qcore.testing.packing import check_packing
from qcore.testing.pytest_suite import KernelConformance
from qcore.testing.record import evidence, note_run
from qcore.testing.report import CheckRecord, ConformanceReport
from qcore.testing.results import (
    check_batch_invariance,
    check_contract,
    check_nan_propagation,
    check_numerics,
)
from qcore.testing.subject import ConformanceError, Subject
from qcore.testing.suite import CHECKS, check_claimed, check_kernel
from qcore.testing.tensors import make_layer, random_bias, random_input, random_tensors

__all__ = [
    "CHECKS",
    "Arithmetic",
    "CheckRecord",
    "ConformanceError",
    "ConformanceReport",
    "Expected",
    "KernelConformance",
    "Oracle",
    "Outcome",
    "Subject",
    "Worst",
    "check_answers",
    "check_batch_invariance",
    "check_claimed",
    "check_compile",
    "check_contract",
    "check_experts",
    "check_kernel",
    "check_nan_propagation",
    "check_numerics",
    "check_opcheck",
    "check_packing",
    "check_refusals",
    "conformance_configs",
    "evidence",
    "isolated_registry",
    "make_layer",
    "note_run",
    "random_bias",
    "random_input",
    "random_tensors",
]

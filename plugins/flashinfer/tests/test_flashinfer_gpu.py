"""The kit on the GPU of this machine. `run_sm90.py` writes the report that is committed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from qcore.testing import Arithmetic, Subject, check_kernel
from qcore_flashinfer import plugin

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("spec", plugin.qcore_kernels(), ids=lambda spec: spec.name)
def test_conforms_on_the_gpu(spec: Any) -> None:
    kernel = getattr(import_module(spec.entry.partition(":")[0]), spec.name)
    why = Subject(kernel, "cuda", spec, Arithmetic.of(kernel)).unavailable()
    if why is not None:
        pytest.skip(why)
    check_kernel(kernel, device="cuda", spec=spec)

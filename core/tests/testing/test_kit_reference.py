"""The reference kernels conform, every one."""

import json

import pytest
from qcore.reference import kernels
from qcore.reference.moe import ReferenceMoeMxfp4Kernel, ReferenceMoeWNA16Kernel
from qcore.testing import KernelConformance, check_kernel

CLASSES = [
    *(getattr(kernels, name) for name in kernels.__all__),
    ReferenceMoeWNA16Kernel,
    ReferenceMoeMxfp4Kernel,
]


@pytest.mark.parametrize("kernel", CLASSES, ids=lambda kernel: kernel.__name__)
def test_the_reference_kernel_conforms(kernel):
    report = check_kernel(kernel)
    assert report.ok
    assert report.claimed > 20
    assert 0.3 < report.worst.ratio <= 1.0, "a bound that nothing comes near to catches nothing"


def test_the_report_is_plain_values_and_text():
    report = check_kernel(kernels.ReferenceInt8ScaledMMLinearKernel, checks=["check_numerics"])
    data = json.loads(json.dumps(report.to_dict()))
    assert data["evidence"] == "executed"
    assert data["ok"] is True
    assert data["configs"]["claimed"] == data["checks"]["check_numerics"]["runs"]
    assert data["worst"]["error"] <= data["worst"]["allowed"]
    text = str(report)
    assert "evidence: executed" in text
    assert "conforms" in text
    assert f"{report.claimed} of {report.offered} are implemented" in text


class TestReferenceInt8(KernelConformance):
    kernel_class = kernels.ReferenceInt8ScaledMMLinearKernel

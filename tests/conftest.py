"""The report begins with the kernels under test and what has been done with each."""

from qcore.registry import get_registry


def pytest_report_header():
    kernels = get_registry().kernels()
    width = max(len(kernel.name) for kernel in kernels)
    lines = [f"  {k.name:<{width}}  {k.distribution:<20} {k.spec.evidence}" for k in kernels]
    return ["kernels, and what has been done with them:", *lines]

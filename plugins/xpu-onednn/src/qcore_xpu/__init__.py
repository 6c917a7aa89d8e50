"""qcore-xpu: kernels on oneDNN and SYCL for qcore. The ops are in `qcore_xpu.ops`."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("qcore-xpu")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = ["__version__"]

"""qcore-rocm: kernels for qcore on AMD's GPUs. The ops are in `qcore_rocm.ops`."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("qcore-rocm")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = ["__version__"]

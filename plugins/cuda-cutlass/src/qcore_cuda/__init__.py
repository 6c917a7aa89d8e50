"""qcore-cuda: CUDA kernels for qcore. The ops are in `qcore_cuda.ops`."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("qcore-cuda")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = ["__version__"]

"""qcore-flashinfer: FlashInfer's kernels for qcore."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("qcore-flashinfer")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__all__ = ["__version__"]

"""An example of a qcore plugin: two kernels for CPUs, in pure PyTorch."""

__version__ = "0.1.0"

"""CPU kernels for qcore. Importing this loads nothing; see `qcore_cpu.library`."""

__version__ = "0.1.0"

"""Marlin's kernels: which there are, their sources, and compiling those that are missing.

The build imports `instances` and `generate` before anything is installed; they need nothing but
the standard library.
"""

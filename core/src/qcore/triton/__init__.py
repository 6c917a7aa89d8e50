"""Kernels in Triton, from one source for NVIDIA's and AMD's GPUs. An optional part of the core.

Nothing here imports triton until a layer runs: classes answer and pack without it. The core
declares none of these kernels; qcore-cuda and qcore-rocm declare those that they stand for, each
for its own platform (docs/adr/0013).
"""

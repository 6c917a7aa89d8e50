"""Bits and numbers: packing, small float formats, activation quantizers, dequantization.

Pure functions of tensors, right on any device; no policy, no selection.
"""

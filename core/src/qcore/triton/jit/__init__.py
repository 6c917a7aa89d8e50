"""What Triton compiles, and what launches it. These modules import triton.

Annotations stay objects here (no ``from __future__ import annotations``): Triton reads them. Its
interpreter keeps bfloat16 as its bits and multiplies those, so that products get `UPCAST` operands
there.
"""

"""The schemes of a checkpoint's layers, as qcore reads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qcore_cuda.marlin.instances import Scheme

__all__ = ["schemes_of_checkpoint"]


def schemes_of_checkpoint(path: Path, archs: Iterable[int]) -> set[Scheme]:
    """What the layers of a checkpoint need, for 16-bit activations of both types.

    Args:
        path: a folder with ``config.json``, or a GGUF file.
        archs: 80 for sm_80.

    Raises:
        ImportError: qcore is not installed.
        ValueError: the checkpoint cannot be read, or has no layer that these kernels run.
    """
    try:
        from qcore.errors import QcoreError
        from qcore.layers.mixed_precision import MPLinearLayerConfig
        from qcore.models import inspect_checkpoint

        from qcore_cuda.marlin.schemes import scheme_of
    except ModuleNotFoundError as error:
        raise ImportError(
            f"--for-checkpoint reads the checkpoint with qcore, which is not there ({error}); "
            "pip install qcore"
        ) from error
    try:
        report = inspect_checkpoint(path)
    except QcoreError as error:
        raise ValueError(str(error)) from error
    found: set[Scheme] = set()
    reasons: set[str] = set()
    for row in report.layers:
        config = row.decision.config
        for arch in archs:
            for whole in (True, False):
                scheme = scheme_of(config, arch, sorted_groups=whole)
                if isinstance(scheme, str):
                    reasons.add(scheme)
                else:
                    found.add(scheme)
                if not (isinstance(config, MPLinearLayerConfig) and config.has_g_idx):
                    break
    if not found:
        raise ValueError(
            f"{path}: no layer that Marlin's kernels run"
            + (f" ({'; '.join(sorted(reasons))})" if reasons else "")
        )
    wide = ("float16", "bfloat16")
    others = {
        replace(s, a_type=t, c_type=t)
        for s in found
        for t in wide
        if s.a_type in wide and not (t == "float16" and s.s_type == "fe8m0fnu")
        and not (t == "bfloat16" and s.family == 75)
    }  # fmt: skip
    return found | others

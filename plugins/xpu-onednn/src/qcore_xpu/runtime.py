"""The runtime libraries that the compiled one needs: where they are, and loading them in order.

Wheels put them into the environment's ``lib`` folder, where the loader does not look; each is
loaded by its path, those it needs before it. A library that the process has already (torch's XPU
build brings SYCL) is taken as it is: two of one kind would have two sets of devices. None is made
global: a library finds those that it names among the loaded ones, and nobody else sees them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from pathlib import Path

import torch
from qcore.errors import MissingDependencyError

__all__ = ["LIBRARIES", "load", "where"]

LIBRARIES = (
    ("libintlc.so.5", "intel-cmplr-lib-rt"),
    ("libimf.so", "intel-cmplr-lib-rt"),
    ("libsvml.so", "intel-cmplr-lib-rt"),
    ("libirng.so", "intel-cmplr-lib-rt"),
    ("libtbb.so.12", "tbb"),
    ("libumf.so.1", "umf"),
    ("libur_loader.so.0", "intel-cmplr-lib-ur"),
    ("libsycl.so.9", "intel-sycl-rt"),
    ("libdnnl.so.3", "onednn"),
)
"""Each library and the distribution that brings it, in the order of loading."""

_OPENCL_CPU = ("libintelocl.so", "intel-opencl-rt")


def where(library: str, distribution: str) -> Path | None:
    """The file ``library`` of an installed distribution; None where it is not."""
    try:
        files = importlib.metadata.files(distribution) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == library:
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                return path
    return None


def load() -> None:
    """Load all of `LIBRARIES`.

    Where torch sees no Intel GPU, SYCL is also told where its CPU device is, which the wheels leave
    to a file with a path that is not there; ``OCL_ICD_FILENAMES`` of the user's is not touched.

    Raises:
        MissingDependencyError: one is missing or cannot be loaded; the message says which, which
            package brings it, and what the loader said.
    """
    if not torch.xpu.is_available() and "OCL_ICD_FILENAMES" not in os.environ:
        driver = where(*_OPENCL_CPU)
        if driver is not None:
            os.environ["OCL_ICD_FILENAMES"] = str(driver)
    for library, distribution in LIBRARIES:
        _load_one(library, distribution)


def _load_one(library: str, distribution: str) -> None:
    try:
        ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return
    except OSError:
        pass  # not in the process yet
    path = where(library, distribution)
    try:
        # Without a path the loader searches: oneAPI's own installation may be set up in the shell.
        ctypes.CDLL(str(path or library), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        found = f"it is at {path}" if path else f"the package {distribution} is not installed"
        raise MissingDependencyError(
            f"qcore-xpu needs {library}, which does not load ({found}): {error}. "
            "`pip install onednn` brings it and what it needs"
        ) from error

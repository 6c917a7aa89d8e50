"""Compiled kernels on disk, found by what they were made of; safe between processes."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

from qcore.errors import MissingDependencyError

from qcore_cuda.marlin.compilers import (
    FLAGS,
    HOW_TO_GET_ONE,
    CompileError,
    Compiler,
    find_compiler,
)
from qcore_cuda.marlin.instances import Instance

__all__ = ["cache_folder", "compiled", "headers", "source_of"]

log = logging.getLogger("qcore.cuda")


def cache_folder() -> Path:
    """``QCORE_CUDA_CACHE``, or ``qcore/marlin`` in the user's cache."""
    named = os.environ.get("QCORE_CUDA_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qcore" / "marlin"


@lru_cache(maxsize=1)
def headers() -> Mapping[str, str]:
    """The kernels' source: ``marlin/kernel.cuh`` and what it includes.

    Raises:
        MissingDependencyError: the package is installed without it.
    """
    package = resources.files("qcore_cuda")
    for folder in (package / "csrc" / "marlin", package / ".." / ".." / "csrc" / "marlin"):
        path = Path(str(folder))
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix in (".cuh", ".h"))
            return {f"marlin/{p.name}": p.read_text(encoding="utf-8") for p in files}
    raise MissingDependencyError(
        "qcore-cuda is installed without the source of its Marlin kernels; install its wheel anew"
    )


def source_of(instances: Sequence[Instance]) -> str:
    """A file with these kernels."""
    lines = "\n".join(instance.line for instance in instances)
    return f'#include "marlin/kernel.cuh"\n\n{lines}\n'


def compiled(instances: Sequence[Instance], arch: int, compiler: Compiler | None = None) -> Path:
    """A binary with these kernels, compiled if it is not in the cache.

    One process compiles, others that want the same wait for it; the file appears whole or not at
    all.

    Args:
        instances: the kernels.
        arch: 90 for sm_90.
        compiler: None for the one that `find_compiler` finds.

    Raises:
        MissingDependencyError: it is not in the cache, and there is no compiler.
        CompileError: it does not compile, or the cache cannot be written.
    """
    compiler = compiler or find_compiler()
    if compiler is None:
        raise MissingDependencyError(
            f"{instances[0].scheme.config}: no kernel for groups of "
            f"{instances[0].scheme.group_blocks} blocks was compiled into this wheel, and there is "
            f"no compiler to make one ({HOW_TO_GET_ONE})"
        )
    source = source_of(instances)
    parts = [source, f"sm_{arch}", compiler.version, *FLAGS]
    parts += [text for item in sorted(headers().items()) for text in item]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = cache_folder()
    path = folder / f"{name}.cubin"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _compile(compiler, source, arch, path, instances)
    except OSError as error:
        raise CompileError(
            f"the cache of compiled kernels, {folder}, cannot be written: {error}; "
            "set QCORE_CUDA_CACHE to a folder that can"
        ) from error
    return path


def _compile(
    compiler: Compiler, source: str, arch: int, path: Path, instances: Sequence[Instance]
) -> None:
    scheme = instances[0].scheme
    log.warning(
        "compiling %d kernels of %s for sm_%d with %s; this is done once",
        len(instances), scheme.config, arch, compiler.version,
    )  # fmt: skip
    start = time.monotonic()
    binary = compiler.compile(source, headers(), arch)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(binary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    log.warning("compiled in %.1f s; kept as %s", time.monotonic() - start, path)

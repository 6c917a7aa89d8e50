"""Where FlashInfer's compiler finds CUDA's headers and libraries, if they came as wheels of Python.

FlashInfer looks in CUDA_HOME. NVIDIA's wheels (``nvidia-cublas`` ...) have headers and libraries
too, the libraries without the names that a linker looks for. `prepare` names both to FlashInfer.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
from pathlib import Path

__all__ = ["prepare"]

_HEADERS = ("cublasLt.h", "nvrtc.h", "curand_kernel.h", "cuda_runtime.h")
_LIBRARIES = ("libcudart", "libcublas", "libcublasLt", "libnvrtc", "libcuda")
_DRIVER = (
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib",
)


def prepare(folder: Path) -> dict[str, str]:
    """Set FlashInfer's environment variables; links to libraries are made in ``folder``.

    Returns:
        What was found where, for the report.
    """
    nvcc = shutil.which("nvcc")
    home = Path(
        os.environ.get("CUDA_HOME") or (Path(nvcc).parents[1] if nvcc else "/usr/local/cuda")
    )
    os.environ["CUDA_HOME"] = str(home)
    roots = [Path(p) / "nvidia" for p in [*site.getsitepackages(), *sys.path] if p]
    wheels = [root for root in dict.fromkeys(roots) if root.is_dir()]
    found = {"CUDA_HOME": str(home)}
    includes = []
    for header in _HEADERS:
        if (home / "include" / header).exists():
            found[header] = str(home / "include")
            continue
        places = [path.parent for root in wheels for path in root.rglob(header)]
        found[header] = str(places[0]) if places else "not found"
        includes += [f"-I{place}" for place in places[:1]]
    folder.mkdir(parents=True, exist_ok=True)
    search = [
        home / "lib64",
        home / "targets" / "x86_64-linux" / "lib",
        *wheels,
        *map(Path, _DRIVER),
    ]
    for name in _LIBRARIES:
        files = [p for root in search if root.is_dir() for p in sorted(_libraries(root, name))]
        found[name] = str(files[0]) if files else "not found"
        link = folder / f"{name}.so"
        if files and not link.exists():
            link.symlink_to(files[0])
    flags = " ".join(dict.fromkeys(includes))
    for variable in ("FLASHINFER_EXTRA_CFLAGS", "FLASHINFER_EXTRA_CUDAFLAGS"):
        os.environ[variable] = f"{os.environ.get(variable, '')} {flags}".strip()
    links = f"-L{folder} " + " ".join(
        f"-Wl,-rpath,{parent}"
        for parent in dict.fromkeys(Path(found[n]).parent for n in _LIBRARIES if "/" in found[n])
    )
    os.environ["FLASHINFER_EXTRA_LDFLAGS"] = links.strip()
    return {**found, "flags": flags, "links": links}


def _libraries(root: Path, name: str) -> list[Path]:
    pattern = f"{name}.so*"
    direct = list(root.glob(pattern))
    return direct or (list(root.rglob(pattern)) if root.name == "nvidia" else [])

"""Run the plugin's own kernels on an NVIDIA GPU, with their matrix instructions emulated.

``python run_on_cuda.py [REPORT.json]`` on a machine with a CUDA build of torch, nvcc and a GPU. The
source is ``csrc/kernels.hip``, compiled by nvcc. All else is what runs on an AMD GPU: the kernel
classes, the ops, and `qcore_rocm.driver`, which loads the code and launches kernels on torch's
current stream, here by the functions of CUDA's driver. Waves have 32 lanes and 8-bit floats are
e4m3fn, as on gfx1201. The conformance kit compares every layer with float64.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from ctypes import Structure
from dataclasses import replace
from pathlib import Path

import torch

_PLUGIN = Path(__file__).parents[1]
sys.path[:0] = [str(_PLUGIN / "src"), str(_PLUGIN.parents[1] / "core" / "src")]

from qcore.testing import check_kernel  # noqa: E402
from qcore_rocm import driver, launching, ops, plugin  # noqa: E402
from qcore_rocm.kernels.hip_fp8 import HipFP8ScaledMMLinearKernel  # noqa: E402
from qcore_rocm.kernels.hip_fp8_block import HipFp8BlockScaledMMKernel  # noqa: E402
from qcore_rocm.kernels.hip_int8 import HipInt8ScaledMMLinearKernel  # noqa: E402
from qcore_rocm.kernels.hip_w4a16 import HipW4A16LinearKernel  # noqa: E402

KERNELS = (
    HipInt8ScaledMMLinearKernel,
    HipFP8ScaledMMLinearKernel,
    HipFp8BlockScaledMMKernel,
    HipW4A16LinearKernel,
)
CHECKS = (
    "check_refusals",
    "check_contract",
    "check_numerics",
    "check_packing",
    "check_nan_propagation",
    "check_batch_invariance",
    "check_opcheck",
)


class CudaMachine:
    """A `qcore_rocm.launching.Launcher` by CUDA's driver."""

    def __init__(self, code: bytes) -> None:
        major, minor = torch.cuda.get_device_capability()
        self.arch: str | None = f"sm_{major}{minor}"
        torch.zeros(1, device="cuda")  # makes the context that the driver's calls are for
        self._driver = driver.Driver(driver.CUDA)
        self._module = self._driver.load(code)
        self._functions: dict[str, int] = {}
        self.launched: dict[str, int] = {}

    def launch(
        self, kernel: str, args: Structure, grid: tuple[int, int], device: torch.device
    ) -> None:
        """See `Launcher`."""
        if kernel not in self._functions:
            self._functions[kernel] = self._driver.function(self._module, kernel)
        stream = torch.cuda.current_stream(device).cuda_stream
        self._driver.launch(self._functions[kernel], grid, 4 * 32, stream, args)
        self.launched[kernel] = self.launched.get(kernel, 0) + 1


def compiled() -> bytes:
    """The kernels, for this machine's GPU."""
    major, minor = torch.cuda.get_device_capability()
    source = _PLUGIN / "csrc" / "kernels.hip"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "kernels.cubin"
        command = ["nvcc", "-x", "cu", "-std=c++17", f"-arch=sm_{major}{minor}", "-cubin"]
        subprocess.run([*command, "--fmad=false", str(source), "-o", str(built)], check=True)
        return built.read_bytes()


def same_in_a_graph() -> bool:
    """A layer in a CUDA graph gives what it gives outside."""
    x = torch.randn(33, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.randint(-127, 128, (130, 256), device="cuda", dtype=torch.int8)
    scale = torch.rand(130, device="cuda")

    def run() -> torch.Tensor:
        return ops.INT8_LINEAR(x, weight, scale, None, None, None, None, torch.bfloat16)

    expected = run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return torch.equal(out, expected)


def main(report: str | None) -> int:
    machine = CudaMachine(compiled())
    specs = {spec.name: spec for spec in plugin.qcore_kernels()}
    kernels = []
    with launching.stand_in(machine):
        for kernel in KERNELS:
            spec = replace(specs[kernel.__name__], platforms=("cuda",), archs=())
            found = check_kernel(
                kernel, device="cuda", spec=spec, checks=CHECKS, raise_on_failure=False
            )
            print(found, flush=True)
            kernels.append(found.to_dict())
        same = same_in_a_graph()
    print(f"in a CUDA graph: {'the same bits' if same else 'WRONG'}")
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "what": "csrc/kernels.hip by nvcc, matrix instructions emulated, CUDA's driver for HIP's",
        "same_in_a_graph": same,
        "launched": dict(sorted(machine.launched.items())),
        "kernels": kernels,
    }
    print(json.dumps(result["launched"]))
    if report:
        Path(report).write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return int(not same or not all(kernel["ok"] for kernel in kernels))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))

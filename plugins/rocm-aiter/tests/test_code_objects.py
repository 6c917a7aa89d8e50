"""The code objects of the installed wheel: what is in them, and that nothing spills."""

from __future__ import annotations

import ctypes

import code_object
import pytest
from qcore_rocm import launching, library

ARGUMENTS = {
    "quantize_groups": launching.QuantizeGroups,
    "block_scaled_mm": launching.BlockScaledMM,
    "quantize": launching.QuantizeRows,
    "scaled_mm": launching.ScaledMM,
    "w4a16": launching.W4A16,
}
PRODUCTS = {
    "gfx90a": {
        "int8": "v_mfma_i32_16x16x16i8",
        "f16": "v_mfma_f32_16x16x16f16",
        "bf16": "v_mfma_f32_16x16x16bf16_1k",
    },
    "gfx942": {
        "int8": "v_mfma_i32_16x16x32_i8",
        "fp8": "v_mfma_f32_16x16x32_fp8_fp8",
        "f16": "v_mfma_f32_16x16x16_f16",
        "bf16": "v_mfma_f32_16x16x16_bf16",
    },
    "gfx1201": {
        "int8": "v_wmma_i32_16x16x16_iu8",
        "fp8": "v_wmma_f32_16x16x16_fp8_fp8",
        "f16": "v_wmma_f32_16x16x16_f16",
        "bf16": "v_wmma_f32_16x16x16_bf16",
    },
}
PRODUCTS["gfx950"] = PRODUCTS["gfx942"]


@pytest.fixture(params=library.ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    if request.param not in library.compiled_archs():
        pytest.skip(f"no code object for {request.param}: {library.built()}")
    return str(request.param)


def names_of(arch: str) -> set[str]:
    """The kernels that ops ask for."""
    names = set()
    for kind in ("int8", "fp8") if arch in library.FP8_ARCHS else ("int8",):
        names |= {f"quantize_{kind}_{dtype}" for dtype in ("f32", "f16", "bf16")}
        names |= {f"scaled_mm_{kind}_{rows}" for rows in (16, 64)}
    if arch in library.FP8_ARCHS:
        names |= {f"quantize_groups_{dtype}" for dtype in ("f32", "f16", "bf16")}
        names |= {f"block_scaled_mm_fp8_{rows}" for rows in (16, 64)}
    for dtype in ("f16", "bf16"):
        names |= {f"w4a16_{dtype}_{rows}" for rows in ("few", 16, 64)}
    return names


def test_kernels(arch: str) -> None:
    """Names, waves, arguments and registers, as the metadata has them."""
    code = library.code_object(arch)
    target = code_object.metadata(code)["amdhsa.target"]
    assert target.partition("--")[2].partition(":")[0] == arch
    kernels = code_object.kernels(code)
    assert set(kernels) == names_of(arch)
    wave = 32 if arch.startswith("gfx1") else 64
    for name, kernel in kernels.items():
        assert kernel[".wavefront_size"] == wave
        assert kernel[".max_flat_workgroup_size"] == 4 * wave
        assert kernel[".vgpr_spill_count"] == kernel[".sgpr_spill_count"] == 0, name
        assert kernel[".private_segment_fixed_size"] == 0, name
        assert kernel[".group_segment_fixed_size"] <= 32 << 10
        struct = next(v for k, v in ARGUMENTS.items() if name.startswith(k))
        (argument,) = kernel[".args"]
        assert argument[".size"] == kernel[".kernarg_segment_size"] == ctypes.sizeof(struct)


@pytest.mark.skipif(code_object.objdump() is None, reason="llvm-objdump is not installed")
def test_matrix_instructions(arch: str) -> None:
    """Products are made by the matrix instruction of their type, and by no other."""
    program = code_object.objdump()
    assert program is not None
    path = library.code_object_path(arch)
    found = code_object.instructions(path, program)
    if not found:
        pytest.skip(f"{program} knows no {arch}")
    for name, instructions in found.items():
        matrix = {word for word in instructions if word.startswith(("v_mfma", "v_wmma"))}
        if name.startswith("quantize") or name.endswith("few"):
            assert not matrix
            continue
        kind = name.split("_")[-2]
        assert matrix == {PRODUCTS[arch][kind]}, name
        assert not any("scratch" in word for word in instructions), name

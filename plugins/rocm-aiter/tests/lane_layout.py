"""Where the lanes of a wave hold the matrices of the instructions that the kernels use.

AMD publishes it in its documents of the instruction sets, and as a program,
https://github.com/ROCm/amd_matrix_instruction_calculator. `tools/compare_lane_layouts.py` compares
this file with that program; as of its commit 2ef9189 no entry differs. gfx950 has the instructions
of gfx942, and others that are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LAYOUTS", "Layout"]


@dataclass(frozen=True)
class Layout:
    """One instruction: D [16, 16] += A [16, k] B [k, 16].

    Attributes:
        instruction: its name.
        calculator_arch: the architecture, as AMD's calculator calls it.
        wave: lanes in a wave.
        k: products summed for each element.
        bits: of an element of A and B.
        run: elements of A along K that lie in one lane before the next lane's begin; 0 for all.
    """

    instruction: str
    calculator_arch: str
    wave: int
    k: int
    bits: int
    run: int = 0

    @property
    def each(self) -> int:
        """Elements of A that a lane holds."""
        return 16 * self.k // self.wave

    def _along(self, k: int) -> tuple[int, int]:
        """(which of the lanes of a row or column, element in the lane)."""
        run, lanes = self.run or self.each, self.wave // 16
        turn, lane = divmod(k // run, lanes)
        return lane, turn * run + k % run

    def a(self, row: int, k: int) -> tuple[int, int]:
        """(lane, element in the lane) of A[row][k]."""
        lane, element = self._along(k)
        return row + 16 * lane, element

    def b(self, k: int, column: int) -> tuple[int, int]:
        """(lane, element in the lane) of B[k][column]."""
        lane, element = self._along(k)
        return column + 16 * lane, element

    def d(self, row: int, column: int) -> tuple[int, int]:
        """(lane, element in the lane) of D[row][column]."""
        rows = 256 // self.wave
        return column + 16 * (row // rows), row % rows


LAYOUTS = {
    "gfx90a int8": Layout("v_mfma_i32_16x16x16i8", "cdna2", 64, 16, 8),
    "gfx90a f16": Layout("v_mfma_f32_16x16x16f16", "cdna2", 64, 16, 16),
    "gfx90a bf16": Layout("v_mfma_f32_16x16x16bf16_1k", "cdna2", 64, 16, 16),
    "gfx942 int8": Layout("v_mfma_i32_16x16x32_i8", "cdna3", 64, 32, 8),
    "gfx942 fp8": Layout("v_mfma_f32_16x16x32_fp8_fp8", "cdna3", 64, 32, 8),
    "gfx942 f16": Layout("v_mfma_f32_16x16x16_f16", "cdna3", 64, 16, 16),
    "gfx942 bf16": Layout("v_mfma_f32_16x16x16_bf16", "cdna3", 64, 16, 16),
    "gfx1201 int8": Layout("v_wmma_i32_16x16x16_iu8", "rdna4", 32, 16, 8),
    "gfx1201 fp8": Layout("v_wmma_f32_16x16x16_fp8_fp8", "rdna4", 32, 16, 8),
    "gfx1201 f16": Layout("v_wmma_f32_16x16x16_f16", "rdna4", 32, 16, 16, 4),
    "gfx1201 bf16": Layout("v_wmma_f32_16x16x16_bf16", "rdna4", 32, 16, 16, 4),
}

// The matrix instructions: D [16, 16] += A [16, K] B [K, 16], by a whole wave.
//
// A lane gives kBytes side by side of a row of A and as many of a column of B: of row (column)
// lane % 16, and of the inputs of place lane / 16. It gets kSums elements of D, of column lane % 16 and
// rows (lane / 16) * kSums onwards. Which inputs have which place does not matter as long as A and B
// agree, so operands are loaded in one piece, also where the hardware counts K in turns (16-bit operands
// of gfx12). tests/lane_layout.py has the layouts that AMD publishes, and where.
#pragma once

#include "gpu_runtime.h"

struct Int8 {
  using Sum = int32_t;
};
struct Fp8 {
  using Sum = float;
};
struct F16 {
  using Sum = float;
  static QCORE_DEVICE float read(uint16_t bits) { return from_f16(bits); }
  static QCORE_DEVICE uint16_t round(float value) { return to_f16(value); }
};
struct Bf16 {
  using Sum = float;
  static QCORE_DEVICE float read(uint16_t bits) { return from_bf16(bits); }
  static QCORE_DEVICE uint16_t round(float value) { return to_bf16(value); }
};

#if defined(__HIP__) || defined(__AMDGCN__)
template <typename T, int N>
using Vec = T __attribute__((ext_vector_type(N)));

template <typename Element>
struct MatrixUnit;

#define QCORE_MATRIX_UNIT(ELEMENT, BYTES, OPERAND, SUMS, CALL)                                  \
  template <>                                                                                   \
  struct MatrixUnit<ELEMENT> {                                                                  \
    static constexpr int kBytes = BYTES, kSums = SUMS;                                          \
    using Sums = Vec<ELEMENT::Sum, SUMS>;                                                       \
    static QCORE_DEVICE Sums multiply(const Bytes<BYTES>& left, const Bytes<BYTES>& right,      \
                                      Sums sums) {                                              \
      const OPERAND a = bits_of<OPERAND>(left), b = bits_of<OPERAND>(right);                    \
      return CALL;                                                                              \
    }                                                                                           \
  };

using Half4 = Vec<_Float16, 4>;
using Short4 = Vec<short, 4>;
#if defined(__gfx90a__)
QCORE_MATRIX_UNIT(Int8, 4, int, 4, __builtin_amdgcn_mfma_i32_16x16x16i8(a, b, sums, 0, 0, 0))
#elif defined(__gfx942__) || defined(__gfx950__)
QCORE_MATRIX_UNIT(Int8, 8, long, 4, __builtin_amdgcn_mfma_i32_16x16x32_i8(a, b, sums, 0, 0, 0))
QCORE_MATRIX_UNIT(Fp8, 8, long, 4, __builtin_amdgcn_mfma_f32_16x16x32_fp8_fp8(a, b, sums, 0, 0, 0))
#define QCORE_HAS_FP8
#elif defined(__gfx1201__)
using Int2 = Vec<int, 2>;
using Half8 = Vec<_Float16, 8>;
using Short8 = Vec<short, 8>;
QCORE_MATRIX_UNIT(Int8, 8, Int2, 8,
                  __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, a, true, b, sums, false))
QCORE_MATRIX_UNIT(Fp8, 8, Int2, 8, __builtin_amdgcn_wmma_f32_16x16x16_fp8_fp8_w32_gfx12(a, b, sums))
QCORE_MATRIX_UNIT(F16, 16, Half8, 8, __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(a, b, sums))
QCORE_MATRIX_UNIT(Bf16, 16, Short8, 8,
                  __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(a, b, sums))
#define QCORE_HAS_FP8
#else
#error "written for gfx90a, gfx942, gfx950 and gfx1201"
#endif
#if !defined(__gfx1201__)
QCORE_MATRIX_UNIT(F16, 8, Half4, 4, __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, sums, 0, 0, 0))
QCORE_MATRIX_UNIT(Bf16, 8, Short4, 4,
                  __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, sums, 0, 0, 0))
#endif

#else
#include "matrix_unit_emulated.h"
#endif

#include <immintrin.h>

#include "isa.h"

namespace qcore_cpu {
#include "vec_avx512.h"
#include "wna16_kernels.h"
#include "e2m1_kernels.h"

// Products of bfloat16; the rest is avx512's.
constexpr IsaKernels make_avx512_bf16() {
  IsaKernels kernels{};
  kernels.name = "avx512_bf16";
  fill(kernels.wna16[static_cast<int>(Compute::bf16)],
       [](auto bits) { return wna16_table<DotBf16, bits>(); });
  kernels.e2m1[1] = wna16_table<E2m1Bf16, 4>();
  kernels.e4m3[1] = wna16_table<E4m3Bf16, 8>();
  return kernels;
}

constexpr IsaKernels avx512_bf16_kernels = make_avx512_bf16();
}  // namespace qcore_cpu

#include <immintrin.h>

#include "isa.h"

namespace qcore_cpu {
#include "vec_avx512.h"
#include "wna16_kernels.h"
#include "e2m1_kernels.h"
#include "wna16_amx.h"

// Products of bfloat16 and of integers by tiles; the rest is avx512_bf16's and avx512's.
constexpr IsaKernels make_amx() {
  IsaKernels kernels{};
  kernels.name = "amx";
  fill(kernels.wna16[static_cast<int>(Compute::bf16)],
       [](auto bits) { return Wna16Amx<DotBf16, bits>::table(); });
  fill(kernels.wna16[static_cast<int>(Compute::int8)],
       [](auto bits) { return Wna16Amx<DotInt8<bits>, bits>::table(); });
  kernels.e2m1[1] = Wna16Amx<E2m1Bf16, 4>::table();
  return kernels;
}

constexpr IsaKernels amx_kernels = make_amx();
}  // namespace qcore_cpu

#include <immintrin.h>

#include "isa.h"

namespace qcore_cpu {
#include "vec_avx2.h"
#include "wna16_kernels.h"
#include "int8_kernels.h"

// Products of integers; the rest is avx2's.
constexpr IsaKernels make_avxvnni() {
  IsaKernels kernels{};
  kernels.name = "avxvnni";
  const auto exact = [](auto bits) { return wna16_table<DotExact<bits>, bits>(); };
  fill(kernels.wna16[static_cast<int>(Compute::f32)], exact);
  fill(kernels.wna16[static_cast<int>(Compute::bf16)], exact);
  fill(kernels.wna16[static_cast<int>(Compute::int8)],
       [](auto bits) { return wna16_table<DotInt8<bits>, bits>(); });
  kernels.int8 = int8_table();
  return kernels;
}

constexpr IsaKernels avxvnni_kernels = make_avxvnni();
}  // namespace qcore_cpu

#include <immintrin.h>

#include "isa.h"

#define QCORE_INLINE inline __attribute__((always_inline))
#define QCORE_BODY __attribute__((always_inline))  // of a lambda
#define QCORE_NOINLINE __attribute__((noinline))  // registers are shared out within a function

namespace qcore_cpu {
#include "vec_avx2.h"
#include "wna16_kernels.h"
#include "int8_kernels.h"

// Products of integers; the rest is avx2's.
template <template <int> class Dot>
constexpr void fill(Wna16Kernels* widths) {
  widths[width_index(2)] = wna16_table<Dot<2>, 2>();
  widths[width_index(4)] = wna16_table<Dot<4>, 4>();
  widths[width_index(5)] = wna16_table<Dot<5>, 5>();
  widths[width_index(6)] = wna16_table<Dot<6>, 6>();
  widths[width_index(8)] = wna16_table<Dot<8>, 8>();
}

constexpr IsaKernels make_avxvnni() {
  IsaKernels kernels{};
  kernels.name = "avxvnni";
  fill<DotDigits>(kernels.wna16[static_cast<int>(Compute::f32)]);
  fill<DotDigits>(kernels.wna16[static_cast<int>(Compute::bf16)]);
  fill<DotInt8>(kernels.wna16[static_cast<int>(Compute::int8)]);
  kernels.int8 = int8_table();
  return kernels;
}

extern const IsaKernels avxvnni_kernels = make_avxvnni();
}  // namespace qcore_cpu

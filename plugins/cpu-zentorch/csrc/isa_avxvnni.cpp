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
constexpr IsaKernels make_avxvnni() {
  IsaKernels kernels{};
  kernels.name = "avxvnni";
  Wna16Kernels* int8_compute = kernels.wna16[static_cast<int>(Compute::int8)];
  int8_compute[0] = wna16_table<DotInt8<2>, 2>();
  int8_compute[1] = wna16_table<DotInt8<4>, 4>();
  int8_compute[2] = wna16_table<DotInt8<8>, 8>();
  kernels.int8 = int8_table();
  return kernels;
}

extern const IsaKernels avxvnni_kernels = make_avxvnni();
}  // namespace qcore_cpu

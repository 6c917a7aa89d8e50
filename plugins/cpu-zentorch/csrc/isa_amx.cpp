#include <immintrin.h>

#include "isa.h"

#define QCORE_INLINE inline __attribute__((always_inline))
#define QCORE_BODY __attribute__((always_inline))  // of a lambda
#define QCORE_NOINLINE __attribute__((noinline))  // registers are shared out within a function

namespace qcore_cpu {
#include "vec_avx512.h"
#include "wna16_kernels.h"
#include "int8_kernels.h"
#include "e2m1_kernels.h"
#include "wna16_amx.h"

// What is left out is avx512_bf16's.
constexpr IsaKernels make_amx() {
  IsaKernels kernels{};
  kernels.name = "amx";
  Wna16Kernels* bf16 = kernels.wna16[static_cast<int>(Compute::bf16)];
  bf16[width_index(2)] = Wna16Amx<DotBf16, 2>::table();
  bf16[width_index(4)] = Wna16Amx<DotBf16, 4>::table();
  bf16[width_index(5)] = Wna16Amx<DotBf16, 5>::table();
  bf16[width_index(6)] = Wna16Amx<DotBf16, 6>::table();
  bf16[width_index(8)] = Wna16Amx<DotBf16, 8>::table();
  Wna16Kernels* int8_compute = kernels.wna16[static_cast<int>(Compute::int8)];
  int8_compute[width_index(2)] = Wna16Amx<DotInt8<2>, 2>::table();
  int8_compute[width_index(4)] = Wna16Amx<DotInt8<4>, 4>::table();
  int8_compute[width_index(5)] = Wna16Amx<DotInt8<5>, 5>::table();
  int8_compute[width_index(6)] = Wna16Amx<DotInt8<6>, 6>::table();
  int8_compute[width_index(8)] = Wna16Amx<DotInt8<8>, 8>::table();
  kernels.e2m1[1] = Wna16Amx<E2m1Bf16, 4>::table();
  return kernels;
}

extern const IsaKernels amx_kernels = make_amx();
}  // namespace qcore_cpu

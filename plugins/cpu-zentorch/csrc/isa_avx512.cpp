#include <immintrin.h>

#include "isa.h"

#define QCORE_INLINE inline __attribute__((always_inline))

namespace qcore_cpu {
#include "vec_avx512.h"
#include "wna16_kernels.h"
#include "int8_kernels.h"
#include "e2m1_kernels.h"

extern const IsaKernels avx512_kernels = with_e2m1(make_kernels("avx512"));
}  // namespace qcore_cpu

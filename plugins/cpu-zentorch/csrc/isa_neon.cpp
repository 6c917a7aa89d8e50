#include <arm_neon.h>

#include "isa.h"

#define QCORE_INLINE inline __attribute__((always_inline))
#define QCORE_BODY __attribute__((always_inline))  // of a lambda
#define QCORE_NOINLINE __attribute__((noinline))  // registers are shared out within a function

namespace qcore_cpu {
#include "vec_neon.h"
#include "wna16_kernels.h"
#include "int8_kernels.h"
#include "e2m1_kernels.h"

extern const IsaKernels neon_kernels = with_e2m1(make_kernels("neon"));
}  // namespace qcore_cpu

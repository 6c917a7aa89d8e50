#include <math.h>
#include <string.h>

#include "isa.h"

#define QCORE_INLINE inline __attribute__((always_inline))

namespace qcore_cpu {
#include "vec_scalar.h"
#include "wna16_kernels.h"
#include "int8_kernels.h"
#include "e2m1_kernels.h"

extern const IsaKernels scalar_kernels = with_e2m1(make_kernels("scalar"));
}  // namespace qcore_cpu

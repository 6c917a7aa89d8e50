#include <arm_neon.h>

#include "isa.h"

namespace qcore_cpu {
#include "vec_neon.h"
#include "isa_table.h"

constexpr IsaKernels neon_kernels = make_kernels("neon");
}  // namespace qcore_cpu

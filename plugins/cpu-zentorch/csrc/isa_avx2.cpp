#include <immintrin.h>

#include "isa.h"

namespace qcore_cpu {
#include "vec_avx2.h"
#include "isa_table.h"

constexpr IsaKernels avx2_kernels = make_kernels("avx2");
}  // namespace qcore_cpu

#include <immintrin.h>

#include "isa.h"

namespace qcore_cpu {
#include "vec_avx512.h"
#include "isa_table.h"

constexpr IsaKernels avx512_kernels = make_kernels("avx512");
}  // namespace qcore_cpu

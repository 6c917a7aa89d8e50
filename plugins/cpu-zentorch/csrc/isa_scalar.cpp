#include <math.h>
#include <string.h>

#include "isa.h"

namespace qcore_cpu {
#include "vec_scalar.h"
#include "isa_table.h"

constexpr IsaKernels scalar_kernels = make_kernels("scalar");
}  // namespace qcore_cpu

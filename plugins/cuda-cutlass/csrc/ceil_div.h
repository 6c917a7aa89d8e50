// a / b, rounded up; for headers that need nothing of torch, too.
#pragma once

#include <cstdint>

namespace qcore_cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace qcore_cuda

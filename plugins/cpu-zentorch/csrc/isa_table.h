// The whole table of one instruction set; included by isa_<name>.cpp after its vec_*.h.

#include "wna16_kernels.h"
#include "int8_kernels.h"
#include "e2m1_kernels.h"
#include "attention_kernels.h"

namespace {

constexpr IsaKernels make_kernels(const char* name) {
  IsaKernels kernels{};
  kernels.name = name;
  const auto exact = [](auto bits) { return wna16_table<DotExact<bits>, bits>(); };
  fill(kernels.wna16[static_cast<int>(Compute::f32)], exact);
  fill(kernels.wna16[static_cast<int>(Compute::bf16)], exact);
  fill(kernels.wna16[static_cast<int>(Compute::int8)],
       [](auto bits) { return wna16_table<DotInt8<bits>, bits>(); });
  kernels.quantize_row = quantize_row;
  kernels.int8 = int8_table();
  for (int bf16 = 0; bf16 < 2; ++bf16) {
    kernels.e2m1[bf16] = wna16_table<E2m1F32, 4>();
    kernels.e4m3[bf16] = wna16_table<E4m3F32, 8>();
  }
  kernels.lookup[0] = wna16_table<LookupF32, 4>();
  kernels.lookup[1] = wna16_table<LookupF32, 8>();
  kernels.round_row = round_row;
  kernels.row_amax = row_amax;
  kernels.attend = attend;
  return kernels;
}

}  // namespace

// A product of NVFP4 with NVFP4 by CUTLASS, as its kernels and the op that chooses one of them share it.
#pragma once

#include "op_support.h"

namespace qcore_cuda {

// out = alpha * (a * a_scale) @ (b * b_scale).T: codes of e2m1, two in a byte, the even element low; a [M, K],
// b [N, K], both without gaps. The scales are e4m3, one for each 16 of K, in the 128x4 order (fp4_quant.cu).
struct NvFp4MM {
  int m, n, k;
  const void* a;
  const void* b;
  const void* a_scale;
  const void* b_scale;
  const float* alpha;
  void* out;
  bool out_bf16;
  int device, sm_count;
  cudaStream_t stream;
};

// One in each file that CMake makes; both generations' instructions differ, and so do their tiles.
void nvfp4_mm_sm100_bf16(const NvFp4MM& p);
void nvfp4_mm_sm100_f16(const NvFp4MM& p);
void nvfp4_mm_sm120_bf16(const NvFp4MM& p);
void nvfp4_mm_sm120_f16(const NvFp4MM& p);

}  // namespace qcore_cuda

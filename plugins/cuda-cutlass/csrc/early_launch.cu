// Whether kernels can be launched early: where they were compiled for SM90 or later.

#include "op_support.h"

namespace qcore_cuda {
namespace {

// Compiled for what all kernels of no particular generation are compiled for.
__global__ void any_kernel() {}

}  // namespace

bool compiled_for_sm90_or_later() {
  cudaFuncAttributes facts;
  return cudaFuncGetAttributes(&facts, any_kernel) == cudaSuccess && facts.ptxVersion >= 90;
}

}  // namespace qcore_cuda

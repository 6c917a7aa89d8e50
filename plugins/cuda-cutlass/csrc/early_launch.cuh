// Launches that do not wait for the kernel ahead to end ("programmatic dependent launch", CUDA C++ Programming
// Guide): blocks take their places as those of the kernel ahead leave, and do what depends on no other kernel,
// above all fetch weights. A chain of short kernels then costs little more than what they read.
//
// Every kernel that is launched so calls begin_turn in every block, before it touches what another kernel may
// have written or may still read: activations, their scales, outputs, workspace.
// With QCORE_EMULATED tests put their own in its place, for a processor without a GPU.
#pragma once
#ifndef QCORE_EMULATED

#include "op_support.h"

namespace qcore_cuda {

// Waits until the kernels ahead are done and what they wrote can be seen; then the next may take places. In this
// order, so that no kernel runs ahead of more than one other: what is fetched early was written before that one.
__device__ __forceinline__ void begin_turn() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct LaunchShape {
  dim3 grid;
  unsigned threads;
  size_t shared;
  cudaStream_t stream;
  bool early;  // DeviceFacts::sm90_code
  dim3 cluster = {1, 1, 1};
};

// The same as the runtime wants it.
struct LaunchConfig {
  cudaLaunchConfig_t config = {};

  explicit LaunchConfig(const LaunchShape& shape) {
    config.gridDim = shape.grid;
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared;
    config.stream = shape.stream;
    config.attrs = attributes_;
    if (shape.early) {
      attributes_[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes_[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster.x * shape.cluster.y * shape.cluster.z > 1) {
      attributes_[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes_[config.numAttrs++].val.clusterDim = {shape.cluster.x, shape.cluster.y, shape.cluster.z};
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;  // it points into itself
  LaunchConfig& operator=(const LaunchConfig&) = delete;

 private:
  cudaLaunchAttribute attributes_[2];
};

template <typename... Params, typename... Args>
void launch_kernel(const char* op, const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  const LaunchConfig launch(shape);
  const cudaError_t error = cudaLaunchKernelEx(&launch.config, kernel, Params(args)...);
  QCORE_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

}  // namespace qcore_cuda

#endif  // QCORE_EMULATED

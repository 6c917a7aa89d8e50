// The quantizers as functions: for their ops and for the layers, which multiply what they give. What is
// passed has been checked, except that x is of a float type.
#pragma once

#include "op_support.h"

namespace qcore_cuda {

struct Where {
  const char* op;  // for messages
  const DeviceFacts& device;
  cudaStream_t stream;
};

inline Where where(const char* op, const Tensor& x, const Launch& launch) {
  return {op, device_facts(x.get_device_index()), launch.stream()};
}

// By one scale that is known; azp may be null.
void int8_by_scale(const Where& at, const Rows& x, void* codes, const float* scale, const int32_t* azp);
// With a scale for each row, and where azp is not null a zero point.
void int8_by_row(const Where& at, const Rows& x, void* codes, float* scale, int32_t* azp);

void fp8_by_scale(const Where& at, const Rows& x, void* codes, const float* scale);
// With one scale, by way of the tensor's largest magnitude, for which `amax` has room.
void fp8_by_tensor(const Where& at, const Rows& x, void* codes, float* scale, uint32_t* amax);
// With a scale for each row; `upper_bound` may be null.
void fp8_by_row(const Where& at, const Rows& x, void* codes, float* scale, const float* upper_bound);
// With a scale for each 128 elements of a row, that of group g of row r at [r + g * group_stride].
void fp8_by_group_of_128(const Where& at, const Rows& x, void* codes, float* scale, int64_t group_stride, float eps);

}  // namespace qcore_cuda

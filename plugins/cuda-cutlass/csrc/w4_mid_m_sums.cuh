// SM90, a medium number of rows: a block's sums added up, and stored as results. For w4_mid_m_kernel.cuh, which brings
// what it needs of sm90_ptx.cuh, or tests' stand-in for it.
#pragma once

#include "w4_mid_m_problem.cuh"

namespace qcore_cuda::mid_m {

using namespace sm90;

__device__ __forceinline__ float as_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float as_float(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ __forceinline__ uint32_t pair_of(__half, float a, float b) { return as_bits(__floats2half2_rn(a, b)); }
__device__ __forceinline__ uint32_t pair_of(__nv_bfloat16, float a, float b) { return as_bits(__floats2bfloat162_rn(a, b)); }

template <typename T, class KIND>
__device__ __forceinline__ void store_four(const Problem& p, int row, int column, const float4& four) {
  float v[4] = {four.x, four.y, four.z, four.w};
  const int64_t at = static_cast<int64_t>(row) * p.n_out + column;
  const int count = min(4, p.n_out - column);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j >= count) break;
    if constexpr (!KIND::kFloat) v[j] *= KIND::kMore;
    else if (p.column_scales) v[j] *= p.column_scales[column + j] * KIND::kMore;
    if (p.bias) {
      v[j] += p.bias_float ? static_cast<const float*>(p.bias)[column + j]
                           : as_float(static_cast<const T*>(p.bias)[column + j]);
    }
  }
  if (p.n_out % 4 == 0) {  // then four are there, and aligned
    if (count <= 0) return;
    if (p.out_float) *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = make_float4(v[0], v[1], v[2], v[3]);
    else *reinterpret_cast<uint2*>(static_cast<T*>(p.out) + at) = make_uint2(pair_of(T{}, v[0], v[1]), pair_of(T{}, v[2], v[3]));
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j >= count) return;
    if (p.out_float) static_cast<float*>(p.out)[at + j] = v[j];
    else assign_to(static_cast<T*>(p.out)[at + j], v[j]);
  }
}

__device__ __forceinline__ void add_to(float4& sum, const float4& v) {
  sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
}

// Sums lie in `shared` for each part of a block's K, [rows, stride]: their total goes to memory. A thread has four
// columns, and rows that are as many apart as `threads` are enough for: a warp's columns are eight times four.
template <typename T, class KIND, class S>
__device__ __forceinline__ void finish(const Problem& p, float* shared) {
  const int columns = p.plan.column_warps * kWarpColumns, stride = columns + 4, tile = S::kRows * stride;
  const int fours = columns / 4, step = 4 * p.plan.k_warps;
  const int first = threadIdx.x / fours, column = threadIdx.x % fours * 4;
  const int row0 = blockIdx.x * S::kRows, column0 = blockIdx.z * columns, rows = min(S::kRows, p.m - row0);
  for (int row = first; row < rows; row += step) {
    auto* const at = reinterpret_cast<float4*>(shared + row * stride + column);
    float4 sum = *at;
    for (int k = 1; k < p.plan.k_warps; ++k) add_to(sum, at[k * tile / 4]);
    if (p.plan.split > 1) *at = sum;
    else store_four<T, KIND>(p, row0 + row, column0 + column, sum);
  }
  if (p.plan.split == 1) return;
  cluster_sync();
  // A block of a cluster has every so manieth row.
  for (int row = first * p.plan.split + blockIdx.y; row < rows; row += step * p.plan.split) {
    float4 sum = {};
    for (int s = 0; s < p.plan.split; ++s) add_to(sum, of_block(shared + row * stride + column, s));
    store_four<T, KIND>(p, row0 + row, column0 + column, sum);
  }
  cluster_leave();
}

}  // namespace qcore_cuda::mid_m

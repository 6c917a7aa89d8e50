// What becomes of the sums of SM90's kernel for many rows (w4_sm90_kernel.cuh): parts of K are added up, scales of
// columns and bias are put to them, rows are stored.
#pragma once

#include "w4_sm90_shape.cuh"

namespace qcore_cuda {
namespace {

template <typename T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  if constexpr (std::is_same<T, __half>::value) return as_bits(__floats2half2_rn(low, high));
  else return as_bits(__floats2bfloat162_rn(low, high));
}

template <typename T>
__device__ __forceinline__ float bias_at(const Problem& p, int column) {
  if (!p.bias || column >= p.n) return 0.0f;
  return p.bias_float ? static_cast<const float*>(p.bias)[column] : from_16(static_cast<const T*>(p.bias)[column]);
}

// What a column's sums are multiplied by, if by anything.
template <class KIND>
constexpr bool kHasFactor = KIND::kFloat || KIND::kMore != 1.0f;
template <class KIND>
__device__ __forceinline__ float factor_at(const Problem& p, int column) {
  if constexpr (KIND::kFloat) return p.column_scales && column < p.n ? p.column_scales[column] * KIND::kMore : 1.0f;
  return KIND::kMore;
}

// Columns of a row of out, as many as a vector has, as far as there are columns.
template <typename T, typename Vector>
__device__ __forceinline__ void store_some(const Problem& p, int row, int column, const Vector& some) {
  constexpr int kCount = sizeof(Vector) / sizeof(T);
  T* const to = static_cast<T*>(p.out) + static_cast<int64_t>(row) * p.n + column;
  if (p.n % kCount == 0) {
    if (column < p.n) *reinterpret_cast<Vector*>(to) = some;
  } else {
    const T* const from = reinterpret_cast<const T*>(&some);
    for (int i = 0; i < kCount && column + i < p.n; ++i) to[i] = from[i];
  }
}

// The sums of all parts of K, of which there are PARTS at most, a share of the rows for each block. A thread adds COUNT
// times four columns at a time: what it waits for is other blocks' shared memory, once for all of them.
template <typename T, class KIND, typename S, int PARTS, int COUNT>
__device__ __forceinline__ void add_up_to(const Problem& p, const Place& at, const float* sums, int rank) {
  constexpr int kAcross = S::kColumns / 4;
  const int rows = min(S::kRows, p.m - at.m * S::kRows), each = (rows + p.parts - 1) / p.parts, begin = rank * each;
  const int wanted = min(each, rows - begin) * kAcross;
  for (int first = threadIdx.x; first < wanted; first += COUNT * kConsumers) {
    float4 found[PARTS][COUNT];
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const int item = min(first + i * kConsumers, wanted - 1);
        const float* const mine = sums + (begin + item / kAcross) * S::kSumStride + item % kAcross * 4;
        if (part < p.parts) found[part][i] = of_block(mine, part);
      }
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int item = first + i * kConsumers;
      if (item >= wanted) break;
      float total[4] = {found[0][i].x, found[0][i].y, found[0][i].z, found[0][i].w};
#pragma unroll
      for (int part = 1; part < PARTS; ++part) {
        if (part >= p.parts) continue;
        total[0] += found[part][i].x, total[1] += found[part][i].y;
        total[2] += found[part][i].z, total[3] += found[part][i].w;
      }
      const int column = at.n * S::kColumns + item % kAcross * 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kHasFactor<KIND>) total[j] *= factor_at<KIND>(p, column + j);
        total[j] += bias_at<T>(p, column + j);
      }
      store_some<T>(p, at.m * S::kRows + begin + item / kAcross, column,
                    make_uint2(packed<T>(total[0], total[1]), packed<T>(total[2], total[3])));
    }
  }
}

template <typename T, class KIND, typename S>
__device__ __forceinline__ void add_parts(const Problem& p, const Place& at, const float* sums, int rank) {
  if (p.parts <= 2) add_up_to<T, KIND, S, 2, 4>(p, at, sums, rank);
  else if (p.parts <= 4) add_up_to<T, KIND, S, 4, 2>(p, at, sums, rank);
  else add_up_to<T, KIND, S, 8, 2>(p, at, sums, rank);
}

}  // namespace
}  // namespace qcore_cuda

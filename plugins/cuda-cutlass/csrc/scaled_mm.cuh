// Tensor-core products of 8-bit numbers by mma.sync, and the end of a scaled product.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "scaled_mm_problem.h"

namespace qcore_cuda {

struct Int8 {
  using Acc = int32_t;
};
struct E4m3 {
  using Acc = float;
};

// d += a @ b with m16n8k32: a thread (g = lane / 4, q = lane % 4) has bytes 4q ... 4q+3 and 16+4q ...
// of rows g and g+8 of a (a0: g, a1: g+8, then the upper half) and of column g of b, and of d the
// columns 2q, 2q+1 of row g, then of row g+8.
__device__ __forceinline__ void mma(Int8, int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(E4m3, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

template <typename Out>
__device__ __forceinline__ Out from_float(float v);
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
__device__ __forceinline__ float as_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float as_float(__nv_bfloat16 v) { return __bfloat162float(v); }

// What happens to a sum. `Acc` is int32 where zero points are subtracted exactly; sums of products by
// block come as floats that are scaled already.
template <typename Out>
struct ScaledEnd {
  const float* a_scale;
  const float* b_scale;
  const Out* bias;
  const int32_t* azp;
  const int32_t* azp_adj;
  Out* out;
  int64_t out_stride;
  bool a_per_token, b_per_channel, azp_per_token, scaled;

  __host__ __device__ explicit ScaledEnd(const ScaledMM& p)
      : a_scale(p.a_scale),
        b_scale(p.b_scale),
        bias(static_cast<const Out*>(p.bias)),
        azp(p.azp),
        azp_adj(p.azp_adj),
        out(static_cast<Out*>(p.out)),
        out_stride(p.out_stride),
        a_per_token(p.a_per_token),
        b_per_channel(p.b_per_channel),
        azp_per_token(p.azp_per_token),
        scaled(p.by_block) {}

  struct Row {
    float scale;
    int32_t azp;
  };
  struct Column {
    float scale, bias;
    int32_t azp_adj;
  };
  __device__ __forceinline__ Row row(int m) const {
    return {scaled ? 1.0f : a_scale[a_per_token ? m : 0], azp ? azp[azp_per_token ? m : 0] : 1};
  }
  __device__ __forceinline__ Column column(int n) const {
    return {scaled ? 1.0f : b_scale[b_per_channel ? n : 0], bias ? as_float(bias[n]) : 0.0f, azp_adj ? azp_adj[n] : 0};
  }
  __device__ __forceinline__ float value(const Row& row, const Column& column, int32_t sum) const {
    return value(row, column, static_cast<float>(sum - row.azp * column.azp_adj));
  }
  __device__ __forceinline__ float value(const Row& row, const Column& column, float sum) const {
    if (!scaled) sum = column.scale * (row.scale * sum);
    return bias ? sum + column.bias : sum;
  }
  template <typename Acc>
  __device__ __forceinline__ void store(int m, int n, Acc sum) const {
    out[m * out_stride + n] = from_float<Out>(value(row(m), column(n), sum));
  }
};

template <typename F>
void with_out_type(bool bf16, F&& f) {
  bf16 ? f(__nv_bfloat16{}) : f(__half{});
}

}  // namespace qcore_cuda

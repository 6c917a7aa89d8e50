// What the activation quantizers share: vector loads, reductions that keep NaN, rounding.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "op_support.h"

namespace qcore_cuda {

// ---- elements ----------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

// As many elements as one 16-byte load brings.
template <typename T>
constexpr int kVec = 16 / sizeof(T);

template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Vec {
  T at[VEC];
};

// ---- reductions --------------------------------------------------------------------------------

// Magnitudes are compared as bits: that orders them, and puts infinity and NaN above all others.
__device__ __forceinline__ uint32_t magnitude_bits(float v) { return __float_as_uint(v) & 0x7fffffffu; }

__device__ __forceinline__ float min_nan(float a, float b) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

__device__ __forceinline__ float max_nan(float a, float b) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
  return r;
}

struct MaxBits {
  using Value = uint32_t;
  static __device__ Value identity() { return 0; }
  static __device__ void add(Value& sum, float v) { sum = max(sum, magnitude_bits(v)); }
  static __device__ Value warp(Value v) { return __reduce_max_sync(0xffffffffu, v); }
  static __device__ Value join(Value a, Value b) { return max(a, b); }
};

struct Range {
  using Value = float2;  // lowest, highest; zero is always within
  static __device__ Value identity() { return make_float2(0.0f, 0.0f); }
  static __device__ void add(Value& sum, float v) { sum = {min_nan(sum.x, v), max_nan(sum.y, v)}; }
  static __device__ Value join(Value a, Value b) { return {min_nan(a.x, b.x), max_nan(a.y, b.y)}; }
  static __device__ Value warp(Value v) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
      v = join(v, {__shfl_xor_sync(0xffffffffu, v.x, lane), __shfl_xor_sync(0xffffffffu, v.y, lane)});
    }
    return v;
  }
};

// Over all threads of the block; every thread gets the result.
template <typename Reduction>
__device__ __forceinline__ typename Reduction::Value block_reduce(typename Reduction::Value v) {
  __shared__ typename Reduction::Value of_warp[32];
  v = Reduction::warp(v);
  const int warps = blockDim.x / 32;
  if (warps == 1) return v;
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  v = static_cast<int>(threadIdx.x % 32) < warps ? of_warp[threadIdx.x % 32] : Reduction::identity();
  return Reduction::warp(v);
}

// ---- rounding ----------------------------------------------------------------------------------

// Divides by one number again and again: a correctly rounded x / s at three instructions, as the
// reference divides.
struct Divisor {
  float s, r;

  Divisor() = default;
  __device__ explicit Divisor(float divisor) : s(divisor), r(1.0f / divisor) {}
  __device__ __forceinline__ float operator()(float x) const {
    if (!(fabsf(r) <= 1e38f)) return x / s;  // s is denormal, or NaN; the same for all threads
    const float q = x * r;
    const float better = fmaf(fmaf(-q, s, x), r, q);
    return isfinite(better) ? better : q;
  }
};

__device__ __forceinline__ int8_t to_int8(float v, int azp, int lowest) {
  // The conversion saturates and makes NaN 0. The sum is one of float numbers, as the reference's.
  const int code = __float2int_rn(v);
  const int sum = code > 1000 ? 1000 : code < -1000 ? -1000 : code + azp;
  return static_cast<int8_t>(min(127, max(lowest, sum)));
}

constexpr float kE4m3Max = 448.0f;

__device__ __forceinline__ __nv_fp8_storage_t to_e4m3(float v) {
  return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}

// ---- dispatch over the input's dtype -----------------------------------------------------------

template <typename F>
void with_float_type(const char* op, const char* name, ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Half: return f(__half{});
    case ScalarType::BFloat16: return f(__nv_bfloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " is ", dtype_name(type),
                      "; allowed: Float, Half, BFloat16");
  }
}

inline bool is_aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace qcore_cuda

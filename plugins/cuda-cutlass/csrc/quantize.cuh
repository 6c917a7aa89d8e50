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
  template <typename Pair>
  struct Pairs {
    Pair most = {};
    __device__ void add(const Pair (&p)[4]) {
      const Pair low = __hmax2_nan(__habs2(p[0]), __habs2(p[1])), high = __hmax2_nan(__habs2(p[2]), __habs2(p[3]));
      most = __hmax2_nan(most, __hmax2_nan(low, high));
    }
    __device__ Value value() const { return max(magnitude_bits(to_float(most.x)), magnitude_bits(to_float(most.y))); }
  };
  static __device__ Value warp(Value v) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xffffffffu, v);
#else  // for Marlin's files on SM75, which include this and do not reduce
#pragma unroll
    for (int i = 16; i; i /= 2) {
      const Value other = __shfl_xor_sync(0xffffffffu, v, i);
      v = other > v ? other : v;
    }
    return v;
#endif
  }
  static __device__ Value join(Value a, Value b) { return max(a, b); }
};

struct Range {
  using Value = float2;  // lowest, highest; zero is always within
  static __device__ Value identity() { return make_float2(0.0f, 0.0f); }
  static __device__ void add(Value& sum, float v) { sum = {min_nan(sum.x, v), max_nan(sum.y, v)}; }
  template <typename Pair>
  struct Pairs {
    Pair least = {}, most = {};
    __device__ void add(const Pair (&p)[4]) {
      least = __hmin2_nan(least, __hmin2_nan(__hmin2_nan(p[0], p[1]), __hmin2_nan(p[2], p[3])));
      most = __hmax2_nan(most, __hmax2_nan(__hmax2_nan(p[0], p[1]), __hmax2_nan(p[2], p[3])));
    }
    __device__ Value value() const {
      return {min_nan(to_float(least.x), to_float(least.y)), max_nan(to_float(most.x), to_float(most.y))};
    }
  };
  static __device__ Value join(Value a, Value b) { return {min_nan(a.x, b.x), max_nan(a.y, b.y)}; }
  // As integers in the order of floats, in which NaN is above all others: one in v.x is lost, but there is one in v.y.
  static __device__ Value warp(Value v) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    return {in_order(__reduce_min_sync(0xffffffffu, in_order(v.x))),
            in_order(__reduce_max_sync(0xffffffffu, in_order(v.y)))};
#else  // as above
    return v;
#endif
  }
  static __device__ int in_order(float v) { return in_order_bits(__float_as_int(v)); }
  static __device__ float in_order(int bits) { return __int_as_float(in_order_bits(bits)); }
  static __device__ int in_order_bits(int bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
};

// Zeros change nothing. Pairs of 16-bit numbers are compared as they are, which rounds nothing.
template <typename Reduction, typename T, int VEC, int VECS>
__device__ __forceinline__ typename Reduction::Value reduce_vecs(const Vec<T, VEC> (&v)[VECS]) {
  if constexpr (sizeof(T) == 2 && VEC == 8) {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    typename Reduction::template Pairs<Pair> all;
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
      Pair pairs[4];
      __builtin_memcpy(pairs, &v[i], sizeof(pairs));
      all.add(pairs);
    }
    return all.value();
  } else {
    auto sum = Reduction::identity();
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
#pragma unroll
      for (int j = 0; j < VEC; ++j) Reduction::add(sum, to_float(v[i].at[j]));
    }
    return sum;
  }
}

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

// Correctly rounded, as 1 / v is, which takes longer.
__device__ __forceinline__ float reciprocal(float v) {
  float r;
  asm("rcp.rn.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// Divides by one number again and again: a correctly rounded x / s at three instructions, as the
// reference divides. `x` is finite wherever `s` is a plain number.
struct Divisor {
  float s, r;
  bool plain;  // s is neither denormal nor infinite nor NaN; the same for all threads of a row

  Divisor() = default;
  __device__ explicit Divisor(float divisor)
      : s(divisor), r(reciprocal(divisor)), plain(fabsf(divisor) > 1e-37f && fabsf(divisor) < 1e37f) {}
  // For an x that may be anything.
  static __device__ Divisor of_any(float divisor) {
    Divisor d(divisor);
    d.plain = false;
    return d;
  }
  static Divisor on_host(float divisor) {
    Divisor d;
    d.s = divisor;
    d.r = 1.0f / divisor;
    d.plain = true;
    return d;
  }
  __device__ __forceinline__ float operator()(float x) const {
    return plain ? fast(x) : x / s;
  }
  // Where `plain` is known to hold.
  __device__ __forceinline__ float fast(float x) const {
    const float q = x * r;
    return fmaf(fmaf(-q, s, x), r, q);
  }
  // Several, with one look at `plain`.
  template <int COUNT>
  __device__ __forceinline__ void all(float (&x)[COUNT]) const {
    if (plain) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) x[i] = fast(x[i]);
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) x[i] = x[i] / s;
    }
  }
};

// The same for any x.
struct DivisorOfAny {
  Divisor divisor;

  __device__ explicit DivisorOfAny(float s) : divisor(s) {}
  __device__ __forceinline__ float operator()(float x) const {
    const float q = divisor(x);
    return isfinite(q) ? q : x / divisor.s;
  }
};

// Division of 32-bit numbers by one number: a product with its inverse, rounded up.
struct FastDivisor {
  uint32_t by, inverse, shift;

  explicit FastDivisor(uint32_t divisor) : by(divisor), inverse(0), shift(0) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    inverse = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1);
  }
  __device__ __forceinline__ uint32_t operator()(uint32_t v) const {
    return static_cast<uint32_t>((uint64_t{__umulhi(v, inverse)} + v) >> shift);
  }
};

// Saturates.
__device__ __forceinline__ uint32_t pack_int8x4(const int (&code)[4]) {
  uint32_t word;
  asm("{.reg .u32 high;\n"
      "cvt.pack.sat.s8.s32.b32 high, %4, %3, 0;\n"
      "cvt.pack.sat.s8.s32.b32 %0, %2, %1, high;}"
      : "=r"(word)
      : "r"(code[0]), "r"(code[1]), "r"(code[2]), "r"(code[3]));
  return word;
}

// Four codes from four numbers; NaN becomes 0. The conversion to 32 bits saturates, and so does the one
// from there to 8 bits, at 127 and -128.
__device__ __forceinline__ uint32_t to_int8x4(const float (&v)[4], int azp, int lowest) {
  int code[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    code[i] = __float2int_rn(v[i]);
    if (azp != 0) code[i] = max(-1024, min(1024, code[i])) + azp;
    if (lowest != -128) code[i] = max(code[i], lowest);
  }
  return pack_int8x4(code);
}

__device__ __forceinline__ int8_t to_int8(float v, int azp, int lowest) {
  const int code = max(-1024, min(1024, __float2int_rn(v))) + azp;
  return static_cast<int8_t>(min(127, max(lowest, code)));
}

constexpr float kE4m3Max = 448.0f;

__device__ __forceinline__ __nv_fp8_storage_t to_e4m3(float v) {
  return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ uint32_t to_e4m3x4(const float (&v)[4]) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(v[0], v[1]), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(v[2], v[3]), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

// ---- dispatch over the input's dtype -----------------------------------------------------------

template <typename F>
void with_float_type(const char* op, const char* name, ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Half: return f(__half{});
    case ScalarType::BFloat16: return f(__nv_bfloat16{});
    default:
      fail(op, ": ", name, " is ", dtype_name(type),
                      "; allowed: Float, Half, BFloat16");
  }
}

inline bool is_aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace qcore_cuda

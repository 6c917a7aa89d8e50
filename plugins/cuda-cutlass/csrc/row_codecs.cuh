// How a row of activations becomes codes, with a scale of its own. A codec says:
//   Reduction            what is found out about a row (MaxBits, Range)
//   Code                 int8_t or __nv_fp8_storage_t
//   struct Params        by value to the kernel
//   struct Scale         what `encode` needs
//   static Scale scale(const Params&, Reduction::Value, int64_t row, bool write)
//   static Code encode(float, const Scale&)
//   static uint32_t encode4(const float (&)[4], const Scale&)
#pragma once

#include "quantize.cuh"

namespace qcore_cuda {

// The codes of a vector, four to a word where it has as many.
template <typename Code, typename T, int VEC, typename One, typename Four>
__device__ __forceinline__ Vec<Code, VEC> encode_vec(const Vec<T, VEC>& v, const One& one, const Four& four) {
  Vec<Code, VEC> out;
  if constexpr (VEC % 4 == 0) {
    uint32_t words[VEC / 4];
#pragma unroll
    for (int w = 0; w < VEC / 4; ++w) {
      const float parts[4] = {to_float(v.at[4 * w]), to_float(v.at[4 * w + 1]), to_float(v.at[4 * w + 2]),
                              to_float(v.at[4 * w + 3])};
      words[w] = four(parts);
    }
    __builtin_memcpy(&out, words, sizeof(out));
  } else {
#pragma unroll
    for (int j = 0; j < VEC; ++j) out.at[j] = one(to_float(v.at[j]));
  }
  return out;
}

// Scales multiply: x = q * scale, amax / 448, and 1 where all is zero.
__device__ __forceinline__ float fp8_scale_of(uint32_t bits) {
  const float s = __uint_as_float(bits) / kE4m3Max;
  return s == 0.0f ? 1.0f : s;
}

struct Fp8Row {
  using Reduction = MaxBits;
  using Code = __nv_fp8_storage_t;
  struct Params {
    float* scale;
    const float* upper_bound;
  };
  struct Scale {
    Divisor divide;
  };
  static __device__ Scale scale(const Params& p, uint32_t bits, int64_t row, bool write) {
    // As bits, NaN is the largest: a bound must not hide it.
    if (p.upper_bound && bits <= 0x7f800000u) bits = min(bits, __float_as_uint(fmaxf(*p.upper_bound, 0.0f)));
    const float s = fp8_scale_of(bits);
    if (write) p.scale[row] = s;
    return {Divisor(s)};
  }
  static __device__ Code encode(float v, const Scale& c) { return to_e4m3(c.divide(v)); }
  static __device__ uint32_t encode4(const float (&v)[4], const Scale& c) {
    float q[4] = {v[0], v[1], v[2], v[3]};
    c.divide.all(q);
    return to_e4m3x4(q);
  }
};

// 1.5 * 2^23: a number of up to 22 bits that is added to it is rounded, ties to even, and stands in the low bits.
constexpr float kRounder = 12582912.0f;

// Of numbers whose quotient is at most 127.
__device__ __forceinline__ uint32_t round_to_int8x4(const float (&v)[4], const Divisor& divide) {
  uint32_t code[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) code[i] = __float_as_uint(divide.fast(v[i]) + kRounder);
  return __byte_perm(__byte_perm(code[0], code[1], 0x0040), __byte_perm(code[2], code[3], 0x0040), 0x5410);
}

// Of numbers whose quotient is at most 255 and a little; saturates.
__device__ __forceinline__ uint32_t round_to_int8x4(const float (&v)[4], const Divisor& divide, int azp) {
  int code[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) code[i] = __float_as_int(divide.fast(v[i]) + kRounder) + (azp - 0x4b400000);
  return pack_int8x4(code);
}

struct Int8Row {
  using Reduction = MaxBits;
  using Code = int8_t;
  struct Params {
    float* scale;
    int32_t* azp;
  };
  struct Scale {
    Divisor divide;
  };
  static __device__ Scale scale(const Params& p, uint32_t bits, int64_t row, bool write) {
    float s = __uint_as_float(bits) / 127.0f;
    if (s == 0.0f) s = 1.0f;
    const bool finite = isfinite(s);
    if (write) p.scale[row] = finite ? s : __int_as_float(0x7fc00000);
    return {finite ? Divisor(s) : Divisor::of_any(1.0f)};
  }
  static __device__ int8_t encode(float v, const Scale& c) { return to_int8(c.divide(v), 0, -127); }
  static __device__ uint32_t encode4(const float (&v)[4], const Scale& c) {
    if (c.divide.plain) return round_to_int8x4(v, c.divide);
    const float q[4] = {v[0] / c.divide.s, v[1] / c.divide.s, v[2] / c.divide.s, v[3] / c.divide.s};
    return to_int8x4(q, 0, -127);
  }
};

struct Int8RowAzp {
  using Reduction = Range;
  using Code = int8_t;
  using Params = Int8Row::Params;
  struct Scale {
    Divisor divide;
    int azp;
  };
  static __device__ Scale scale(const Params& p, float2 range, int64_t row, bool write) {
    float s = (range.y - range.x) / 255.0f;
    if (s == 0.0f) s = 1.0f;
    const bool finite = isfinite(s);
    const float shown = finite ? s : __int_as_float(0x7fc00000);
    const int zero = finite ? -128 - __float2int_rn(range.x / s) : -128;
    const int azp = min(127, max(-128, zero));
    if (write) {
      p.scale[row] = shown;
      p.azp[row] = azp;
    }
    return {finite ? Divisor(s) : Divisor::of_any(1.0f), azp};
  }
  static __device__ int8_t encode(float v, const Scale& c) {
    return to_int8(c.divide(v), c.azp, -128);
  }
  static __device__ uint32_t encode4(const float (&v)[4], const Scale& c) {
    if (c.divide.plain) return round_to_int8x4(v, c.divide, c.azp);
    const float q[4] = {v[0] / c.divide.s, v[1] / c.divide.s, v[2] / c.divide.s, v[3] / c.divide.s};
    return to_int8x4(q, c.azp, -128);
  }
};

}  // namespace qcore_cuda

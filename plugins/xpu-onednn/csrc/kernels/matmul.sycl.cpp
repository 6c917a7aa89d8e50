// The plain matrix product, compiled at run time for the device at hand:
//   out[m, n] = bias[n] + sum over k of value(a, m, k) * value(b, n, k)
// where value(x, i, k) = (code - zero) * scale, made float32 when a tile is loaded. Every type of codes,
// scales and zero points goes through here; sums are in float32, in the order of k, whatever M and N are.
#include <sycl/sycl.hpp>

namespace syclexp = sycl::ext::oneapi::experimental;

#include "matmul_types.h"

namespace {

constexpr int kTile = 32;  // outputs of a work-group in each direction, and k of a step
constexpr int kSide = 16;  // work-items in each direction; each has 2 x 2 outputs

inline float from_bits(unsigned bits) { return sycl::bit_cast<float>(bits); }

// A float of 1 sign bit, E exponent bits and M mantissa bits without infinities of its own.
template <int E, int M>
inline float small_float(unsigned code) {
  const unsigned exponent = (code >> M) & ((1u << E) - 1), mantissa = code & ((1u << M) - 1);
  constexpr int kBias = (1 << (E - 1)) - 1;
  const float magnitude =
      exponent == 0
          ? float(mantissa) * from_bits(unsigned(127 + 1 - kBias - M) << 23)
          : from_bits(((exponent + 127 - kBias) << 23) | (mantissa << (23 - M)));
  return (code >> (E + M)) & 1 ? -magnitude : magnitude;
}

inline float quiet_nan() { return from_bits(0x7fc00000u); }

inline float from_e4m3(unsigned code) { return (code & 0x7f) == 0x7f ? quiet_nan() : small_float<4, 3>(code); }

// With infinities and NaN where all exponent bits are set: e5m2 and float16.
template <int E, int M>
inline float ieee_float(unsigned code) {
  if (((code >> M) & ((1u << E) - 1)) != (1u << E) - 1) return small_float<E, M>(code);
  if (code & ((1u << M) - 1)) return quiet_nan();
  return from_bits(0x7f800000u | (((code >> (E + M)) & 1) << 31));
}

inline float from_e8m0(unsigned code) {
  return code == 255 ? quiet_nan() : from_bits(code == 0 ? 0x00400000u : code << 23);
}

inline unsigned byte_at(const void* data, long i) { return static_cast<const unsigned char*>(data)[i]; }
inline unsigned half_at(const void* data, long i) { return static_cast<const unsigned short*>(data)[i]; }
inline unsigned nibble_at(const void* data, long i) { return (byte_at(data, i >> 1) >> ((i & 1) * 4)) & 15; }

// Element i of data. The switch is the same for all work-items.
inline float load(const void* data, int type, long i) {
  switch (type) {
    case kF32: return static_cast<const float*>(data)[i];
    case kF16: return ieee_float<5, 10>(half_at(data, i));
    case kBF16: return from_bits(half_at(data, i) << 16);
    case kE4M3: return from_e4m3(byte_at(data, i));
    case kE5M2: return ieee_float<5, 2>(byte_at(data, i));
    case kE8M0: return from_e8m0(byte_at(data, i));
    case kE2M1: return small_float<2, 1>(nibble_at(data, i));
    case kU4: return float(nibble_at(data, i));
    case kS8: return float(static_cast<const signed char*>(data)[i]);
    case kU8: return float(byte_at(data, i));
    case kS32: return float(static_cast<const int*>(data)[i]);
    default: return quiet_nan();
  }
}

inline float grouped(const void* data, const Grouped& g, long outer, long k) {
  return load(data, g.type, (outer / g.outer_size) * g.outer_stride + (k / g.k_size) * g.k_stride);
}

inline float value(const void* data, const void* scale, const void* zero, const Matrix& x, long outer, long k) {
  float code = load(data, x.type, outer * x.outer_stride + k * x.k_stride);
  if (x.zero.type != kNone) code -= grouped(zero, x.zero, outer, k);
  return x.scale.type == kNone ? code : code * grouped(scale, x.scale, outer, k);
}

inline unsigned short to_bf16(float x) {
  const unsigned bits = sycl::bit_cast<unsigned>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store(void* out, int type, long i, float x) {
  if (type == kF32) static_cast<float*>(out)[i] = x;
  else if (type == kF16) static_cast<sycl::half*>(out)[i] = sycl::half(x);
  else static_cast<unsigned short*>(out)[i] = to_bf16(x);
}

}  // namespace

extern "C" SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((syclexp::nd_range_kernel<2>))
void qcore_matmul(const void* a, const void* a_scale, const void* a_zero, const void* b, const void* b_scale,
                  const void* b_zero, const void* bias, void* out, Product p) {
  static syclexp::work_group_static<float[kTile][kTile + 1]> a_tile;
  static syclexp::work_group_static<float[kTile][kTile + 1]> b_tile;
  const auto item = sycl::ext::oneapi::this_work_item::get_nd_item<2>();
  const long m0 = long(item.get_group(0)) * kTile, n0 = long(item.get_group(1)) * kTile;
  const int row = int(item.get_local_id(0)), column = int(item.get_local_id(1));
  float sum[2][2] = {};
  for (long k0 = 0; k0 < p.k; k0 += kTile) {
    for (int i = row; i < kTile; i += kSide) {
      for (int j = column; j < kTile; j += kSide) {
        const long k = k0 + j;
        const bool in = k < p.k;
        a_tile[i][j] = in && m0 + i < p.m ? value(a, a_scale, a_zero, p.a, m0 + i, k) : 0.0f;
        b_tile[i][j] = in && n0 + i < p.n ? value(b, b_scale, b_zero, p.b, n0 + i, k) : 0.0f;
      }
    }
    sycl::group_barrier(item.get_group());
    for (int k = 0; k < kTile; ++k) {
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
          sum[i][j] += a_tile[row + i * kSide][k] * b_tile[column + j * kSide][k];
        }
      }
    }
    sycl::group_barrier(item.get_group());
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const long m = m0 + row + i * kSide, n = n0 + column + j * kSide;
      if (m >= p.m || n >= p.n) continue;
      const float add = p.bias_type == kNone ? 0.0f : load(bias, p.bias_type, n);
      store(out, p.out_type, m * p.out_stride + n, sum[i][j] + add);
    }
  }
}

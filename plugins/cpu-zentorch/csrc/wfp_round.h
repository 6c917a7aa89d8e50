// Rows of activations rounded to small floats, for one instruction set; included by e2m1_kernels.h. The
// numbers are those of core/src/qcore/numerics/activation_quant.py, operation by operation in f32, so that no
// code differs. The loops have no branch, and the compiler makes vectors of them.

namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline void load_line(const void* x, Dtype dtype, int64_t k, float* line) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) store_f(line + i, load_lanes(x, dtype, i));
  for (; i < k; ++i) line[i] = load_one(x, dtype, i);
}

// As integers magnitudes have the same order, and NaN is the largest.
inline float amax_of(const float* line, int64_t count) {
  int32_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<int32_t>(bits_of(line[i]) & 0x7fffffffu);
    best = magnitude > best ? magnitude : best;
  }
  return float_of(static_cast<uint32_t>(best));
}

// values = bf16(factor * round(line / scale)): to `mantissa` bits below the first, ties to even, with the
// spacing of 2^least below that, and nothing beyond `limit`. NaN stays.
template <int mantissa, int least>
inline void round_to(const float* line, int64_t count, float scale, float limit, float factor,
                     uint16_t* values) {
  for (int64_t i = 0; i < count; ++i) {
    float q = line[i] / scale;
    q = q > limit ? limit : q;
    q = q < -limit ? -limit : q;
    const uint32_t bits = bits_of(q);
    uint32_t exponent = bits & 0x7f800000u;
    constexpr uint32_t lowest = (127 + least) << 23;
    exponent = exponent > lowest ? exponent : lowest;
    // Added to it, this leaves no place for the bits that go.
    const float magic = float_of((exponent + ((23 - mantissa) << 23)) | (bits & 0x80000000u));
    values[i] = static_cast<uint16_t>(bits_of(((q + magic) - magic) * factor) >> 16);
  }
}

inline void round_e4m3(SmallFloat format, const float* line, int64_t count, float scale,
                       uint16_t* values) {
  if (format == SmallFloat::e4m3fnuz) {
    round_to<3, -7>(line, count, scale, 224.0f, 1.0f, values);
  } else {
    round_to<3, -6>(line, count, scale, 448.0f, 1.0f, values);
  }
}

// The scale of an MX block, whose elements have the largest exponent `emax`.
inline float mx_scale(const float* line, int64_t count, int emax) {
  float amax = amax_of(line, count);
  if ((bits_of(amax) & 0x7fffffu) >= 0x600000u) amax = amax * 1.25f;
  const uint32_t bits = bits_of(amax);
  if (bits >= 0x7f800000u) return float_of(0x7fc00000u);
  const int code = static_cast<int>(bits >> 23) - emax;
  return code > 0 ? float_of(static_cast<uint32_t>(code) << 23) : 0x1p-127f;
}

inline float row_amax(const void* x, Dtype dtype, int64_t k, float* line) {
  load_line(x, dtype, k, line);
  return amax_of(line, k);
}

inline float scale_for(float amax, float limit) {
  const float scale = amax / limit;
  return scale == 0.0f ? 1.0f : scale;
}

inline void round_row(const RowRounding& rounding, const void* x, Dtype dtype, int64_t k, float* line,
                      uint16_t* values, float* scales) {
  load_line(x, dtype, k, line);
  const SmallFloat format = rounding.format;
  if (format == SmallFloat::e4m3 || format == SmallFloat::e4m3fnuz) {
    const float limit = format == SmallFloat::e4m3fnuz ? 224.0f : 448.0f;
    const int64_t group = rounding.group > 0 ? rounding.group : k;
    for (int64_t i = 0; i < k; i += group, ++scales) {
      const int64_t count = group < k - i ? group : k - i;
      if (rounding.scale) {
        *scales = *rounding.scale;
      } else {
        float amax = amax_of(line + i, count);
        amax = amax > rounding.bound ? rounding.bound : amax;
        *scales = scale_for(amax, limit);
      }
      round_e4m3(format, line + i, count, *scales, values + i);
    }
    return;
  }
  if (format == SmallFloat::nvfp4) {
    const float outer = rounding.scale ? *rounding.scale : scale_for(amax_of(line, k), 448.0f * 6.0f);
    *scales = outer;
    for (int64_t i = 0; i < k; i += 16) {
      const int64_t count = k - i < 16 ? k - i : 16;
      const float wanted = amax_of(line + i, count) / 6.0f / outer;
      uint16_t rounded;
      round_to<3, -6>(&wanted, 1, 1.0f, 448.0f, 1.0f, &rounded);
      const float inner = float_of(static_cast<uint32_t>(rounded) << 16), scale = inner * outer;
      if (scale > 0.0f) {
        round_to<1, 0>(line + i, count, scale, 6.0f, inner, values + i);
      } else {  // all zero, or NaN
        for (int64_t j = i; j < i + count; ++j) {
          values[j] = static_cast<uint16_t>(bits_of(0.0f * scale) >> 16);
        }
      }
    }
    return;
  }
  *scales = 1.0f;
  for (int64_t i = 0; i < k; i += 32) {
    const int64_t count = k - i < 32 ? k - i : 32;
    if (format == SmallFloat::mxfp4) {
      const float scale = mx_scale(line + i, count, 2);
      round_to<1, 0>(line + i, count, scale, 6.0f, scale, values + i);
    } else {
      const float scale = mx_scale(line + i, count, 8);
      round_to<3, -6>(line + i, count, scale, 448.0f, scale, values + i);
    }
  }
}

}  // namespace

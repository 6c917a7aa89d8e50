// Sixteen lanes in plain C++: the fallback, and the specification that the other vec_*.h follow.
//
// VecF: 16 x f32. VecI: 16 x i32. A load or store takes 16 elements. max and min return their second
// operand when one of them is NaN, as the x86 instructions do, so that all instruction sets treat NaN
// alike.

namespace {

struct VecF {
  float v[16];
};
struct VecI {
  int32_t v[16];
};

#define QCORE_LANES for (int lane = 0; lane < 16; ++lane)

inline VecF set1(float x) {
  VecF r;
  QCORE_LANES r.v[lane] = x;
  return r;
}
inline VecI set1_i(int32_t x) {
  VecI r;
  QCORE_LANES r.v[lane] = x;
  return r;
}
inline VecI load_i(const void* p) {
  VecI r;
  memcpy(r.v, p, sizeof(r.v));
  return r;
}
inline VecF load_f(const void* p) {
  VecF r;
  memcpy(r.v, p, sizeof(r.v));
  return r;
}
inline void store_f(void* p, const VecF& a) { memcpy(p, a.v, sizeof(a.v)); }
inline void store_i(void* p, const VecI& a) { memcpy(p, a.v, sizeof(a.v)); }

#define QCORE_BINARY(name, expression)                 \
  inline VecF name(const VecF& a, const VecF& b) {     \
    VecF r;                                            \
    QCORE_LANES r.v[lane] = expression;                \
    return r;                                          \
  }
QCORE_BINARY(add, a.v[lane] + b.v[lane])
QCORE_BINARY(sub, a.v[lane] - b.v[lane])
QCORE_BINARY(mul, a.v[lane] * b.v[lane])
QCORE_BINARY(div, a.v[lane] / b.v[lane])
QCORE_BINARY(max, a.v[lane] > b.v[lane] ? a.v[lane] : b.v[lane])
QCORE_BINARY(min, a.v[lane] < b.v[lane] ? a.v[lane] : b.v[lane])
#undef QCORE_BINARY

// Two roundings, where the vector units have one: a software fma would be far too slow.
inline VecF fma(const VecF& a, const VecF& b, const VecF& c) { return add(mul(a, b), c); }

inline VecF round(const VecF& a) {
  VecF r;
  QCORE_LANES r.v[lane] = rintf(a.v[lane]);
  return r;
}

inline VecF u8_to_f(const uint8_t* p) {
  VecF r;
  QCORE_LANES r.v[lane] = p[lane];
  return r;
}
inline VecF to_f(const VecI& a) {
  VecF r;
  QCORE_LANES r.v[lane] = static_cast<float>(a.v[lane]);
  return r;
}
// a - b * c, modulo 2^32.
inline VecI sub_mul(const VecI& a, const VecI& b, const VecI& c) {
  VecI r;
  QCORE_LANES {
    const uint32_t product = static_cast<uint32_t>(b.v[lane]) * static_cast<uint32_t>(c.v[lane]);
    r.v[lane] = static_cast<int32_t>(static_cast<uint32_t>(a.v[lane]) - product);
  }
  return r;
}

inline VecF zero_nan(const VecF& a) {
  VecF r;
  QCORE_LANES r.v[lane] = a.v[lane] == a.v[lane] ? a.v[lane] : 0.0f;
  return r;
}

// Integral lanes within [-128, 127].
inline void store_i8(int8_t* p, const VecF& a) {
  QCORE_LANES p[lane] = static_cast<int8_t>(a.v[lane]);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 2^16 or more
  if (magnitude < 0x38800000u) {                        // subnormal: a multiple of 2^-24
    float positive;
    memcpy(&positive, &magnitude, 4);
    return sign | static_cast<uint16_t>(rintf(positive * 0x1p24f));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

inline float bf16_to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float load_one(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  const uint16_t raw = static_cast<const uint16_t*>(p)[i];
  return dtype == Dtype::f16 ? half_to_float(raw) : bf16_to_float(raw);
}

inline VecF load_lanes(const void* p, Dtype dtype, int64_t i) {
  VecF r;
  QCORE_LANES r.v[lane] = load_one(p, dtype, i + lane);
  return r;
}

inline void store_lanes(void* p, Dtype dtype, int64_t i, const VecF& a) {
  if (dtype == Dtype::f32) {
    store_f(static_cast<float*>(p) + i, a);
    return;
  }
  uint16_t* dst = static_cast<uint16_t*>(p) + i;
  if (dtype == Dtype::f16) {
    QCORE_LANES dst[lane] = float_to_half(a.v[lane]);
  } else {
    QCORE_LANES dst[lane] = float_to_bf16(a.v[lane]);
  }
}

inline VecF s8_to_f(const int8_t* p) {
  VecF r;
  QCORE_LANES r.v[lane] = p[lane];
  return r;
}

inline uint32_t some_bits(int32_t word, int first, int count) {
  return static_cast<uint32_t>(word) >> first & ((1u << count) - 1);
}

// How wna16 multiplies: one step is `slots` inputs of one activation row against 16 outputs. Weights are
// stored codes less `center`, times 1 / slot_scale; the fold (wna16_fold.h) and pack_rows make up.
struct DotF32 {
  static constexpr int slots = 1;
  using Weight = VecF;
  using Acc = VecF;
  using Side = FloatSide;
  static constexpr bool quantizes = false;
  static constexpr int flush_steps = 0;
  static constexpr int rows = 4;
  static constexpr int padded(int rows) { return rows == 1 ? 1 : 4; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int) { return 1; }

  static Acc start(const Side&) { return set1(0.0f); }
  static void flush(Acc&) {}
  static VecF finish(const Acc& acc, const Side&) { return acc; }

  template <int bits>
  static constexpr int center() {
    return 1 << (bits - 1);
  }
  template <int bits>
  static float slot_scale(int64_t) {
    return 1.0f;
  }
  // The codes at `step` of the lines at p: one packed word of 16 outputs.
  template <int bits, int step>
  static Weight decode(const uint8_t* p) {
    VecF r;
    if constexpr (bits == 8) {
      return s8_to_f(reinterpret_cast<const int8_t*>(p) + step * 16);
    } else {
      using Layout = CodeLayout<bits>;
      constexpr int pair = step / 2, half = 16 * (step % 2);
      const VecI lower = load_i(p + Layout::line(pair) * 64), upper = load_i(p + Layout::upper_line * 64);
      QCORE_LANES {
        uint32_t code = some_bits(lower.v[lane], half + Layout::shift(pair), Layout::lower_bits);
        code |= some_bits(upper.v[lane], half + Layout::upper_shift(pair), Layout::upper_bits)
                << Layout::lower_bits;
        r.v[lane] = static_cast<float>(static_cast<int>(code) - center<bits>());
      }
    }
    return r;
  }
  static Weight load(const void* p) { return load_f(p); }
  static void store(void* p, const Weight& w) { store_f(p, w); }
  // One step of one row of activations, which takes 4 bytes.
  static void store_x(void* dst, const float* x) { memcpy(dst, x, 4); }
  static void accumulate(VecF& acc, const Weight& w, const void* x) {
    float value;
    memcpy(&value, x, 4);
    acc = fma(w, set1(value), acc);
  }
};

// wna16 with activations rounded to int8: a step is four inputs, products and sums are integers. The bytes of
// a weight are unsigned codes, or with 8 bits codes less 128; a vector unit may take another center.
template <int bits>
struct DotInt8 {
  static constexpr int slots = 4;
  struct Weight {
    int16_t v[64];
  };
  using Acc = VecI;
  using Side = QuantSide;
  static constexpr bool quantizes = true;
  static constexpr int flush_steps = 0;  // after so many steps `flush` must be called; 0: it need not
  static constexpr int rows = 4;
  static constexpr int padded(int rows) { return rows == 1 ? 1 : 4; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int) { return 1; }

  template <int>
  static constexpr int center() {
    return bits == 8 ? 128 : 0;
  }
  template <int, int step>
  static Weight decode(const uint8_t* p) {
    using Layout = CodeLayout<bits>;
    Weight w;
    for (int i = 0; i < 64; ++i) {
      if constexpr (bits == 8) {
        w.v[i] = static_cast<int8_t>(p[i % 4 * 16 + i / 4]);
      } else {
        const uint32_t lower = some_bits(p[Layout::line(step) * 64 + i], Layout::shift(step), Layout::lower_bits);
        const uint32_t upper =
            some_bits(p[Layout::upper_line * 64 + i], Layout::upper_shift(step), Layout::upper_bits);
        w.v[i] = static_cast<int16_t>(lower | upper << Layout::lower_bits);
      }
    }
    return w;
  }
  static Weight load(const void* p) {
    Weight w;
    QCORE_LANES for (int i = 0; i < 4; ++i) {
      const auto byte = static_cast<const uint8_t*>(p)[lane * 4 + i];
      w.v[lane * 4 + i] = bits == 8 ? static_cast<int8_t>(byte) : byte;
    }
    return w;
  }
  static void store(void* p, const Weight& w) {
    for (int i = 0; i < 64; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(w.v[i]);
  }
  static Acc start(const Side& side) { return set1_i(side.start); }
  static void accumulate(Acc& acc, const Weight& w, const void* x) {
    const auto* q = static_cast<const int8_t*>(x);
    QCORE_LANES for (int i = 0; i < 4; ++i) acc.v[lane] += w.v[lane * 4 + i] * q[i];
  }
  static void flush(Acc&) {}
  static VecF finish(const Acc& acc, const Side& side) { return mul(to_f(acc), set1(side.scale)); }
};

// How int8_scaled_linear multiplies: four unsigned weights of each of 16 outputs times four codes of a row.
struct Int8Dot {
  static constexpr bool saturates = false;  // if so, `unsafe` tells which quads of codes might
  static constexpr int weight_excess = 128;  // what each weight has too much in `accumulate`
  static constexpr int chunk_quads = 256;
  static constexpr int rows = 4;
  static constexpr int padded(int rows) { return rows == 1 ? 1 : 4; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int) { return 1; }

  struct Codes {
    int8_t v[4];
  };
  static Codes load_codes(const void* p) {
    Codes x;
    memcpy(x.v, p, 4);
    return x;
  }
  static void accumulate(VecI& acc, const VecI& w, const Codes& x) {
    QCORE_LANES {
      uint8_t row[4];
      memcpy(row, w.v + lane, 4);
      acc.v[lane] += row[0] * x.v[0] + row[1] * x.v[1] + row[2] * x.v[2] + row[3] * x.v[3];
    }
  }
};

}  // namespace

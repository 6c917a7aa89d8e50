// Sixteen lanes as four 128-bit registers: 64-bit Arm with the dot products of ARMv8.2. Contract: vec_scalar.h.

namespace {

struct VecF {
  float32x4_t v[4];
};
struct VecI {
  int32x4_t v[4];
};

#define QCORE_QUARTERS for (int i = 0; i < 4; ++i)

inline VecF set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {{v, v, v, v}};
}
inline VecI set1_i(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {{v, v, v, v}};
}
inline VecI load_i(const void* p) {
  const int8_t* q = static_cast<const int8_t*>(p);  // of any alignment
  return {{vreinterpretq_s32_s8(vld1q_s8(q)), vreinterpretq_s32_s8(vld1q_s8(q + 16)),
           vreinterpretq_s32_s8(vld1q_s8(q + 32)), vreinterpretq_s32_s8(vld1q_s8(q + 48))}};
}
inline void store_i(void* p, const VecI& a) {
  QCORE_QUARTERS vst1q_s8(static_cast<int8_t*>(p) + 16 * i, vreinterpretq_s8_s32(a.v[i]));
}
inline VecF load_f(const void* p) {
  const float* q = static_cast<const float*>(p);
  return {{vld1q_f32(q), vld1q_f32(q + 4), vld1q_f32(q + 8), vld1q_f32(q + 12)}};
}
inline void store_f(void* p, const VecF& a) {
  QCORE_QUARTERS vst1q_f32(static_cast<float*>(p) + 4 * i, a.v[i]);
}

#define QCORE_BINARY(name, expression)                 \
  inline VecF name(const VecF& a, const VecF& b) {     \
    VecF r;                                            \
    QCORE_QUARTERS r.v[i] = expression;                \
    return r;                                          \
  }
QCORE_BINARY(add, vaddq_f32(a.v[i], b.v[i]))
QCORE_BINARY(sub, vsubq_f32(a.v[i], b.v[i]))
QCORE_BINARY(mul, vmulq_f32(a.v[i], b.v[i]))
QCORE_BINARY(div, vdivq_f32(a.v[i], b.v[i]))
// vmaxq gives NaN where either operand is one; these give the second.
QCORE_BINARY(max, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
QCORE_BINARY(min, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
#undef QCORE_BINARY

inline VecF fma(const VecF& a, const VecF& b, const VecF& c) {
  VecF r;
  QCORE_QUARTERS r.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return r;
}
inline VecF round(const VecF& a) {
  VecF r;
  QCORE_QUARTERS r.v[i] = vrndnq_f32(a.v[i]);
  return r;
}

inline VecF to_f(const VecI& a) {
  VecF r;
  QCORE_QUARTERS r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
inline VecF u8_to_f(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
}
inline VecF s8_to_f(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return to_f({{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                vmovl_s16(vget_high_s16(high))}});
}
inline VecI sub_mul(const VecI& a, const VecI& b, const VecI& c) {
  VecI r;
  QCORE_QUARTERS r.v[i] = vmlsq_s32(a.v[i], b.v[i], c.v[i]);
  return r;
}

inline VecF zero_nan(const VecF& a) {
  VecF r;
  QCORE_QUARTERS {
    const uint32x4_t number = vceqq_f32(a.v[i], a.v[i]);
    r.v[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v[i]), number));
  }
  return r;
}

inline void store_i8(int8_t* p, const VecF& a) {
  int16x4_t words[4];
  QCORE_QUARTERS words[i] = vqmovn_s32(vcvtq_s32_f32(a.v[i]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(vcombine_s16(words[0], words[1])),
                          vqmovn_s16(vcombine_s16(words[2], words[3]))));
}

inline float load_one(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  const uint16x4_t raw = vdup_n_u16(static_cast<const uint16_t*>(p)[i]);
  if (dtype == Dtype::f16) return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(raw)), 0);
  return vgetq_lane_f32(vreinterpretq_f32_u32(vshll_n_u16(raw, 16)), 0);
}

inline VecF load_lanes(const void* p, Dtype dtype, int64_t at) {
  if (dtype == Dtype::f32) return load_f(static_cast<const float*>(p) + at);
  const uint16_t* src = static_cast<const uint16_t*>(p) + at;
  VecF r;
  if (dtype == Dtype::f16) {
    QCORE_QUARTERS r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(src + 4 * i)));
  } else {
    QCORE_QUARTERS r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(src + 4 * i), 16));
  }
  return r;
}

// To nearest even; NaN stays NaN.
inline uint16x4_t to_bf16(float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
}

inline void store_lanes(void* p, Dtype dtype, int64_t at, const VecF& a) {
  if (dtype == Dtype::f32) {
    store_f(static_cast<float*>(p) + at, a);
    return;
  }
  uint16_t* dst = static_cast<uint16_t*>(p) + at;
  if (dtype == Dtype::f16) {
    QCORE_QUARTERS vst1_u16(dst + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
  } else {
    QCORE_QUARTERS vst1_u16(dst + 4 * i, to_bf16(a.v[i]));
  }
}

// Elements of 32 bits whose bit `from` is brought to bit `to`, and masked.
template <int from, int to, uint32_t mask>
inline uint32x4_t moved(int32x4_t v) {
  uint32x4_t bits = vreinterpretq_u32_s32(v);
  if constexpr (from > to) bits = vshrq_n_u32(bits, from - to);
  if constexpr (from < to) bits = vshlq_n_u32(bits, to - from);
  return vandq_u32(bits, vdupq_n_u32(mask));
}

// Codes of up to 6 bits are masked where they stand in a half word; the activation carries the inverse power
// of two, as for avx2.
struct DotF32 {
  static constexpr int slots = 1;
  using Weight = VecF;
  using Acc = VecF;
  using Side = FloatSide;
  static constexpr bool quantizes = false;
  static constexpr int flush_steps = 0;
  static constexpr int rows = 6;
  static constexpr int padded(int rows) { return rows <= 4 ? rows : 6; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  static Acc start(const Side&) { return set1(0.0f); }
  static void flush(Acc&) {}
  static VecF finish(const Acc& acc, const Side&) { return acc; }

  template <int bits>
  static constexpr int center() {
    return bits == 8 ? 128 : 0;
  }
  template <int bits>
  static float slot_scale(int64_t slot) {
    if constexpr (bits == 8) return 1.0f;
    using Layout = CodeLayout<bits>;
    return 1.0f / static_cast<float>(1 << Layout::shift(static_cast<int>(slot % Layout::slots) / 2));
  }
  template <int bits, int step>
  static Weight decode(const uint8_t* p) {
    if constexpr (bits == 8) {
      return s8_to_f(reinterpret_cast<const int8_t*>(p) + step * 16);
    } else {
      using Layout = CodeLayout<bits>;
      constexpr int pair = step / 2, half = 16 * (step % 2), place = Layout::shift(pair);
      const VecI lower = load_i(p + Layout::line(pair) * 64);
      VecF r;
      QCORE_QUARTERS {
        uint32x4_t code = moved<half, 0, ((1u << Layout::lower_bits) - 1) << place>(lower.v[i]);
        if constexpr (Layout::upper_bits > 0) {
          constexpr uint32_t mask = ((1u << Layout::upper_bits) - 1) << (place + 4);
          const int32x4_t upper = vld1q_s32(reinterpret_cast<const int32_t*>(p + Layout::upper_line * 64) + 4 * i);
          code = vorrq_u32(code, moved<half + Layout::upper_shift(pair), place + 4, mask>(upper));
        }
        r.v[i] = vcvtq_f32_u32(code);
      }
      return r;
    }
  }
  static Weight load(const void* p) { return load_f(p); }
  static void store(void* p, const Weight& w) { store_f(p, w); }
  static void store_x(void* dst, const float* x) { __builtin_memcpy(dst, x, 4); }
  static void accumulate(VecF& acc, const Weight& w, const void* x) {
    const float32x4_t value = vld1q_dup_f32(static_cast<const float*>(x));
    acc.v[0] = vfmaq_f32(acc.v[0], w.v[0], value);
    acc.v[1] = vfmaq_f32(acc.v[1], w.v[1], value);
    acc.v[2] = vfmaq_f32(acc.v[2], w.v[2], value);
    acc.v[3] = vfmaq_f32(acc.v[3], w.v[3], value);
  }
};

inline int8x16_t quad_of(const void* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}
inline void add_dots(VecI& acc, const VecI& w, int8x16_t quad) {
  acc.v[0] = vdotq_s32(acc.v[0], vreinterpretq_s8_s32(w.v[0]), quad);
  acc.v[1] = vdotq_s32(acc.v[1], vreinterpretq_s8_s32(w.v[1]), quad);
  acc.v[2] = vdotq_s32(acc.v[2], vreinterpretq_s8_s32(w.v[2]), quad);
  acc.v[3] = vdotq_s32(acc.v[3], vreinterpretq_s8_s32(w.v[3]), quad);
}

// Activations rounded to int8: sdot takes signed bytes, which codes of up to 6 bits are too; those of 8 bits
// are less 128.
template <int bits>
struct DotInt8 {
  static constexpr int slots = 4;
  using Weight = VecI;
  using Acc = VecI;
  using Side = QuantSide;
  static constexpr bool quantizes = true;
  static constexpr int flush_steps = 0;
  static constexpr int rows = 6;
  static constexpr int padded(int rows) { return rows <= 4 ? rows : 6; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  template <int>
  static constexpr int center() {
    return bits == 8 ? 128 : 0;
  }
  template <int, int step>
  static Weight decode(const uint8_t* p) {
    using Layout = CodeLayout<bits>;
    VecI words = load_i(p + Layout::line(step) * 64);
    if constexpr (bits == 8) {
      // Four runs of sixteen bytes, interleaved.
      const int8x16x4_t runs = {{vreinterpretq_s8_s32(words.v[0]), vreinterpretq_s8_s32(words.v[1]),
                                 vreinterpretq_s8_s32(words.v[2]), vreinterpretq_s8_s32(words.v[3])}};
      alignas(16) int8_t quads[64];
      vst4q_s8(quads, runs);
      return load_i(quads);
    }
    constexpr uint32_t bytes = 0x01010101;
    QCORE_QUARTERS {
      uint32x4_t code = moved<Layout::shift(step), 0, ((1 << Layout::lower_bits) - 1) * bytes>(words.v[i]);
      if constexpr (Layout::upper_bits > 0) {
        constexpr uint32_t mask = (((1 << Layout::upper_bits) - 1) << 4) * bytes;
        const int32x4_t upper = vld1q_s32(reinterpret_cast<const int32_t*>(p + Layout::upper_line * 64) + 4 * i);
        code = vorrq_u32(code, moved<Layout::upper_shift(step), 4, mask>(upper));
      }
      words.v[i] = vreinterpretq_s32_u32(code);
    }
    return words;
  }
  static Weight load(const void* p) { return load_i(p); }
  static void store(void* p, const Weight& w) { store_i(p, w); }
  static Acc start(const Side& side) { return set1_i(side.start); }
  static void accumulate(Acc& acc, const Weight& w, const void* x) { add_dots(acc, w, quad_of(x)); }
  static void flush(Acc&) {}
  static VecF finish(const Acc& acc, const Side& side) { return mul(to_f(acc), set1(side.scale)); }
};

// sdot takes signed bytes: weights lose their 128 on the way.
struct Int8Dot {
  static constexpr bool saturates = false;
  static constexpr int weight_excess = 0;
  static constexpr int chunk_quads = 512;
  static constexpr int rows = 6;
  static constexpr int padded(int rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : 6; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  static int8x16_t load_codes(const void* p) { return quad_of(p); }
  static void accumulate(VecI& acc, const VecI& w, const int8x16_t& x) {
    VecI less;
    QCORE_QUARTERS less.v[i] = veorq_s32(w.v[i], vdupq_n_s32(static_cast<int32_t>(0x80808080u)));
    add_dots(acc, less, x);
  }
};

}  // namespace

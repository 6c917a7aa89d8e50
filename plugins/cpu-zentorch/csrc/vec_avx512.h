// Sixteen lanes as one 512-bit register: AVX-512 F/BW/VL/DQ + VNNI. Contract: vec_scalar.h.

namespace {

struct VecF {
  __m512 v;
};
struct VecI {
  __m512i v;
};

inline VecF set1(float x) { return {_mm512_set1_ps(x)}; }
inline VecI set1_i(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline VecI load_i(const void* p) { return {_mm512_loadu_si512(p)}; }
inline VecF load_f(const void* p) { return {_mm512_loadu_ps(p)}; }
inline void store_f(void* p, const VecF& a) { _mm512_storeu_ps(p, a.v); }
inline void store_i(void* p, const VecI& a) { _mm512_storeu_si512(p, a.v); }

inline VecF add(const VecF& a, const VecF& b) { return {_mm512_add_ps(a.v, b.v)}; }
inline VecF sub(const VecF& a, const VecF& b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline VecF mul(const VecF& a, const VecF& b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline VecF div(const VecF& a, const VecF& b) { return {_mm512_div_ps(a.v, b.v)}; }
inline VecF max(const VecF& a, const VecF& b) { return {_mm512_max_ps(a.v, b.v)}; }
inline VecF min(const VecF& a, const VecF& b) { return {_mm512_min_ps(a.v, b.v)}; }
inline VecF fma(const VecF& a, const VecF& b, const VecF& c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline VecF round(const VecF& a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

inline VecF to_f(const VecI& a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline VecF u8_to_f(const uint8_t* p) {
  return to_f({_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))});
}
inline VecI sub_mul(const VecI& a, const VecI& b, const VecI& c) {
  return {_mm512_sub_epi32(a.v, _mm512_mullo_epi32(b.v, c.v))};
}

inline VecF zero_nan(const VecF& a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q), a.v)};
}

inline void store_i8(int8_t* p, const VecF& a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

inline float load_one(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  const uint16_t raw = static_cast<const uint16_t*>(p)[i];
  if (dtype == Dtype::f16) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(raw)));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int32_t>(raw) << 16)));
}

inline VecF load_lanes(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return {_mm512_loadu_ps(static_cast<const float*>(p) + i)};
  const uint16_t* src = static_cast<const uint16_t*>(p) + i;
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src));
  if (dtype == Dtype::f16) return {_mm512_cvtph_ps(raw)};
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}

inline void store_lanes(void* p, Dtype dtype, int64_t i, const VecF& a) {
  if (dtype == Dtype::f32) {
    store_f(static_cast<float*>(p) + i, a);
    return;
  }
  __m256i* dst = reinterpret_cast<__m256i*>(static_cast<uint16_t*>(p) + i);
  if (dtype == Dtype::f16) {
    _mm256_storeu_si256(dst, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
    return;
  }
  // bf16 to nearest even; NaN stays NaN.
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i fixed =
      _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(dst, _mm512_cvtepi32_epi16(_mm512_srli_epi32(fixed, 16)));
}

// Elements of 32 bits whose bit `from` is brought to bit `to`.
template <int from, int to>
__m512i moved(const __m512i& v) {
  if constexpr (from > to) return _mm512_srli_epi32(v, from - to);
  if constexpr (from < to) return _mm512_slli_epi32(v, to - from);
  return v;
}
// Bits of b where mask has ones, of a elsewhere.
inline __m512i blend_bits(__m512i a, __m512i b, __m512i mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xd8); }

inline VecF s8_to_f(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// Of codes that stand for floats (e2m1_kernels.h), which say how they are decoded; integers take wna16_digits.h.
struct DotF32 {
  static constexpr int slots = 1;
  using Weight = VecF;
  using Acc = VecF;
  using Side = FloatSide;
  static constexpr bool quantizes = false;
  static constexpr int flush_steps = 0;
  static constexpr int rows = 8;
  static constexpr int padded(int rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : rows <= 6 ? 6 : 8; }
  static constexpr int wide_blocks = 2;
  static constexpr int narrow_blocks(int rows) { return rows <= 2 ? 4 : 2; }

  static Acc start(const Side&) { return set1(0.0f); }
  static void flush(Acc&) {}
  static VecF finish(const Acc& acc, const Side&) { return acc; }

  static Weight load(const void* p) { return load_f(p); }
  static void store(void* p, const Weight& w) { store_f(p, w); }
  static void store_x(void* dst, const float* x) { __builtin_memcpy(dst, x, 4); }
  static void accumulate(VecF& acc, const Weight& w, const void* x) {
    acc = fma(w, set1(*static_cast<const float*>(x)), acc);
  }
};

#ifdef __AVX512BF16__
// bf16(i - 32) at place i.
struct SmallBf16 {
  uint16_t v[64];
  constexpr SmallBf16() : v() {
    for (int i = 0; i < 64; ++i) {
      const int magnitude = i < 32 ? 32 - i : i - 32;
      int exponent = 0;
      while (magnitude >> exponent > 1) ++exponent;
      const int fraction = magnitude ? (magnitude << (7 - exponent)) - 128 : 0;
      v[i] = static_cast<uint16_t>((i < 32 ? 0x8000 : 0) | (magnitude ? (exponent + 127) << 7 : 0) | fraction);
    }
  }
};
alignas(64) constexpr SmallBf16 kSmallBf16;

// bfloat16 activations: a code less its center is a small integer, hence exact in bfloat16, and vdpbf16ps
// adds exact products in f32; twice the inputs in an instruction. Slots 2j and 2j + 1 stand at the same
// place of the two half words, so that one vpermw makes the pair.
struct DotBf16 {
  static constexpr int slots = 2;
  using Weight = VecI;
  using Acc = VecF;
  using Side = FloatSide;
  static constexpr bool quantizes = false;
  static constexpr int flush_steps = 0;
  static constexpr int rows = 8;
  static constexpr int padded(int rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : rows <= 6 ? 6 : 8; }
  static constexpr int wide_blocks = 2;
  static constexpr int narrow_blocks(int rows) { return rows <= 2 ? 4 : 2; }

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
  template <int bits, int step>
  static Weight decode(const uint8_t* p) {
    using Layout = CodeLayout<bits>;
    if constexpr (bits == 8) {
      // The f32 of a byte has nothing in its low half, where the even slot's goes.
      const __m512i even = byte_values(p + step * 32), odd = byte_values(p + step * 32 + 16);
      return {_mm512_or_si512(_mm512_srli_epi32(even, 16), odd)};
    } else {
      const __m512i lower = moved<Layout::shift(step), 0>(_mm512_loadu_si512(p + Layout::line(step) * 64));
      if constexpr (Layout::upper_bits == 0) return {_mm512_permutexvar_epi16(lower, values<bits>())};
      const __m512i upper = moved<Layout::upper_shift(step), 4>(_mm512_loadu_si512(p + Layout::upper_line * 64));
      const __m512i code = blend_bits(lower, upper, _mm512_set1_epi16(((1 << Layout::upper_bits) - 1) << 4));
      if constexpr (bits == 6) {
        const __m512i low = _mm512_loadu_si512(kSmallBf16.v), high = _mm512_loadu_si512(kSmallBf16.v + 32);
        return {_mm512_permutex2var_epi16(low, code, high)};
      } else {
        return {_mm512_permutexvar_epi16(code, values<bits>())};
      }
    }
  }
  static __m512i byte_values(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  }
  // bf16(i % 2^bits - center) at place i: vpermw reads the low five bits of an index.
  template <int bits>
  static __m512i values() {
    const uint16_t* first = kSmallBf16.v + 32 - center<bits>();
    if constexpr (bits == 2) {
      return _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(first)));
    } else if constexpr (bits == 4) {
      return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
    } else {
      static_assert(bits == 5, "more than the 32 that vpermw looks up");
      return _mm512_loadu_si512(first);
    }
  }
  static Weight load(const void* p) { return load_i(p); }
  static void store(void* p, const Weight& w) { _mm512_storeu_si512(p, w.v); }
  static void store_x(void* dst, const float* x) {
    uint32_t low, high;
    __builtin_memcpy(&low, x, 4);
    __builtin_memcpy(&high, x + 1, 4);
    const uint32_t pair = (low >> 16) | (high & 0xffff0000u);
    __builtin_memcpy(dst, &pair, 4);
  }
  static void accumulate(VecF& acc, const Weight& w, const void* x) {
    int32_t pair;
    __builtin_memcpy(&pair, x, 4);
    acc.v = _mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)_mm512_set1_epi32(pair));
  }
};
#endif

// Activations rounded to int8: vpdpbusd takes codes (unsigned) x activations (signed).
template <int bits>
struct DotInt8 {
  static constexpr int slots = 4;
  using Weight = VecI;
  using Acc = VecI;
  using Side = QuantSide;
  static constexpr bool quantizes = true;
  static constexpr int flush_steps = 0;
  static constexpr int rows = 8;
  static constexpr int padded(int rows) { return rows <= 2 ? rows : (rows + 1) / 2 * 2; }
  static constexpr int wide_blocks = 2;
  static constexpr int narrow_blocks(int rows) { return rows <= 4 ? 4 : 2; }

  template <int>
  static constexpr int center() {
    return 0;
  }
  template <int, int step>
  static Weight decode(const uint8_t* p) {
    if constexpr (bits == 8) {
      const __m512i words = _mm512_loadu_si512(p);
      // Four runs of sixteen bytes: their dwords side by side, then the bytes; less 128 no more.
      const __m512i dwords = _mm512_permutexvar_epi32(
          _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), words);
      const __m512i quads = _mm512_shuffle_epi8(
          dwords, _mm512_broadcast_i32x4(
                      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
      return {_mm512_xor_si512(quads, _mm512_set1_epi8(-128))};
    }
    using Layout = CodeLayout<bits>;
    const __m512i line = _mm512_loadu_si512(p + Layout::line(step) * 64);
    const __m512i lower =
        _mm512_and_si512(moved<Layout::shift(step), 0>(line), _mm512_set1_epi8((1 << Layout::lower_bits) - 1));
    if constexpr (Layout::upper_bits == 0) {
      return {lower};
    } else {
      const __m512i upper = moved<Layout::upper_shift(step), 4>(_mm512_loadu_si512(p + Layout::upper_line * 64));
      return {blend_bits(lower, upper, _mm512_set1_epi8(((1 << Layout::upper_bits) - 1) << 4))};
    }
  }
  static Weight load(const void* p) { return load_i(p); }
  static void store(void* p, const Weight& w) { _mm512_storeu_si512(p, w.v); }
  static Acc start(const Side& side) { return set1_i(side.start); }
  static void accumulate(Acc& acc, const Weight& w, const void* x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, 4);
    acc.v = _mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(quad));
  }
  static void flush(Acc&) {}
  static VecF finish(const Acc& acc, const Side& side) { return mul(to_f(acc), set1(side.scale)); }
};

// vpdpbusd takes unsigned x signed bytes and adds four products to 32 bits without saturation.
struct Int8Dot {
  static constexpr bool saturates = false;
  static constexpr int weight_excess = 128;
  static constexpr int chunk_quads = 512;
  static constexpr int rows = 8;
  static constexpr int padded(int rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : 8; }
  static constexpr int wide_blocks = 2;
  static constexpr int narrow_blocks(int rows) { return rows <= 4 ? 4 : 2; }

  static VecI load_codes(const void* p) {
    int32_t quad;
    __builtin_memcpy(&quad, p, 4);
    return set1_i(quad);
  }
  static void accumulate(VecI& acc, const VecI& w, const VecI& x) {
    acc.v = _mm512_dpbusd_epi32(acc.v, w.v, x.v);
  }
};

}  // namespace

// Sixteen lanes as two 256-bit registers: AVX2 + FMA + F16C. Contract: vec_scalar.h.

namespace {

struct VecF {
  __m256 lo, hi;
};
struct VecI {
  __m256i lo, hi;
};

inline VecF set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline VecI set1_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline VecI load_i(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline VecF load_f(const void* p) {
  const float* q = static_cast<const float*>(p);
  return {_mm256_loadu_ps(q), _mm256_loadu_ps(q + 8)};
}
inline void store_f(void* p, const VecF& a) {
  float* q = static_cast<float*>(p);
  _mm256_storeu_ps(q, a.lo);
  _mm256_storeu_ps(q + 8, a.hi);
}
inline void store_i(void* p, const VecI& a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.hi);
}

#define QCORE_BINARY(name, op)                                             \
  inline VecF name(const VecF& a, const VecF& b) {                         \
    return {_mm256_##op##_ps(a.lo, b.lo), _mm256_##op##_ps(a.hi, b.hi)};   \
  }
QCORE_BINARY(add, add)
QCORE_BINARY(sub, sub)
QCORE_BINARY(mul, mul)
QCORE_BINARY(div, div)
QCORE_BINARY(max, max)
QCORE_BINARY(min, min)
#undef QCORE_BINARY

inline VecF fma(const VecF& a, const VecF& b, const VecF& c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline VecF round(const VecF& a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}

inline VecF to_f(const VecI& a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline VecF u8_to_f(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return to_f({_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))});
}
inline VecI sub_mul(const VecI& a, const VecI& b, const VecI& c) {
  return {_mm256_sub_epi32(a.lo, _mm256_mullo_epi32(b.lo, c.lo)),
          _mm256_sub_epi32(a.hi, _mm256_mullo_epi32(b.hi, c.hi))};
}

inline VecF zero_nan(const VecF& a) {
  return {_mm256_and_ps(a.lo, _mm256_cmp_ps(a.lo, a.lo, _CMP_ORD_Q)),
          _mm256_and_ps(a.hi, _mm256_cmp_ps(a.hi, a.hi, _CMP_ORD_Q))};
}

inline void store_i8(int8_t* p, const VecF& a) {
  // packs works within 128-bit lanes: the permutation brings the 16 words back in order.
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)), 0xd8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

inline float load_one(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(p)[i];
  const uint16_t raw = static_cast<const uint16_t*>(p)[i];
  if (dtype == Dtype::f16) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(raw)));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int32_t>(raw) << 16)));
}

inline VecF load_lanes(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) {
    const float* src = static_cast<const float*>(p) + i;
    return {_mm256_loadu_ps(src), _mm256_loadu_ps(src + 8)};
  }
  const __m128i* src = reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + i);
  const __m128i lo = _mm_loadu_si128(src), hi = _mm_loadu_si128(src + 1);
  if (dtype == Dtype::f16) return {_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)};
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(lo), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(hi), 16))};
}

// Eight f32 to bf16 in the low halves of the lanes, to nearest even; NaN stays NaN.
inline __m256i to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}

inline void store_lanes(void* p, Dtype dtype, int64_t i, const VecF& a) {
  if (dtype == Dtype::f32) {
    store_f(static_cast<float*>(p) + i, a);
    return;
  }
  __m128i* dst = reinterpret_cast<__m128i*>(static_cast<uint16_t*>(p) + i);
  if (dtype == Dtype::f16) {
    _mm_storeu_si128(dst, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(dst + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
  } else {
    const __m256i words =
        _mm256_permute4x64_epi64(_mm256_packus_epi32(to_bf16(a.lo), to_bf16(a.hi)), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), words);
  }
}

inline VecF s8_to_f(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return to_f({_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))});
}

// Elements of 32 bits whose bit `from` is brought to bit `to`, and masked.
template <int from, int to>
VecI moved(VecI v, __m256i mask) {
  if constexpr (from > to) v = {_mm256_srli_epi32(v.lo, from - to), _mm256_srli_epi32(v.hi, from - to)};
  if constexpr (from < to) v = {_mm256_slli_epi32(v.lo, to - from), _mm256_slli_epi32(v.hi, to - from)};
  return {_mm256_and_si256(v.lo, mask), _mm256_and_si256(v.hi, mask)};
}
inline VecI either(const VecI& a, const VecI& b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}

// Codes of up to 6 bits are masked where they stand in a half word, which saves a shift for each: the
// value is the code times a power of two, and pack_rows gives the activation the inverse, exactly.
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
      const __m256i mask = _mm256_set1_epi32(((1 << Layout::lower_bits) - 1) << place);
      const VecI lower = moved<half, 0>(load_i(p + Layout::line(pair) * 64), mask);
      if constexpr (Layout::upper_bits == 0) {
        return to_f(lower);
      } else {
        const __m256i upper_mask = _mm256_set1_epi32(((1 << Layout::upper_bits) - 1) << (place + 4));
        constexpr int from = half + Layout::upper_shift(pair);
        return to_f(either(lower, moved<from, place + 4>(load_i(p + Layout::upper_line * 64), upper_mask)));
      }
    }
  }
  static Weight load(const void* p) { return load_f(p); }
  static void store(void* p, const Weight& w) { store_f(p, w); }
  static void store_x(void* dst, const float* x) { __builtin_memcpy(dst, x, 4); }
  static void accumulate(VecF& acc, const Weight& w, const void* x) {
    acc = fma(w, set1(*static_cast<const float*>(x)), acc);
  }
};

// Codes in bytes, four of each output side by side. Those of 8 bits are signed, less 128.
template <int bits>
struct Int8Codes {
  static constexpr int slots = 4;
  using Weight = VecI;
  using Side = QuantSide;
  static constexpr bool quantizes = true;

  template <int, int step>
  static Weight decode(const uint8_t* p) {
    if constexpr (bits == 8) {
      const VecI words = load_i(p);
      // Four runs of sixteen bytes: their dwords side by side, then the bytes.
      const __m256i first = _mm256_setr_epi32(0, 4, 0, 4, 1, 5, 1, 5);
      const __m256i last = _mm256_setr_epi32(2, 6, 2, 6, 3, 7, 3, 7);
      return {quads_of(words, first), quads_of(words, last)};
    }
    using Layout = CodeLayout<bits>;
    const __m256i mask = _mm256_set1_epi8((1 << Layout::lower_bits) - 1);
    const VecI lower = moved<Layout::shift(step), 0>(load_i(p + Layout::line(step) * 64), mask);
    if constexpr (Layout::upper_bits == 0) {
      return lower;
    } else {
      const __m256i upper_mask = _mm256_set1_epi8(((1 << Layout::upper_bits) - 1) << 4);
      return either(lower, moved<Layout::upper_shift(step), 4>(load_i(p + Layout::upper_line * 64), upper_mask));
    }
  }
  static __m256i quads_of(const VecI& runs, __m256i dwords) {
    const __m256i quads = _mm256_blend_epi32(_mm256_permutevar8x32_epi32(runs.lo, dwords),
                                             _mm256_permutevar8x32_epi32(runs.hi, dwords), 0xcc);
    const __m128i bytes = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm256_shuffle_epi8(quads, _mm256_broadcastsi128_si256(bytes));
  }
  static Weight load(const void* p) { return load_i(p); }
  static void store(void* p, const Weight& w) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), w.lo);
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, w.hi);
  }
};

#ifdef __AVXVNNI__
// vpdpbusd adds four products of codes (unsigned) and activations (signed) to 32 bits.
template <int bits>
struct DotInt8 : Int8Codes<bits> {
  using Weight = VecI;
  using Acc = VecI;
  using Side = QuantSide;
  static constexpr int flush_steps = 0;
  static constexpr int rows = 6;
  static constexpr int padded(int rows) { return rows <= 4 ? rows : 6; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  template <int>
  static constexpr int center() {
    return 0;
  }
  template <int, int step>
  static Weight decode(const uint8_t* p) {
    const VecI codes = Int8Codes<bits>::template decode<bits, step>(p);
    if constexpr (bits != 8) return codes;
    const __m256i sign = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(codes.lo, sign), _mm256_xor_si256(codes.hi, sign)};
  }
  static Acc start(const Side& side) { return set1_i(side.start); }
  static void accumulate(Acc& acc, const Weight& w, const void* x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, 4);
    const __m256i q = _mm256_set1_epi32(quad);
    acc.lo = _mm256_dpbusd_avx_epi32(acc.lo, w.lo, q);
    acc.hi = _mm256_dpbusd_avx_epi32(acc.hi, w.hi, q);
  }
  static void flush(Acc&) {}
  static VecF finish(const Acc& acc, const Side& side) { return mul(to_f(acc), set1(side.scale)); }
};

// vpdpbusd takes unsigned x signed bytes and adds four products to 32 bits without saturation.
struct Int8Dot {
  static constexpr bool saturates = false;
  static constexpr int weight_excess = 128;
  static constexpr int chunk_quads = 512;
  static constexpr int rows = 6;
  static constexpr int padded(int rows) { return rows <= 2 ? rows : rows <= 4 ? 4 : 6; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  static __m256i load_codes(const void* p) {
    int32_t quad;
    __builtin_memcpy(&quad, p, 4);
    return _mm256_set1_epi32(quad);
  }
  static void accumulate(VecI& acc, const VecI& w, __m256i x) {
    acc.lo = _mm256_dpbusd_avx_epi32(acc.lo, w.lo, x);
    acc.hi = _mm256_dpbusd_avx_epi32(acc.hi, w.hi, x);
  }
};
#else
// Activations rounded to int8. Codes of up to 6 bits (unsigned) x activations: pairs of products are added up
// in 16 bits, which hold 8 of them (4 with 5 bits, 2 with 6), and then widened. Of 8 bits |weight| x activation with the
// weight's sign: two products of at most 128 * 127 do not saturate, and are widened at once.
template <int bits>
struct DotInt8 : Int8Codes<bits> {
  using Weight = VecI;
  struct Acc {
    VecI words, total;
  };
  using Side = QuantSide;
  static constexpr int flush_steps = bits == 8 ? 0 : bits == 6 ? 2 : bits == 5 ? 4 : 8;
  static_assert(bits == 8 || flush_steps * 2 * 127 * ((1 << bits) - 1) <= 32767, "they would saturate");
  static constexpr int rows = 4;
  static constexpr int padded(int rows) { return rows == 3 ? 4 : rows; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  template <int>
  static constexpr int center() {
    return bits == 8 ? 128 : 0;
  }
  static Acc start(const Side& side) { return {set1_i(0), set1_i(side.start)}; }
  static void accumulate(Acc& acc, const Weight& w, const void* x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, 4);
    const __m256i q = _mm256_set1_epi32(quad);
    if constexpr (bits == 8) {
      acc.total.lo = _mm256_add_epi32(acc.total.lo, widened(signed_products(w.lo, q)));
      acc.total.hi = _mm256_add_epi32(acc.total.hi, widened(signed_products(w.hi, q)));
    } else {
      acc.words.lo = _mm256_add_epi16(acc.words.lo, _mm256_maddubs_epi16(w.lo, q));
      acc.words.hi = _mm256_add_epi16(acc.words.hi, _mm256_maddubs_epi16(w.hi, q));
    }
  }
  static __m256i signed_products(__m256i w, __m256i q) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
  }
  static __m256i widened(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }
  static void flush(Acc& acc) {
    if constexpr (bits != 8) {
      acc.total.lo = _mm256_add_epi32(acc.total.lo, widened(acc.words.lo));
      acc.total.hi = _mm256_add_epi32(acc.total.hi, widened(acc.words.hi));
      acc.words = set1_i(0);
    }
  }
  static VecF finish(const Acc& acc, const Side& side) {
    return mul(to_f(acc.total), set1(side.scale));
  }
};

// vpmaddubsw adds two products of unsigned x signed bytes in 16 bits, which 255 * (x0 + x1) exceeds if x0 and
// x1 have the same sign and are 129 or more together: int8_rows.h says what becomes of such codes. Where they
// are rare that is half again as fast as products that are safe for all (vpsignb), and a quarter faster than
// 16-bit operands (vpmaddwd).
struct Int8Dot {
  static constexpr bool saturates = true;
  static constexpr int weight_excess = 128;
  static constexpr int chunk_quads = 1024;
  static constexpr int rows = 4;
  static constexpr int padded(int rows) { return rows <= 2 ? rows : 4; }
  static constexpr int wide_blocks = 1;
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  static __m256i load_codes(const void* p) {
    int32_t quad;
    __builtin_memcpy(&quad, p, 4);
    return _mm256_set1_epi32(quad);
  }
  static void accumulate(VecI& acc, const VecI& w, __m256i x) {
    acc.lo = _mm256_add_epi32(acc.lo, products(w.lo, x));
    acc.hi = _mm256_add_epi32(acc.hi, products(w.hi, x));
  }
  static __m256i products(__m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
  }

  struct Words {
    VecI even, odd;
  };
  static Words words(const VecI& w) {
    const __m256i low = _mm256_set1_epi16(0xff);
    return {{_mm256_and_si256(w.lo, low), _mm256_and_si256(w.hi, low)},
            {_mm256_srli_epi16(w.lo, 8), _mm256_srli_epi16(w.hi, 8)}};
  }
  static void accumulate_words(VecI& acc, const Words& w, __m256i even, __m256i odd) {
    acc.lo = _mm256_add_epi32(acc.lo, _mm256_add_epi32(_mm256_madd_epi16(w.even.lo, even),
                                                       _mm256_madd_epi16(w.odd.lo, odd)));
    acc.hi = _mm256_add_epi32(acc.hi, _mm256_add_epi32(_mm256_madd_epi16(w.even.hi, even),
                                                       _mm256_madd_epi16(w.odd.hi, odd)));
  }

  // A bit for each of 16 quads.
  static uint32_t unsafe(const int8_t* q) {
    const VecI codes = load_i(q);
    return unsafe8(codes.lo) | unsafe8(codes.hi) << 8;
  }
  static uint32_t unsafe8(__m256i codes) {
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi8(1);
    const __m256i above = _mm256_maddubs_epi16(_mm256_max_epi8(codes, zero), one);
    const __m256i negative = _mm256_sub_epi8(zero, _mm256_min_epi8(codes, zero));  // 128, too, as unsigned
    const __m256i below = _mm256_maddubs_epi16(negative, one);
    const __m256i over = _mm256_cmpgt_epi16(_mm256_max_epi16(above, below), _mm256_set1_epi16(128));
    const __m256i either = _mm256_or_si256(over, _mm256_slli_epi32(over, 16));
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(either)));
  }
};

#endif

}  // namespace

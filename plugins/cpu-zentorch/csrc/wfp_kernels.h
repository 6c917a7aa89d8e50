// wna16 with codes of e4m3, and with codes that any table gives their value, for one instruction set;
// included by e2m1_kernels.h. Rows of activations that are rounded to small floats: wfp_round.h.

namespace {

// A word has slot 2j at bit 8j of its low half and slot 2j + 1 there in its high half. A code brought to the
// top of 32 bits and shifted right by 4, with its sign, is the f32 of its value by 2^120: 0 and the
// subnormals too. NaN (0x7f) is 480; whoever packs weights gives such an output a scale of NaN.
struct E4m3F32 : DotF32 {
  using Side = ScaledSide;
  static VecF finish(const VecF& acc, const Side& side) { return mul(acc, set1(side.scale)); }
  template <int bits>
  static constexpr int center() {
    return 1 << (bits - 1);  // as if there were no zero points
  }
  template <int bits>
  static float slot_scale(int64_t) {
    return 1.0f;
  }
  template <int bits, int step>
  static Weight decode(const uint8_t* p) {
    constexpr int up = 24 - 16 * (step % 2) - 8 * (step / 2);
#if defined(__AVX512F__)
    const __m512i words = _mm512_loadu_si512(p);
    const __m512i top = up ? _mm512_slli_epi32(words, up) : words;
    const __m512i value = _mm512_and_si512(_mm512_srai_epi32(top, 4), _mm512_set1_epi32(0x87f00000));
    return {_mm512_mul_ps(_mm512_castsi512_ps(value), _mm512_set1_ps(0x1p120f))};
#elif defined(__AVX2__)
    auto half = [](__m256i words) {
      const __m256i top = up ? _mm256_slli_epi32(words, up) : words;
      const __m256i value = _mm256_and_si256(_mm256_srai_epi32(top, 4), _mm256_set1_epi32(0x87f00000));
      return _mm256_mul_ps(_mm256_castsi256_ps(value), _mm256_set1_ps(0x1p120f));
    };
    const VecI words = load_i(p);
    return {half(words.lo), half(words.hi)};
#else
    alignas(64) uint32_t words[16], values[16];
    __builtin_memcpy(words, p, 64);
    for (int lane = 0; lane < 16; ++lane) {
      const uint32_t top = words[lane] << up;
      values[lane] = (top & 0x80000000u) | (top >> 4 & 0x07f00000u);
    }
    return mul(load_f(values), set1(0x1p120f));
#endif
  }
};

#ifdef __AVX512BF16__
struct E4m3Bf16 : DotBf16 {
  using Side = ScaledSide;
  static VecF finish(const VecF& acc, const Side& side) { return mul(acc, set1(side.scale)); }
  template <int bits, int step>
  static Weight decode(const uint8_t* p) {
    // As above, in half words. vdpbf16ps takes subnormals for zero, so exponents are made those of bf16
    // by an addition, and what has no exponent looks its value up by its three bits.
    const __m512i words = _mm512_loadu_si512(p);
    const __m512i top = step ? words : _mm512_slli_epi16(words, 8);
    const __m512i bare = _mm512_and_si512(_mm512_srai_epi16(top, 4), _mm512_set1_epi16(short(0x87f0)));
    const __mmask32 small = _mm512_testn_epi16_mask(bare, _mm512_set1_epi16(0x0780));
    const __m512i values = _mm512_broadcast_i32x4(  // 0 ... 7 by 2^-9
        _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    const __m512i value = _mm512_mask_permutexvar_epi16(
        _mm512_add_epi16(bare, _mm512_set1_epi16(0x3c00)), small,
        step ? _mm512_srli_epi16(words, 8) : words, values);
    return {_mm512_ternarylogic_epi32(value, bare, _mm512_set1_epi16(short(0x8000)), 0xf8)};
  }
};
#endif

// Codes of 4 bits; and of 8, which lie as those of wna16, in four runs of 16 bytes.
struct LookupF32 : DotF32 {
  template <int>
  static constexpr int center() {
    return 0;
  }
  template <int bits>
  static float slot_scale(int64_t) {
    return 1.0f;
  }
  template <int bits, int step>
  static Weight decode(const uint8_t* p, const float* table) {
    constexpr int shift = bits == 4 ? 16 * (step % 2) + 4 * (step / 2) : 0;
#if defined(__AVX512F__)
    if constexpr (bits == 8) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + step);
      return {_mm512_i32gather_ps(_mm512_cvtepu8_epi32(bytes), table, 4)};
    }
    const __m512i words = _mm512_loadu_si512(p);
    return {_mm512_permutexvar_ps(shift ? _mm512_srli_epi32(words, shift) : words, _mm512_loadu_ps(table))};
#elif defined(__AVX2__)
    if constexpr (bits == 8) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + step);
      return {_mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(bytes), 4),
              _mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), 4)};
    }
    // vpermps reads three bits; the fourth, brought to the top, chooses the half of the table.
    const VecF values = load_f(table);
    auto half = [&](__m256i words) {
      const __m256i code = _mm256_srli_epi32(words, shift);
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(values.lo, code),
                              _mm256_permutevar8x32_ps(values.hi, code),
                              _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - shift)));
    };
    const VecI words = load_i(p);
    return {half(words.lo), half(words.hi)};
#else
    alignas(64) float values[16];
    if constexpr (bits == 8) {
      for (int lane = 0; lane < 16; ++lane) values[lane] = table[p[step * 16 + lane]];
    } else {
      alignas(64) uint32_t words[16];
      __builtin_memcpy(words, p, 64);
      for (int lane = 0; lane < 16; ++lane) values[lane] = table[(words[lane] >> shift) & 15u];
    }
    return load_f(values);
#endif
  }
};

template <>
constexpr bool takes_table<LookupF32> = true;
template <>
constexpr bool only_scales<E4m3F32> = true;
#ifdef __AVX512BF16__
template <>
constexpr bool only_scales<E4m3Bf16> = true;
#endif

}  // namespace

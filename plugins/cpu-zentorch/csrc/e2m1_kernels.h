// wna16 with codes of e2m1 (MXFP4, NVFP4), for one instruction set; included by isa_<name>.cpp after
// wna16_kernels.h. The codes lie as those of 4 bits do, and only what they stand for differs: their values
// are exact in bfloat16, there are no zero points, and a power of two is a scale like any other.

#include "wfp_kernels.h"
#include "wfp_round.h"

namespace {

struct E2m1F32 : DotF32 {
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
    constexpr int shift = 16 * (step % 2) + 4 * (step / 2);
#if defined(__AVX512F__)
    const __m512 values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                         -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    const __m512i words = _mm512_loadu_si512(p);
    return {_mm512_permutexvar_ps(shift ? _mm512_srli_epi32(words, shift) : words, values)};
#elif defined(__AVX2__)
    // vpermps reads three bits, the magnitude; the sign is brought to the top.
    const __m256 values = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    auto half = [&](__m256i words) {
      const __m256 magnitude = _mm256_permutevar8x32_ps(values, _mm256_srli_epi32(words, shift));
      const __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - shift));
      return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
    };
    const VecI words = load_i(p);
    return {half(words.lo), half(words.hi)};
#elif defined(QCORE_QUARTERS)  // vec_neon.h
    // A value is a number of quarters, in a byte: of a table, and brought to the top of its lane for the sign.
    const int8_t quarters[16] = {0, 2, 4, 6, 8, 12, 16, 24, 0, -2, -4, -6, -8, -12, -16, -24};
    const int8x16_t table = vld1q_s8(quarters);
    const VecI words = load_i(p);
    VecF r;
    QCORE_QUARTERS {
      const uint32x4_t code =
          vshrq_n_u32(vshlq_n_u32(vreinterpretq_u32_s32(words.v[i]), 28 - shift), 28);
      const int8x16_t value = vqtbl1q_s8(table, vreinterpretq_u8_u32(code));
      r.v[i] = vcvtq_n_f32_s32(vshlq_n_s32(vreinterpretq_s32_s8(value), 24), 26);
    }
    return r;
#else
    constexpr float values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                  -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    VecF r;
    const VecI words = load_i(p);
    QCORE_LANES r.v[lane] = values[(static_cast<uint32_t>(words.v[lane]) >> shift) & 15u];
    return r;
#endif
  }
};

#ifdef __AVX512BF16__
struct E2m1Bf16 : DotBf16 {
  template <int bits, int step>
  static Weight decode(const uint8_t* p) {
    // vpermw reads five bits of an index, so the values stand twice.
    const __m512i values = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, short(0x8000), short(0xbf00),
        short(0xbf80), short(0xbfc0), short(0xc000), short(0xc040), short(0xc080), short(0xc0c0)));
    const __m512i words = _mm512_loadu_si512(p);
    return {_mm512_permutexvar_epi16(step ? _mm512_srli_epi32(words, 4 * step) : words, values)};
  }
};
#endif

template <>
constexpr bool only_scales<E2m1F32> = true;
#ifdef __AVX512BF16__
template <>
constexpr bool only_scales<E2m1Bf16> = true;
#endif

}  // namespace

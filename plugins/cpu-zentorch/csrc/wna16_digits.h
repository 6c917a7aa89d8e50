// Activations as they are, by products of integers: the inputs of a chunk become fixed-point numbers of 31 bits,
// one power of two for all, and their four bytes are four rows of signed digits. Sums of digits times codes are
// exact; so the only rounding is that of an input to 2^-31 of the power of two above the largest of its chunk,
// which is less than a sum of floats rounds at every step. Four bytes are one multiplication each (vpdpbusd takes
// four inputs), as many as there are for floats, but codes need not become floats.

namespace {

#if defined(__AVX512F__) || defined(__AVXVNNI__)
constexpr int kDigits = 4;

struct DigitSide {
  float sum;               // of the inputs of the chunk
  float scale;             // input ~ number * scale
  int32_t start[kDigits];  // - (sum of the digits) * (zero point that all groups have)
};

template <int bits>
struct DotDigits {
  using Digit = DotInt8<bits>;
  static constexpr int slots = Digit::slots;
  static constexpr int step_bytes = kDigits * 4;
  using Weight = typename Digit::Weight;
  struct Acc {
    typename Digit::Acc v[kDigits];
  };
  using Side = DigitSide;
  static constexpr bool quantizes = false;
  static constexpr int flush_steps = 0;
  static_assert(Digit::flush_steps == 0, "sums of 32 bits");
#ifdef __AVX512F__
  static constexpr int rows = 6;
  static constexpr int padded(int rows) { return rows <= 4 ? rows : 6; }
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
  static constexpr int rows = 3;
  static constexpr int padded(int rows) { return rows; }
  static constexpr int narrow_blocks(int rows) { return rows == 1 ? 2 : 1; }
#endif
  static constexpr int wide_blocks = 1;

  template <int>
  static constexpr int center() {
    return 0;
  }
  template <int, int step>
  QCORE_INLINE static Weight decode(const uint8_t* p) {
    return Digit::template decode<bits, step>(p);
  }
  static Weight load(const void* p) { return Digit::load(p); }
  static void store(void* p, const Weight& w) { Digit::store(p, w); }
  QCORE_INLINE static Acc start(const Side& side) {
    Acc acc;
    repeat<kDigits>([&](auto d) QCORE_BODY { acc.v[d] = Digit::start({0, 0, side.start[d]}); });
    return acc;
  }
  QCORE_INLINE static void accumulate(Acc& acc, const Weight& w, const void* x) {
    const char* quads = static_cast<const char*>(x);
    repeat<kDigits>([&](auto d) QCORE_BODY { Digit::accumulate(acc.v[d], w, quads + d * 4); });
  }
  static void flush(Acc&) {}
  QCORE_INLINE static VecF finish(const Acc& acc, const Side& side) {
    const VecF base = set1(256.0f);
    VecF value = to_f(acc.v[3]);
    value = fma(value, base, to_f(acc.v[2]));
    value = fma(value, base, to_f(acc.v[1]));
    value = fma(value, base, to_f(acc.v[0]));
    return mul(value, set1(side.scale));
  }
};

template <int bits>
constexpr bool integer_sums<DotDigits<bits>> = true;
template <int bits>
constexpr bool takes_digits<DotDigits<bits>> = true;
template <int bits>
using DotExact = DotDigits<bits>;

template <class Dot, int bits>
struct DigitRows {
  static constexpr int kSlots = CodeLayout<bits>::slots;

  // A chunk of one of `rows` rows.
  static DigitSide pack(const Wna16Weights& w, int rows, int64_t words, const float* values, char* dst) {
    const int64_t count = words * kSlots;
    const float largest = largest_of(values, count);
    const float factor = largest > 0.0f ? factor_of(largest) : 1.0f;
    alignas(64) int32_t numbers[kChunkSlots];
    to_digits(numbers, values, count, factor);
    alignas(16) int32_t sums[kDigits];
    _mm_store_si128(reinterpret_cast<__m128i*>(sums), store_quads(numbers, rows, words, dst));
    const int zero = w.zero ? 0 : common_zero_of<Dot, bits>(w.offset.data);
    DigitSide side{sum_of(values, count), largest != largest ? largest : 1.0f / factor, {}};
    for (int d = 0; d < kDigits; ++d) side.start[d] = -zero * sums[d];
    return side;
  }

  // The power of two that makes numbers of at most `largest` less than 2^30.
  static float factor_of(float largest) {
    uint32_t word;
    __builtin_memcpy(&word, &largest, 4);
    const int exponent = static_cast<int>(word >> 23);
    word = static_cast<uint32_t>(exponent < 30 ? 253 : 283 - exponent) << 23;
    float factor;
    __builtin_memcpy(&factor, &word, 4);
    return factor;
  }

  // Numbers of less than 2^30 as four digits each, the signed bytes; `count` is a multiple of 4.
  static void to_digits(int32_t* numbers, const float* values, int64_t count, float factor) {
    const __m128i bias = _mm_set1_epi32(0x00808080);
    for (int64_t i = 0; i < count; i += 4) {
      const __m128i number = _mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(values + i), _mm_set1_ps(factor)));
      const __m128i digits = _mm_xor_si128(_mm_add_epi32(number, bias), bias);
      _mm_store_si128(reinterpret_cast<__m128i*>(numbers + i), digits);
    }
  }

  // In the order in which `decode` gives weights (Wna16Rows::store_codes), the same digit of four slots side by
  // side. Returns the sums of the digits.
  static __m128i store_quads(const int32_t* numbers, int rows, int64_t words, char* dst) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i ones = _mm_set1_epi8(1);
    const auto pair = [&](int slot) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers + slot)); };
    __m128i total = _mm_setzero_si128();
    for (int64_t word = 0; word < words; ++word, numbers += kSlots) {
      for (int t = 0; t < kSlots / 4; ++t, dst += rows * kDigits * 4) {
        const int second = bits == 8 ? 2 : kSlots / 2 + 2 * t;
        const __m128i quad = bits == 8 ? _mm_unpacklo_epi64(pair(0), pair(second))
                                       : _mm_unpacklo_epi32(pair(2 * t), pair(second));
        const __m128i digits = _mm_shuffle_epi8(quad, order);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), digits);
        total = _mm_add_epi32(total, _mm_madd_epi16(_mm_maddubs_epi16(ones, digits), _mm_set1_epi16(1)));
      }
    }
    return total;
  }
};
#else
template <int bits>
using DotExact = DotF32;
#endif

}  // namespace

// What turns a chunk's sums of products into a part of the result: scales, zero points, offsets.
//
//   total += offset * sum_of_x,  total += scale * (sum - (zero - center) * sum_of_x)

namespace {

// Whether a Dot looks codes up in the layer's table; whether it has a scale and no other term.
template <class Dot>
constexpr bool takes_table = false;
template <class Dot>
constexpr bool only_scales = false;
// Whether it adds integers, which start from the zero point; and whether these are digits (wna16_digits.h).
template <class Dot>
constexpr bool integer_sums = Dot::quantizes;
template <class Dot>
constexpr bool takes_digits = false;
// Of one row in one step.
template <class Dot>
constexpr int step_bytes = takes_digits<Dot> ? 16 : 4;

template <class Dot, int bits, int step>
QCORE_INLINE typename Dot::Weight decode_step(const Wna16Weights& w, const uint8_t* p) {
  if constexpr (takes_table<Dot>) {
    return Dot::template decode<bits, step>(p, w.table);
  } else {
    return Dot::template decode<bits, step>(p);
  }
}

// Sixteen scales of one byte, e4m3 or e8m0.
inline VecF load_small(const void* p, Dtype dtype, int64_t i) {
  const uint8_t* bytes = static_cast<const uint8_t*>(p) + i;
#if defined(__AVX512F__)
  const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  if (dtype == Dtype::e8m0) return {_mm512_castsi512_ps(_mm512_slli_epi32(codes, 23))};
  const __m512i value = _mm512_and_si512(_mm512_srai_epi32(_mm512_slli_epi32(codes, 24), 4),
                                         _mm512_set1_epi32(0x87f00000));
  return {_mm512_mul_ps(_mm512_castsi512_ps(value), _mm512_set1_ps(0x1p120f))};
#elif defined(__AVX2__)
  auto half = [&](const uint8_t* at) {
    const __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    if (dtype == Dtype::e8m0) return _mm256_castsi256_ps(_mm256_slli_epi32(codes, 23));
    const __m256i value = _mm256_and_si256(_mm256_srai_epi32(_mm256_slli_epi32(codes, 24), 4),
                                           _mm256_set1_epi32(0x87f00000));
    return _mm256_mul_ps(_mm256_castsi256_ps(value), _mm256_set1_ps(0x1p120f));
  };
  return {half(bytes), half(bytes + 8)};
#else
  alignas(64) uint32_t values[16];
  for (int lane = 0; lane < 16; ++lane) {
    const uint32_t code = bytes[lane];
    values[lane] = dtype == Dtype::e8m0 ? code << 23 : (code << 24 & 0x80000000u) | (code & 0x7fu) << 20;
  }
  const VecF r = load_f(values);
  return dtype == Dtype::e8m0 ? r : mul(r, set1(0x1p120f));
#endif
}

// Lanes [0, count) of an array; the others are zero.
inline VecF load_some(const void* p, Dtype dtype, int64_t i, int64_t count) {
  if (count >= kBlock) return load_lanes(p, dtype, i);
  alignas(64) unsigned char lanes[64] = {};
  const int64_t size = dtype == Dtype::f32 ? 4 : 2;
  __builtin_memcpy(lanes, static_cast<const char*>(p) + i * size, count * size);
  return load_lanes(lanes, dtype, 0);
}

// One block of one row of the result, with the bias.
inline void store_block(const Output& out, int64_t row, int64_t block, VecF value) {
  const int64_t column = block * kBlock;
  const int64_t count = out.n - column;
  if (out.row_scale) value = mul(value, set1(out.row_scale[row]));
  if (out.bias) value = add(value, load_some(out.bias, out.bias_dtype, column, count));
  if (count >= kBlock) {
    store_lanes(out.data, out.dtype, row * out.n + column, value);
    return;
  }
  alignas(64) unsigned char lanes[64];
  store_lanes(lanes, out.dtype, 0, value);
  const int64_t size = out.dtype == Dtype::f32 ? 4 : 2;
  __builtin_memcpy(static_cast<char*>(out.data) + (row * out.n + column) * size, lanes, count * size);
}

// The zero point of a layer without a tensor of them, less the center of the decoded codes.
template <class Dot, int bits>
constexpr int common_zero_of(bool has_offset) {
  if (takes_table<Dot>) return 0;
  const int stored = has_offset ? (bits == 8 ? 128 : 0) : 1 << (bits - 1);
  return stored - Dot::template center<bits>();
}

// Which terms of a fold a layer has: a scale; a zero point too; an offset, or what else GGUF has.
enum class Terms { scale, zero, all };

inline Terms terms_of(const Wna16Weights& w) {
  return w.offset.data || w.scale.super ? Terms::all : w.zero ? Terms::zero : Terms::scale;
}

// Calls body(constant) with the layer's terms, so that the code behind it has no branch on them.
template <Terms terms>
struct TermsConstant {
  static constexpr Terms value = terms;
};
template <class Dot, class Body>
QCORE_INLINE void with_terms(const Wna16Weights& w, const Body& body) {
  if constexpr (only_scales<Dot>) {
    body(TermsConstant<Terms::scale>());
  } else {
    switch (terms_of(w)) {
      case Terms::scale:
        return body(TermsConstant<Terms::scale>());
      case Terms::zero:
        return body(TermsConstant<Terms::zero>());
      case Terms::all:
        return body(TermsConstant<Terms::all>());
    }
  }
}

template <class Dot, int bits>
struct Wna16Fold {
  VecF scale, zero, offset;

  static VecF load_factor(const Wna16Weights& w, const Wna16Factor& f, int64_t block, int32_t group) {
    const int64_t i = (block * w.groups + group) * kBlock;
    if (!f.super) return load_lanes(f.data, f.dtype, i);
    const int64_t super = (block * w.supers + (group >> w.span_bits)) * kBlock;
    const VecF integers = s8_to_f(static_cast<const int8_t*>(f.data) + i);
    return mul(integers, load_lanes(f.super, Dtype::f16, super));
  }

  template <Terms terms>
  QCORE_INLINE static Wna16Fold load(const Wna16Weights& w, int64_t chunk, int64_t block) {
    const int32_t group = w.chunk_group[chunk];
    Wna16Fold f;
    if constexpr (only_scales<Dot>) {
      const int64_t i = (block * w.groups + group) * kBlock;
      const bool small = w.scale.dtype >= Dtype::e4m3;
      f.scale = small ? load_small(w.scale.data, w.scale.dtype, i)
                      : load_lanes(w.scale.data, w.scale.dtype, i);
    } else if constexpr (terms == Terms::all) {
      f.scale = load_factor(w, w.scale, block, group);
      f.offset = w.offset.data ? load_factor(w, w.offset, block, group) : set1(0.0f);
    } else {
      f.scale = load_lanes(w.scale.data, w.scale.dtype, (block * w.groups + group) * kBlock);
    }
    if (terms != Terms::scale && w.zero) {
      const uint8_t* zero = w.zero + (block * w.groups + group) * kBlock;
      f.zero = sub(u8_to_f(zero), set1(Dot::template center<bits>()));
    } else {
      f.zero = set1(integer_sums<Dot> ? 0 : common_zero_of<Dot, bits>(w.offset.data));
    }
    return f;
  }

  template <Terms terms>
  QCORE_INLINE VecF apply(const typename Dot::Acc& acc, const typename Dot::Side& side,
                          VecF total) const {
    // Integers start from the zero point that all groups have (QuantSide::start), and floats have often none.
    constexpr bool has_zero =
        terms != Terms::scale || (!integer_sums<Dot> && common_zero_of<Dot, bits>(false) != 0);
    VecF value = Dot::finish(acc, side);
    if constexpr (has_zero) value = fma(zero, set1(-side.sum), value);
    if constexpr (terms == Terms::all) total = fma(offset, set1(side.sum), total);
    return fma(scale, value, total);
  }
};

}  // namespace

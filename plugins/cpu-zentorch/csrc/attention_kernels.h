// Attention of one query, for heads that share keys and values: each key and each value is read once for all of
// them. Sums in float32; a head's result does not depend on how many are taken together.

namespace {

// The sum of sixteen lanes, in pairs.
inline float sum_of_lanes(const VecF& v) {
  alignas(64) float a[16];
  store_f(a, v);
  return (((a[0] + a[8]) + (a[4] + a[12])) + ((a[2] + a[10]) + (a[6] + a[14]))) +
         (((a[1] + a[9]) + (a[5] + a[13])) + ((a[3] + a[11]) + (a[7] + a[15])));
}

template <Dtype dtype, int heads>
struct Attending {
#ifdef __AVX512F__
  static constexpr int kVectors = 4;  // of sums, for each head
#else
  static constexpr int kVectors = 1;
#endif

  static constexpr int64_t kUnit = dtype == Dtype::f32 ? 4 : 2;
  static constexpr int64_t kAhead = 16;  // rows; also those of which sums are taken before the next columns

  // The line with element `at`, of memory that is read later: the processor's own guesses end with a page.
  QCORE_INLINE static void fetch(const void* p, int64_t at) {
    __builtin_prefetch(static_cast<const char*>(p) + at * kUnit);
  }

  // scores [head][position] of `count` positions from `first` on; `queries` [head][size].
  template <int count>
  QCORE_INLINE static void score(const Attention& a, const float* queries, int64_t first, float* scores) {
    VecF sums[heads * count];
    repeat<heads * count>([&](auto i) QCORE_BODY { sums[i] = set1(0.0f); });
    for (int64_t d = 0; d < a.size; d += 16) {
      VecF keys[count];
      repeat<count>([&](auto p) QCORE_BODY {
        const int64_t at = (first + p) * a.key_stride + d;
        fetch(a.keys, at + kAhead * a.key_stride);
        keys[p] = load_lanes(a.keys, dtype, at);
      });
      repeat2<heads, count>([&](auto h, auto p) QCORE_BODY {
        VecF& sum = sums[h * count + p];
        sum = fma(load_f(queries + h * a.size + d), keys[p], sum);
      });
    }
    repeat2<heads, count>([&](auto h, auto p) QCORE_BODY {
      scores[h * a.length + first + p] = sum_of_lanes(sums[h * count + p]);
    });
  }

  // Scores become weights, whose sum is returned.
  static float soften(float* scores, int64_t length) {
    float largest = scores[0], total = 0.0f;
    for (int64_t l = 1; l < length; ++l) largest = scores[l] > largest ? scores[l] : largest;
    for (int64_t l = 0; l < length; ++l) {
      scores[l] = __builtin_expf(scores[l] - largest);
      total += scores[l];
    }
    return total;
  }

  // To `results` [head][size], 16 * `vectors` columns from `column` on, what the positions [begin, end) add.
  template <int vectors>
  QCORE_INLINE static void mix(const Attention& a, const float* weights, int64_t begin, int64_t end,
                               int64_t column, float* results) {
    VecF sums[heads * vectors];
    repeat2<heads, vectors>([&](auto h, auto v) QCORE_BODY {
      sums[h * vectors + v] = load_f(results + h * a.size + column + v * 16);
    });
    for (int64_t l = begin; l < end; ++l) {
      VecF values[vectors];
      repeat<vectors>([&](auto v) QCORE_BODY {
        const int64_t at = l * a.value_stride + column + v * 16;
        fetch(a.values, at + kAhead * a.value_stride);
        values[v] = load_lanes(a.values, dtype, at);
      });
      repeat2<heads, vectors>([&](auto h, auto v) QCORE_BODY {
        VecF& sum = sums[h * vectors + v];
        sum = fma(values[v], set1(weights[h * a.length + l]), sum);
      });
    }
    repeat2<heads, vectors>([&](auto h, auto v) QCORE_BODY {
      store_f(results + h * a.size + column + v * 16, sums[h * vectors + v]);
    });
  }

  static void run(const Attention& a, float* space) {
    float* queries = space;
    float* scores = space + heads * a.size;
    for (int h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < a.size; d += 16) {
        const VecF query = load_lanes(a.query, dtype, h * a.query_stride + d);
        store_f(queries + h * a.size + d, mul(query, set1(a.scale)));
      }
    }
    int64_t l = 0;
    for (; l + 2 <= a.length; l += 2) score<2>(a, queries, l, scores);
    if (l < a.length) score<1>(a, queries, l, scores);

    float factors[heads];
    for (int h = 0; h < heads; ++h) factors[h] = 1.0f / soften(scores + h * a.length, a.length);

    float* results = space;  // the queries have been used
    for (int64_t i = 0; i < heads * a.size; i += 16) store_f(results + i, set1(0.0f));
    for (int64_t begin = 0; begin < a.length; begin += kAhead) {
      const int64_t end = begin + kAhead < a.length ? begin + kAhead : a.length;
      int64_t d = 0;
      for (; d + 16 * kVectors <= a.size; d += 16 * kVectors) mix<kVectors>(a, scores, begin, end, d, results);
      for (; d < a.size; d += 16) mix<1>(a, scores, begin, end, d, results);
    }
    for (int h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < a.size; d += 16) {
        const VecF result = mul(load_f(results + h * a.size + d), set1(factors[h]));
        store_lanes(a.out, dtype, h * a.size + d, result);
      }
    }
  }
};

template <Dtype dtype>
void attend_as(const Attention& a, float* space) {
  switch (a.heads) {
    case 1:
      return Attending<dtype, 1>::run(a, space);
    case 2:
      return Attending<dtype, 2>::run(a, space);
    case 3:
      return Attending<dtype, 3>::run(a, space);
    default:
      return Attending<dtype, 4>::run(a, space);
  }
}

inline void attend(const Attention& a, float* space) {
  if (a.dtype == Dtype::f32) return attend_as<Dtype::f32>(a, space);
  if (a.dtype == Dtype::f16) return attend_as<Dtype::f16>(a, space);
  return attend_as<Dtype::bf16>(a, space);
}

}  // namespace

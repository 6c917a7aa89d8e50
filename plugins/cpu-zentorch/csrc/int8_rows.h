// Activations to int8, and into the tiles that the products read; included by int8_kernels.h.

namespace {

struct RowStats {
  float low, high;  // over the row and 0
  bool finite;
};

inline float reduce(const VecF& v, bool largest) {
  alignas(64) float lanes[16];
  store_f(lanes, v);
  float best = lanes[0];
  for (int lane = 1; lane < 16; ++lane) {
    if (largest ? lanes[lane] > best : lanes[lane] < best) best = lanes[lane];
  }
  return best;
}

inline RowStats row_stats(const void* x, Dtype dtype, int64_t k) {
  VecF low = set1(0.0f), high = low, nan = low;
  const VecF zero = set1(0.0f);
  for (int64_t i = 0; i < k; i += 16) {
    const VecF v = load_some(x, dtype, i, k - i);
    low = min(v, low);
    high = max(v, high);
    nan = fma(v, zero, nan);  // infinity and NaN make NaN
  }
  alignas(64) float lanes[16];
  store_f(lanes, nan);
  bool finite = true;
  for (int lane = 0; lane < 16; ++lane) finite = finite && lanes[lane] == 0.0f;
  return {reduce(low, false), reduce(high, true), finite};
}

inline float clamp(float value, float low, float high) {
  return value < low ? low : value > high ? high : value;
}

// round(x / scale) + azp, clamped; NaN becomes 0. The division is what the definition has.
// `within`: there is no azp, nothing to clamp, no NaN. Returns the sum of the codes.
template <bool within>
inline int32_t quantize_codes(const void* x, Dtype dtype, int64_t k, float scale, float azp, float least,
                              int8_t* q) {
  const VecF s = set1(scale), a = set1(azp), low = set1(least), high = set1(127.0f);
  VecF total = set1(0.0f);  // of integers, and below 2^24: exact
  int32_t tail = 0;
  for (int64_t i = 0; i < k; i += 16) {
    const VecF v = round(div(load_some(x, dtype, i, k - i), s));
    const VecF codes = within ? v : min(max(zero_nan(add(v, a)), low), high);
    if (k - i >= 16) {
      store_i8(q + i, codes);
      total = add(total, codes);
    } else {
      alignas(16) int8_t lanes[16];
      store_i8(lanes, codes);
      __builtin_memcpy(q + i, lanes, k - i);
      for (int64_t lane = 0; lane < k - i; ++lane) tail += lanes[lane];
    }
  }
  alignas(64) float lanes[16];
  store_f(lanes, total);
  for (int lane = 0; lane < 16; ++lane) tail += static_cast<int32_t>(lanes[lane]);
  return tail;
}

inline int32_t quantize_row(const void* x, Dtype dtype, int64_t k, const RowQuant& mode, int8_t* q,
                            float* scale, int32_t* azp) {
  float divisor = mode.scale;
  int32_t zero = mode.symmetric || mode.dynamic ? 0 : mode.azp;
  *scale = mode.scale;
  if (mode.dynamic) {
    const RowStats row = row_stats(x, dtype, k);
    const float amax = -row.low > row.high ? -row.low : row.high;
    divisor = mode.symmetric ? amax / 127.0f : (row.high - row.low) / 255.0f;
    const bool finite = row.finite && divisor - divisor == 0.0f;
    if (divisor == 0.0f || !finite) divisor = 1.0f;
    *scale = finite ? divisor : __builtin_nanf("");
    // A divisor below the normal floats may be off by half.
    if (finite && mode.symmetric && divisor >= __FLT_MIN__) {
      *azp = 0;
      return quantize_codes<true>(x, dtype, k, divisor, 0.0f, 0.0f, q);
    }
    if (!mode.symmetric && k > 0) {
      const float least = finite ? row.low / divisor : 0.0f;
      zero = static_cast<int32_t>(clamp(-128.0f - __builtin_rintf(least), -128.0f, 127.0f));
    }
  }
  *azp = zero;
  return quantize_codes<false>(x, dtype, k, divisor, static_cast<float>(zero),
                        mode.symmetric ? -127.0f : -128.0f, q);
}

// ---- tiles -----------------------------------------------------------------------------------

// Where 16-bit sums of two products could saturate (`Dot::saturates`), the second and the fourth code of a
// quad are taken out of the tile and added by themselves: 255 * 128 fits. If that befell many quads of a
// tile's chunk, all its codes are words instead, to be multiplied with weights made words.
struct Int8Extra {
  int32_t quad;  // of the chunk
  uint32_t codes;
};
constexpr int kWordsFrom = 5;  // where one quad of so many would be split

// One chunk of a tile of `rows` rows.
struct Int8Slice {
  int64_t begin, quads;
  char* x;          // [quads][rows][4]; as words the first and third codes
  char* extra;      // Int8Extra [rows][quads]; as words the second and fourth codes, [quads][rows][4]
  int32_t* extras;  // [rows], how many; -1 if codes are words
};

// Of the tile that begins with row `first`.
inline Int8Slice int8_slice(const Int8Panel& panel, int64_t chunk, int64_t first, int64_t all_quads) {
  const int64_t begin = chunk * Int8Dot::chunk_quads, left = all_quads - begin;
  const int64_t quads = left < Int8Dot::chunk_quads ? left : Int8Dot::chunk_quads;
  const int64_t at = begin * panel.rows + quads * first;
  return {begin, quads, panel.codes + at * 4, panel.extra + at * sizeof(Int8Extra),
          panel.extras + chunk * panel.rows + first};
}

// Rows of codes, each `line_bytes` long, and a bit for each quad that could saturate.
struct Int8Lines {
  int8_t* codes;
  uint16_t* unsafe;
  int64_t line_bytes;

  int8_t* quad(int r, int64_t i) const { return codes + r * line_bytes + i * 4; }
  int64_t unsafe_quads(int rows, int64_t begin, int64_t end) const {
    int64_t count = 0;
    for (int r = 0; r < rows; ++r) {
      for (int64_t i = begin; i < end; i += 16) {
        count += __builtin_popcount(unsafe[r * line_bytes / 64 + i / 16]);
      }
    }
    return count;
  }
};

inline void store_words(const Int8Lines& lines, int rows, const Int8Slice& to) {
  for (int64_t i = 0; i < to.quads; ++i) {
    for (int r = 0; r < rows; ++r) {
      const int8_t* q = lines.quad(r, to.begin + i);
      const int16_t even[2] = {q[0], q[2]}, odd[2] = {q[1], q[3]};
      __builtin_memcpy(to.x + (i * rows + r) * 4, even, 4);
      __builtin_memcpy(to.extra + (i * rows + r) * 4, odd, 4);
    }
  }
  to.extras[0] = -1;
}

// Takes the extras of row r out of `lines`.
inline void split_row(const Int8Lines& lines, int r, const Int8Slice& to) {
  auto* extra = reinterpret_cast<Int8Extra*>(to.extra) + r * to.quads;
  int32_t count = 0;
  for (int64_t i = 0; i < to.quads; i += 16) {
    uint32_t bits = lines.unsafe[r * lines.line_bytes / 64 + (to.begin + i) / 16];
    for (; bits; bits &= bits - 1) {
      const int32_t quad = static_cast<int32_t>(i) + __builtin_ctz(bits);
      uint32_t codes;
      int8_t* from = lines.quad(r, to.begin + quad);
      __builtin_memcpy(&codes, from, 4);
      const uint32_t kept = codes & 0x00ff00ffu;
      __builtin_memcpy(from, &kept, 4);
      extra[count++] = {quad, codes & 0xff00ff00u};
    }
  }
  to.extras[r] = count;
}

// Rows of codes side by side, quad by quad.
QCORE_INLINE void store_quads(const Int8Lines& lines, int rows, const Int8Slice& to) {
  char* at = to.x;
  for (int64_t i = 0; i < to.quads; ++i) {
    for (int r = 0; r < rows; ++r, at += 4) __builtin_memcpy(at, lines.quad(r, to.begin + i), 4);
  }
}

// `count` rows of x to the tile of a panel that begins with row `first`.
template <class Dot>
void int8_pack_rows(const void* x, Dtype dtype, int count, int64_t stride, const RowQuant& mode, int64_t k,
                    int8_t* space, const Int8Panel& panel, int64_t first) {
  const int rows = panel.rows < Dot::rows ? static_cast<int>(panel.rows) : Dot::rows;
  const int64_t quads = (k + 3) / 4, size = dtype == Dtype::f32 ? 4 : 2, bytes = (k + 63) / 64 * 64;
  const Int8Lines lines{space, reinterpret_cast<uint16_t*>(space + rows * bytes), bytes};
  for (int r = 0; r < rows; ++r) {
    Int8Side& side = panel.sides[first + r];
    int8_t* line = lines.quad(r, 0);
    const int64_t used = r < count ? k : 0;
    __builtin_memset(line + used, 0, bytes - used);
    side = {0.0f, 0, 0};
    if (r < count) {
      const char* row = static_cast<const char*>(x) + r * stride * size;
      side.start = -Dot::weight_excess * quantize_row(row, dtype, k, mode, line, &side.scale, &side.azp);
    }
    if constexpr (Dot::saturates) {
      for (int64_t i = 0; i < bytes; i += 64) lines.unsafe[(r * bytes + i) / 64] = Dot::unsafe(line + i);
    }
  }
  for (int64_t c = 0; c * Dot::chunk_quads < quads; ++c) {
    const Int8Slice to = int8_slice(panel, c, first, quads);
    if constexpr (Dot::saturates) {
      if (lines.unsafe_quads(rows, to.begin, to.begin + to.quads) * kWordsFrom > rows * to.quads) {
        store_words(lines, rows, to);
        continue;
      }
    }
    if constexpr (Dot::saturates) {
      for (int r = 0; r < rows; ++r) split_row(lines, r, to);
    }
    // The compiler knows how many rows a whole tile has.
    rows == Dot::rows ? store_quads(lines, Dot::rows, to) : store_quads(lines, rows, to);
  }
}

}  // namespace

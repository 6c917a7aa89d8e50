// int8 for one instruction set; included by isa_<name>.cpp after wna16_kernels.h.

namespace {

// ---- activations -----------------------------------------------------------------------------

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
inline void quantize_codes(const void* x, Dtype dtype, int64_t k, float scale, float azp, float least,
                           int8_t* q) {
  const VecF s = set1(scale), a = set1(azp), low = set1(least), high = set1(127.0f);
  for (int64_t i = 0; i < k; i += 16) {
    const VecF v = zero_nan(add(round(div(load_some(x, dtype, i, k - i), s)), a));
    const VecF codes = min(max(v, low), high);
    if (k - i >= 16) {
      store_i8(q + i, codes);
    } else {
      alignas(16) int8_t lanes[16];
      store_i8(lanes, codes);
      __builtin_memcpy(q + i, lanes, k - i);
    }
  }
}

inline void quantize_row(const void* x, Dtype dtype, int64_t k, const RowQuant& mode, int8_t* q,
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
    if (!mode.symmetric && k > 0) {
      const float least = finite ? row.low / divisor : 0.0f;
      zero = static_cast<int32_t>(clamp(-128.0f - __builtin_rintf(least), -128.0f, 127.0f));
    }
  }
  *azp = zero;
  quantize_codes(x, dtype, k, divisor, static_cast<float>(zero), mode.symmetric ? -127.0f : -128.0f, q);
}

inline void int8_pack_rows(const int8_t* q, int rows, int64_t quads, void* tile) {
  char* dst = static_cast<char*>(tile);
  for (int64_t i = 0; i < quads; ++i) {
    for (int r = 0; r < rows; ++r, dst += Int8Dot::quad_bytes) {
      Int8Dot::store_quad(q + (r * quads + i) * 4, dst);
    }
  }
}

// ---- the product -----------------------------------------------------------------------------

template <int rows, int blocks>
QCORE_NOINLINE void int8_tile(const Int8Weights& w, const void* tile, const float* scale, const int32_t* azp,
               int64_t block, const Output& out, int64_t row) {
  const int8_t* p = w.packed + block * w.quads * 64;
  const char* x = static_cast<const char*>(tile);
  VecI acc[blocks][rows];
  repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { acc[b][r] = set1_i(0); });
  for (int64_t i = 0; i < w.quads; ++i, x += rows * Int8Dot::quad_bytes) {
    Int8Dot::Weight weight[blocks];
    repeat<blocks>([&](auto b) QCORE_BODY {
      weight[b] = Int8Dot::load_weight(p + (b * w.quads + i) * 64);
    });
    repeat<rows>([&](auto r) QCORE_BODY {
      const Int8Dot::Activation quad = Int8Dot::load_activation(x + r * Int8Dot::quad_bytes);
      repeat<blocks>([&](auto b) QCORE_BODY { Int8Dot::accumulate(acc[b][r], weight[b], quad); });
    });
  }
  VecI sums[blocks][rows];  // an array in memory, which `acc` must not be
  repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { sums[b][r] = acc[b][r]; });
  for (int b = 0; b < blocks; ++b) {
    const int64_t column = (block + b) * kBlock;
    const int64_t count = out.n - column < kBlock ? out.n - column : kBlock;
    const VecF channel = w.scale_per_channel ? load_some(w.scale, w.scale_dtype, column, count)
                                             : set1(load_one(w.scale, w.scale_dtype, 0));
    alignas(64) int32_t lanes[16] = {};
    __builtin_memcpy(lanes, w.col_sums + column, count * 4);
    const VecI col_sums = load_i(lanes);
    for (int r = 0; r < rows; ++r) {
      const VecI exact = sub_mul(sums[b][r], set1_i(Int8Dot::x_offset + azp[r]), col_sums);
      store_block(out, row + r, block + b, mul(mul(to_f(exact), set1(scale[r])), channel));
    }
  }
}

template <int rows>
void int8_rows(const Int8Weights& w, const void* tile, const float* scale, const int32_t* azp,
               int64_t begin, int64_t end, const Output& out, int64_t row) {
  constexpr int blocks = int8_blocks(rows);
  for (; begin + blocks <= end; begin += blocks) {
    int8_tile<rows, blocks>(w, tile, scale, azp, begin, out, row);
  }
  for (; begin < end; ++begin) int8_tile<rows, 1>(w, tile, scale, azp, begin, out, row);
}

template <int max_rows = kInt8Rows>
void int8(const Int8Weights& w, int rows, const void* tile, const float* scale, const int32_t* azp,
          int64_t begin, int64_t end, const Output& out, int64_t row) {
  if (rows == max_rows) {
    int8_rows<max_rows>(w, tile, scale, azp, begin, end, out, row);
  } else if constexpr (max_rows > 1) {
    int8<max_rows - 1>(w, rows, tile, scale, azp, begin, end, out, row);
  }
}

constexpr IsaKernels make_kernels(const char* name) {
  return {name,
          {{wna16_table<DotF32, 2>(), wna16_table<DotF32, 4>(), wna16_table<DotF32, 8>()},
           {wna16_table<DotBf16, 2>(), wna16_table<DotBf16, 4>(), wna16_table<DotBf16, 8>()},
           {wna16_table<DotInt8<2>, 2>(), wna16_table<DotInt8<4>, 4>(),
            wna16_table<DotInt8<8>, 8>()}},
          quantize_row,
          kInt8Rows,
          Int8Dot::quad_bytes,
          int8_pack_rows,
          int8<>};
}

}  // namespace

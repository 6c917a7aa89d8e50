// wna16 for one instruction set; included by isa_<name>.cpp after its vec_*.h.
//
// A chunk's sum over its inputs is taken in order, with one fma (or one vdpbf16ps) a step, and then
// folded:  total += offset * sum_of_x,  total += scale * (sum - (zero - center) * sum_of_x).  Both kernels
// do exactly this for every output, hence a row's result is bit for bit the same whatever other rows are
// in the batch.

namespace {

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

template <class Dot, int bits>
struct Wna16 {
  static constexpr int kSlots = 32 / bits;             // of a word
  static constexpr int kSteps = kSlots / Dot::slots;   // of a word
  static constexpr int kCenter = 1 << (bits - 1);      // the zero point where there are none
  static constexpr int kPlain = bits == 8 ? 128 : 0;   // the same with an offset

  // ---- activations -------------------------------------------------------------------------

  static void fill_line(const Wna16Weights& w, const void* x, Dtype dtype, int64_t offset,
                        float* line) {
    const int64_t slots = w.words * kSlots;
    if (w.perm) {
      for (int64_t s = 0; s < slots; ++s) {
        line[s] = w.perm[s] < 0 ? 0.0f : load_one(x, dtype, offset + w.perm[s]);
      }
      return;
    }
    int64_t s = 0;
    for (; s + 16 <= w.k; s += 16) store_f(line + s, load_lanes(x, dtype, offset + s));
    for (; s < w.k; ++s) line[s] = load_one(x, dtype, offset + s);
    for (; s < slots; ++s) line[s] = 0.0f;
  }

  static float sum(const float* line, int64_t count) {
    alignas(64) float lanes[16];
    VecF total = set1(0.0f);
    int64_t s = 0;
    for (; s + 16 <= count; s += 16) total = add(total, load_f(line + s));
    store_f(lanes, total);
    for (int lane = 0; s < count; ++s, ++lane) lanes[lane] += line[s];
    for (int half = 8; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
  }

  static void pack_rows(const Wna16Weights& w, const void* x, Dtype dtype, int rows, int64_t stride,
                        float* line, void* tile, float* sums) {
    const int64_t slots = w.words * kSlots;
    float scales[kSlots];
    for (int s = 0; s < kSlots; ++s) scales[s] = Dot::template slot_scale<bits>(s);
    for (int r = 0; r < rows; ++r) {
      fill_line(w, x, dtype, r * stride, line);
      for (int64_t c = 0; c < w.chunks; ++c) {
        const int64_t begin = w.chunk_begin[c] * kSlots, end = w.chunk_begin[c + 1] * kSlots;
        sums[c * rows + r] = sum(line + begin, end - begin);
      }
      char* dst = static_cast<char*>(tile) + r * 4;
      for (int64_t s = 0; s < slots; s += kSlots) {
        for (int i = 0; i < kSlots; ++i) line[s + i] *= scales[i];
        for (int i = 0; i < kSlots; i += Dot::slots, dst += rows * 4) Dot::store_x(dst, line + s + i);
      }
    }
  }

  // ---- weights -----------------------------------------------------------------------------

  // Which terms of a fold a layer has.
  struct Terms {
    bool zero, offset;
    int common_zero;  // less the center

    explicit Terms(const Wna16Weights& w)
        : offset(w.offset.data), common_zero((offset ? kPlain : kCenter) - Dot::template center<bits>()) {
      zero = w.zero || common_zero != 0;
    }
  };
  struct Fold {
    VecF scale, zero, offset;
  };

  static VecF load_factor(const Wna16Weights& w, const Wna16Factor& f, int64_t block, int32_t group) {
    const int64_t i = (block * w.groups + group) * kBlock;
    if (!f.super) return load_lanes(f.data, f.dtype, i);
    const int64_t super = (block * w.supers + (group >> w.span_bits)) * kBlock;
    const VecF integers = DotF32::decode<8, 0>(static_cast<const uint8_t*>(f.data) + i);
    return mul(integers, load_lanes(f.super, Dtype::f16, super));
  }
  static Fold load_fold(const Wna16Weights& w, const Terms& terms, int64_t chunk, int64_t block) {
    const int32_t group = w.chunk_group[chunk];
    Fold f{load_factor(w, w.scale, block, group), set1(static_cast<float>(terms.common_zero)), set1(0.0f)};
    if (w.zero) {
      const uint8_t* zero = w.zero + (block * w.groups + group) * kBlock;
      f.zero = sub(u8_to_f(zero), set1(Dot::template center<bits>()));
    }
    if (terms.offset) f.offset = load_factor(w, w.offset, block, group);
    return f;
  }
  static VecF fold(const Fold& f, const Terms& terms, VecF acc, float sum_of_x, VecF total) {
    if (terms.zero) acc = fma(f.zero, set1(-sum_of_x), acc);
    if (terms.offset) total = fma(f.offset, set1(sum_of_x), total);
    return fma(f.scale, acc, total);
  }

  // ---- a few rows --------------------------------------------------------------------------

  template <int rows, int step = 0>
  QCORE_INLINE static void word(VecF* acc, const uint8_t* p, const char* x) {
    if constexpr (step < kSteps) {
      const auto weight = Dot::template decode<bits, step>(p);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) Dot::accumulate(acc[r], weight, x + (step * rows + r) * 4);
      word<rows, step + 1>(acc, p, x);
    }
  }

  template <int rows, int blocks>
  static void narrow_tile(const Wna16Weights& w, const void* tile, const float* sums, int64_t block,
                          const Output& out, int64_t row) {
    const uint8_t* p = w.packed + block * w.words * 64;
    const Terms terms(w);
    VecF total[blocks][rows];
#pragma GCC unroll 8
    for (int b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) total[b][r] = set1(0.0f);
    }
    for (int64_t c = 0; c < w.chunks; ++c) {
      VecF acc[blocks][rows];
#pragma GCC unroll 8
      for (int b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) acc[b][r] = set1(0.0f);
      }
      for (int64_t i = w.chunk_begin[c]; i < w.chunk_begin[c + 1]; ++i) {
        const char* x = static_cast<const char*>(tile) + i * kSteps * rows * 4;
#pragma GCC unroll 8
        for (int b = 0; b < blocks; ++b) word<rows>(acc[b], p + (b * w.words + i) * 64, x);
      }
#pragma GCC unroll 8
      for (int b = 0; b < blocks; ++b) {
        const Fold f = load_fold(w, terms, c, block + b);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          total[b][r] = fold(f, terms, acc[b][r], sums[c * rows + r], total[b][r]);
        }
      }
    }
    for (int b = 0; b < blocks; ++b) {
      for (int r = 0; r < rows; ++r) store_block(out, row + r, block + b, total[b][r]);
    }
  }

  template <int rows>
  static void narrow_rows(const Wna16Weights& w, const void* tile, const float* sums, int64_t begin,
                          int64_t end, const Output& out, int64_t row) {
    constexpr int blocks = narrow_blocks(rows);
    for (; begin + blocks <= end; begin += blocks) {
      narrow_tile<rows, blocks>(w, tile, sums, begin, out, row);
    }
    for (; begin < end; ++begin) narrow_tile<rows, 1>(w, tile, sums, begin, out, row);
  }

  template <int max_rows = kWna16Rows>
  static void narrow(const Wna16Weights& w, int rows, const void* tile, const float* sums,
                     int64_t begin, int64_t end, const Output& out, int64_t row) {
    if (rows == max_rows) {
      narrow_rows<max_rows>(w, tile, sums, begin, end, out, row);
    } else if constexpr (max_rows > 1) {
      narrow<max_rows - 1>(w, rows, tile, sums, begin, end, out, row);
    }
  }

  // ---- many rows ---------------------------------------------------------------------------

  // The weights of one chunk of one block, one line of `stride` bytes a step.
  template <int step = 0>
  QCORE_INLINE static void decode_word(const uint8_t* p, char* dst, int64_t stride) {
    if constexpr (step < kSteps) {
      Dot::store(dst + step * stride, Dot::template decode<bits, step>(p));
      decode_word<step + 1>(p, dst, stride);
    }
  }

  // One tile of rows against `blocks` decoded blocks, for one chunk.
  template <int rows, int blocks>
  static void wide_tile(const char* weights, int64_t steps, const char* x, const Fold* folds,
                        const Terms& terms, const float* sums, char* totals) {
    constexpr int64_t line = kPanelBlocks * 64;
    VecF acc[rows][blocks];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < blocks; ++b) acc[r][b] = set1(0.0f);
    }
    for (int64_t s = 0; s < steps; ++s, weights += line, x += rows * 4) {
      typename Dot::Weight w[blocks];
#pragma GCC unroll 8
      for (int b = 0; b < blocks; ++b) w[b] = Dot::load(weights + b * 64);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int b = 0; b < blocks; ++b) Dot::accumulate(acc[r][b], w[b], x + r * 4);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < blocks; ++b) {
        char* total = totals + r * line + b * 64;
        store_f(total, fold(folds[b], terms, acc[r][b], sums[r], load_f(total)));
      }
    }
  }

  template <int blocks, int max_rows = kWna16Rows>
  static void wide_rows(int rows, const char* weights, int64_t steps, const char* x, const Fold* folds,
                        const Terms& terms, const float* sums, char* totals) {
    if (rows == max_rows) {
      wide_tile<max_rows, blocks>(weights, steps, x, folds, terms, sums, totals);
    } else if constexpr (max_rows > 1) {
      wide_rows<blocks, max_rows - 1>(rows, weights, steps, x, folds, terms, sums, totals);
    }
  }

  static void wide(const Wna16Weights& w, int rows, const void* tiles, const float* sums,
                   int64_t begin, int64_t end, void* scratch, const Output& out, int64_t row) {
    constexpr int64_t line = kPanelBlocks * 64;
    const int blocks = static_cast<int>(end - begin);
    const int64_t all_steps = w.words * kSteps;
    const Terms terms(w);
    char* weights = static_cast<char*>(scratch);
    char* totals = weights + kChunkSlots * line;
    __builtin_memset(totals, 0, rows * line);
    for (int64_t c = 0; c < w.chunks; ++c) {
      const int64_t first = w.chunk_begin[c], words = w.chunk_begin[c + 1] - first;
      Fold folds[kPanelBlocks];
      for (int b = 0; b < blocks; ++b) {
        const uint8_t* p = w.packed + ((begin + b) * w.words + first) * 64;
        for (int64_t i = 0; i < words; ++i) {
          decode_word(p + i * 64, weights + i * kSteps * line + b * 64, line);
        }
        folds[b] = load_fold(w, terms, c, begin + b);
      }
      for (int b = 0; b < blocks;) {
        const bool whole = b + kWideBlocks <= blocks;
        for (int r = 0; r < rows; r += kWna16Rows) {
          const int tile = rows - r < kWna16Rows ? rows - r : kWna16Rows;
          const char* x = static_cast<const char*>(tiles) + (r * all_steps + first * kSteps * tile) * 4;
          const float* tile_sums = sums + r * w.chunks + c * tile;
          char* to = totals + r * line + b * 64;
          if (whole) {
            wide_rows<kWideBlocks>(tile, weights + b * 64, words * kSteps, x, folds + b, terms,
                                   tile_sums, to);
          } else {
            wide_rows<1>(tile, weights + b * 64, words * kSteps, x, folds + b, terms, tile_sums,
                         to);
          }
        }
        b += whole ? kWideBlocks : 1;
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int b = 0; b < blocks; ++b) {
        store_block(out, row + r, begin + b, load_f(totals + r * line + b * 64));
      }
    }
  }

  static constexpr Wna16Kernels table() {
    return {kWna16Rows, Dot::slots, pack_rows, narrow<>, wide};
  }
};

}  // namespace

// wna16 by AMX: sixteen rows of activations times sixteen outputs in a tile. Included by isa_amx.cpp after
// wna16_kernels.h, whose decoders make the rows of a tile of weights: 16 outputs, 4 bytes of inputs each.
//
// The row of a panel is one run of a chunk's steps, as avx512 packs a tile of one row. Sums of integers are
// exact, so up to kFew rows run by avx512's narrow kernel, whose memory accesses suit them better. The
// floats of tdpbf16ps are added in an order of its own; all rows take it.

#include "tiles.h"

namespace {

template <class Dot, int bits>
struct Wna16Amx {
  static constexpr int kRows = 16;
  static constexpr int kFew = Dot::quantizes ? 8 : 0;
  using Layout = CodeLayout<bits>;
  static constexpr int kSteps = Layout::slots / Dot::slots;  // of a word
  static constexpr int64_t kMaxSteps = kChunkSlots / Dot::slots;
  static constexpr int64_t kWeights = kMaxSteps * 64;  // bytes of a block
  static_assert(kPanelBlocks == 4, "four tiles of sums");
  static constexpr int64_t scratch_bytes(int64_t rows) { return kPanelBlocks * (kWeights + rows * 64); }
  static_assert(scratch_bytes(kPanelRows) <= kPanelScratch);
  using Fold = Wna16Fold<Dot, bits>;
  using Side = typename Dot::Side;

  // The table of the set without tiles, for the same codes.
  static const Wna16Kernels& base() {
    constexpr int i = width_index(bits);
    if constexpr (Dot::quantizes) return avx512_kernels.wna16[static_cast<int>(Compute::int8)][i];
    return avx512_bf16_kernels.wna16[static_cast<int>(Compute::bf16)][i];
  }

  static int padded(int rows) { return rows <= kFew ? base().padded(rows) : kRows; }

  // Only a batch of a few rows has so small a panel.
  static void pack(const Wna16Weights& w, const void* x, Dtype dtype, int rows, int64_t stride, bool per_row,
                   float* line, void* panel, void* sides, int64_t panel_rows, int64_t first) {
    if (panel_rows <= kFew) {
      return base().pack_rows(w, x, dtype, rows, stride, per_row, line, panel, sides, panel_rows, first);
    }
    const int64_t row_bytes = stride * (dtype == Dtype::f32 ? 4 : 2);
    for (int r = 0; r < rows; ++r) {
      base().pack_rows(w, static_cast<const char*>(x) + r * row_bytes, dtype, 1, stride, per_row, line, panel,
                       sides, panel_rows, first + r);
    }
  }

  QCORE_INLINE static void decode_word(const uint8_t* p, char* dst) {
    repeat<kSteps>([&](auto step) QCORE_BODY {
      Dot::store(dst + step * 64, Dot::template decode<bits, step>(p));
    });
  }

  // Tiles 0 ... 3 are sums, one for each block; 4 and 5 (or 6 and 7) activations and weights of 16 (or fewer)
  // steps.
  template <int x_tile, int w_tile>
  QCORE_INLINE static void multiply(const char* x, int64_t x_stride, const char* weights) {
    load_tile<x_tile>(x, x_stride);
    repeat<kPanelBlocks>([&](auto b) QCORE_BODY {
      load_tile<w_tile>(weights + b * kWeights, 64);
      if constexpr (Dot::quantizes) {
        multiply_int8_codes<b, x_tile, w_tile>();
      } else {
        multiply_bf16<b, x_tile, w_tile>();
      }
    });
  }

  template <Terms terms>
  QCORE_NOINLINE static void fold(int rows, int blocks, const char* sums, const Fold* folds, const Side* sides,
                                  char* totals, int64_t block_totals) {
    for (int b = 0; b < blocks; ++b, sums += kRows * 64, totals += block_totals) {
      for (int r = 0; r < rows; ++r) {
        typename Dot::Acc acc;
        acc.v = add_sums(Dot::start(sides[r]).v, sums + r * 64);
        char* total = totals + r * 64;
        store_f(total, folds[b].template apply<terms>(acc, sides[r], load_f(total)));
      }
    }
  }
  static __m512i add_sums(__m512i start, const char* sums) {
    return _mm512_add_epi32(start, _mm512_loadu_si512(sums));
  }
  static __m512 add_sums(__m512, const char* sums) { return _mm512_loadu_ps(sums); }  // starts from 0

  static void run(const Wna16Weights& w, int rows, const void* panel, const void* sides, int64_t panel_rows,
                  int64_t first_row, int64_t begin, int64_t end, void* scratch, const Output& out,
                  int64_t row) {
    const int blocks = static_cast<int>(end - begin);
    char* weights = static_cast<char*>(scratch);
    char* totals = weights + kPanelBlocks * kWeights;
    const int64_t block_totals = rows * 64;
    __builtin_memset(totals, 0, blocks * block_totals);
    alignas(64) char sums[kPanelBlocks * kRows * 64];
    Tiles tiles;
    for (int64_t c = 0; c < w.chunks; ++c) {
      const int64_t first = w.chunk_begin[c], words = w.chunk_begin[c + 1] - first, steps = words * kSteps;
      Fold folds[kPanelBlocks];
      for (int b = 0; b < blocks; ++b) {
        const uint8_t* p = w.packed + ((begin + b) * w.words + first) * Layout::word_bytes;
        for (int64_t i = 0; i < words; ++i) decode_word(p + i * Layout::word_bytes, weights + b * kWeights + i * kSteps * 64);
        folds[b] = Fold::template load<Terms::all>(w, c, begin + b);
      }
      for (int r = 0; r < rows; r += kRows) {
        const int used = rows - r < kRows ? rows - r : kRows;
        const int64_t at = first_row + r;
        const char* x = static_cast<const char*>(panel) + (first * panel_rows + at * words) * kSteps * 4;
        tiles.configure(used, static_cast<int>(steps % 16));
        repeat<kPanelBlocks>([&](auto b) QCORE_BODY { clear_tile<b>(); });
        int64_t s = 0;
        for (; s + 16 <= steps; s += 16) multiply<4, 5>(x + s * 4, steps * 4, weights + s * 64);
        if (s < steps) multiply<6, 7>(x + s * 4, steps * 4, weights + s * 64);
        repeat<kPanelBlocks>([&](auto b) QCORE_BODY { store_tile<b>(sums + b * kRows * 64, 64); });
        const Side* side = static_cast<const Side*>(sides) + c * panel_rows + at;
        with_terms<Dot>(w, [&](auto terms) QCORE_BODY {
          fold<terms.value>(used, blocks, sums, folds, side, totals + r * 64, block_totals);
        });
      }
    }
    for (int b = 0; b < blocks; ++b) {
      for (int r = 0; r < rows; ++r) {
        store_block(out, row + r, begin + b, load_f(totals + b * block_totals + r * 64));
      }
    }
  }

  static void narrow(const Wna16Weights& w, int rows, const void* tile, const void* sides, int64_t begin,
                     int64_t end, const Output& out, int64_t row) {
    if (rows <= kFew) return base().narrow(w, rows, tile, sides, begin, end, out, row);
    alignas(64) char scratch[scratch_bytes(kRows)];
    for (; begin < end; begin += kPanelBlocks) {
      run(w, rows, tile, sides, kRows, 0, begin, begin + kPanelBlocks < end ? begin + kPanelBlocks : end,
          scratch, out, row);
    }
  }

  static constexpr Wna16Kernels table() {
    return {kRows, Dot::slots, sizeof(Side), padded, pack, narrow, run};
  }
};

}  // namespace

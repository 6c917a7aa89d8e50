// Many rows against packed weights: the codes of a few blocks are decoded once, a chunk at a time, and used
// for all rows.

namespace {

template <class Dot, int bits>
struct Wna16Wide {
  using Layout = CodeLayout<bits>;
  static constexpr int kSteps = Layout::slots / Dot::slots;  // of a word
  // Blocks that a tile takes together lie together: lines far apart would fall into a few sets of the cache.
  static constexpr int64_t kLine = Dot::wide_blocks * 64;
  static constexpr int64_t kWeights = kChunkSlots * kLine, kTotals = (kPanelRows + kTileRows) * kLine;
  static constexpr int kUnroll = Dot::flush_steps ? Dot::flush_steps : 1;
  using Fold = Wna16Fold<Dot, bits>;
  using Side = typename Dot::Side;
  using Acc = typename Dot::Acc;

  // The weights of one chunk of one block, one line of `kLine` bytes a step.
  QCORE_INLINE static void decode_word(const Wna16Weights& w, const uint8_t* p, char* dst) {
    repeat<kSteps>([&](auto step) QCORE_BODY {
      Dot::store(dst + step * kLine, decode_step<Dot, bits, step>(w, p));
    });
  }

  // One tile of rows against `blocks` decoded blocks, for one chunk.
  template <int rows, int blocks>
  QCORE_NOINLINE static void tile(const Wna16Weights& w, const char* weights, int64_t steps, const char* x,
                   const Fold* folds, const Side* sides, char* totals) {
    Acc acc[rows][blocks];
    repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY { acc[r][b] = Dot::start(sides[r]); });
    const auto step = [&](int s) QCORE_BODY {
      typename Dot::Weight weight[blocks];
      repeat<blocks>([&](auto b) QCORE_BODY { weight[b] = Dot::load(weights + s * kLine + b * 64); });
      repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY {
        Dot::accumulate(acc[r][b], weight[b], x + (s * rows + r) * step_bytes<Dot>);
      });
    };
    for (; steps >= kUnroll; steps -= kUnroll, weights += kUnroll * kLine, x += kUnroll * rows * step_bytes<Dot>) {
      repeat<kUnroll>(step);
      repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY { Dot::flush(acc[r][b]); });
    }
    if constexpr (kUnroll > 1) {
      for (int s = 0; s < steps; ++s) step(s);
      repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY { Dot::flush(acc[r][b]); });
    }
    with_terms<Dot>(w, [&](auto terms) QCORE_BODY {
      repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY {
        char* total = totals + r * kLine + b * 64;
        store_f(total, folds[b].template apply<terms.value>(acc[r][b], sides[r], load_f(total)));
      });
    });
  }

  template <int blocks, int rows = Dot::rows>
  static void tile_of(int used, const Wna16Weights& w, const char* weights, int64_t steps, const char* x,
                      const Fold* folds, const Side* sides, char* totals) {
    if constexpr (Dot::padded(rows) == rows) {
      if (Dot::padded(used) == rows) {
        return tile<rows, blocks>(w, weights, steps, x, folds, sides, totals);
      }
    }
    if constexpr (rows > 1) tile_of<blocks, rows - 1>(used, w, weights, steps, x, folds, sides, totals);
  }

  static void run(const Wna16Weights& w, int rows, const void* panel, const void* sides,
                  int64_t panel_rows, int64_t first_row, int64_t begin, int64_t end, void* scratch,
                  const Output& out, int64_t row) {
    const int blocks = static_cast<int>(end - begin);
    char* weights = static_cast<char*>(scratch);
    constexpr int groups = kPanelBlocks / Dot::wide_blocks;
    char* totals = weights + groups * kWeights;
    for (int g = 0; g < groups; ++g) {
      __builtin_memset(totals + g * kTotals, 0, (rows + Dot::rows) * kLine);
    }
    auto place = [](int b, int64_t group_bytes) {
      return b / Dot::wide_blocks * group_bytes + b % Dot::wide_blocks * 64;
    };
    for (int64_t c = 0; c < w.chunks; ++c) {
      const int64_t first = w.chunk_begin[c], words = w.chunk_begin[c + 1] - first;
      Fold folds[kPanelBlocks];
      for (int b = 0; b < blocks; ++b) {
        const uint8_t* p = w.packed + ((begin + b) * w.words + first) * Layout::word_bytes;
        char* to = weights + place(b, kWeights);
        for (int64_t i = 0; i < words; ++i) decode_word(w, p + i * Layout::word_bytes, to + i * kSteps * kLine);
        folds[b] = Fold::template load<Terms::all>(w, c, begin + b);
      }
      for (int b = 0; b < blocks;) {
        const bool whole = b + Dot::wide_blocks <= blocks;
        for (int r = 0; r < rows; r += Dot::rows) {
          const int used = rows - r < Dot::rows ? rows - r : Dot::rows;
          const int64_t at = first_row + r;
          const char* x = static_cast<const char*>(panel) + (first * panel_rows + at * words) * kSteps * step_bytes<Dot>;
          const Side* side = static_cast<const Side*>(sides) + c * panel_rows + at;
          char* to = totals + place(b, kTotals) + r * kLine;
          const char* from = weights + place(b, kWeights);
          if (whole) {
            tile_of<Dot::wide_blocks>(used, w, from, words * kSteps, x, folds + b, side, to);
          } else {
            tile_of<1>(used, w, from, words * kSteps, x, folds + b, side, to);
          }
        }
        b += whole ? Dot::wide_blocks : 1;
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int b = 0; b < blocks; ++b) {
        store_block(out, row + r, begin + b, load_f(totals + place(b, kTotals) + r * kLine));
      }
    }
  }
};

}  // namespace

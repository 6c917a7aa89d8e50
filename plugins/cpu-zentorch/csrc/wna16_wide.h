// Many rows against packed weights: the codes of a few blocks are decoded once, a chunk at a time, and used
// for all rows.

namespace {

template <class Dot, int bits>
struct Wna16Wide {
  static constexpr int kSteps = 32 / bits / Dot::slots;  // of a word
  static constexpr int64_t kLine = kPanelBlocks * 64;
  using Fold = Wna16Fold<Dot, bits>;
  using Side = typename Dot::Side;
  using Acc = typename Dot::Acc;

  // The weights of one chunk of one block, one line of `kLine` bytes a step.
  template <int step = 0>
  QCORE_INLINE static void decode_word(const uint8_t* p, char* dst) {
    if constexpr (step < kSteps) {
      Dot::store(dst + step * kLine, Dot::template decode<bits, step>(p));
      decode_word<step + 1>(p, dst);
    }
  }

  // One tile of rows against `blocks` decoded blocks, for one chunk.
  template <int rows, int blocks>
  static void tile(const Wna16Weights& w, const char* weights, int64_t steps, const char* x,
                   const Fold* folds, const Side* sides, char* totals) {
    Acc acc[rows][blocks];
    repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY { acc[r][b] = Dot::start(sides[r]); });
    while (steps > 0) {
      const int64_t now = Dot::flush_steps && steps > Dot::flush_steps ? Dot::flush_steps : steps;
      for (int64_t s = 0; s < now; ++s, weights += kLine, x += rows * 4) {
        typename Dot::Weight weight[blocks];
        repeat<blocks>([&](auto b) QCORE_BODY { weight[b] = Dot::load(weights + b * 64); });
        repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY {
          Dot::accumulate(acc[r][b], weight[b], x + r * 4);
        });
      }
      steps -= now;
      repeat2<rows, blocks>([&](auto r, auto b) QCORE_BODY { Dot::flush(acc[r][b]); });
    }
    with_terms(w, [&](auto terms) QCORE_BODY {
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

  static void run(const Wna16Weights& w, int rows, const void* tiles, const void* sides, int64_t begin,
                  int64_t end, void* scratch, const Output& out, int64_t row) {
    const int blocks = static_cast<int>(end - begin);
    const int64_t all_steps = w.words * kSteps;
    char* weights = static_cast<char*>(scratch);
    char* totals = weights + kChunkSlots * kLine;
    __builtin_memset(totals, 0, (rows + Dot::rows) * kLine);
    for (int64_t c = 0; c < w.chunks; ++c) {
      const int64_t first = w.chunk_begin[c], words = w.chunk_begin[c + 1] - first;
      Fold folds[kPanelBlocks];
      for (int b = 0; b < blocks; ++b) {
        const uint8_t* p = w.packed + ((begin + b) * w.words + first) * 64;
        for (int64_t i = 0; i < words; ++i) decode_word(p + i * 64, weights + i * kSteps * kLine + b * 64);
        folds[b] = Fold::template load<Terms::all>(w, c, begin + b);
      }
      for (int b = 0; b < blocks;) {
        const bool whole = b + Dot::wide_blocks <= blocks;
        for (int r = 0; r < rows; r += Dot::rows) {
          const int used = rows - r < Dot::rows ? rows - r : Dot::rows, count = Dot::padded(used);
          const char* x = static_cast<const char*>(tiles) + (r * all_steps + first * kSteps * count) * 4;
          const Side* side = static_cast<const Side*>(sides) + r * w.chunks + c * count;
          char* to = totals + r * kLine + b * 64;
          if (whole) {
            tile_of<Dot::wide_blocks>(used, w, weights + b * 64, words * kSteps, x, folds + b, side, to);
          } else {
            tile_of<1>(used, w, weights + b * 64, words * kSteps, x, folds + b, side, to);
          }
        }
        b += whole ? Dot::wide_blocks : 1;
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int b = 0; b < blocks; ++b) {
        store_block(out, row + r, begin + b, load_f(totals + r * kLine + b * 64));
      }
    }
  }
};

}  // namespace

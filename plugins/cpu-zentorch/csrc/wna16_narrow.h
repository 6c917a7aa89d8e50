// A few rows against packed weights: codes are decoded in registers and used at once.

namespace {

template <class Dot, int bits>
struct Wna16Narrow {
  using Layout = CodeLayout<bits>;
  static constexpr int kSteps = Layout::slots / Dot::slots;  // of a word
  // A word with more steps than `flush_steps` is flushed on the way, too.
  static constexpr int64_t kFlushWords =
      Dot::flush_steps && Dot::flush_steps < kSteps ? 1 : Dot::flush_steps / kSteps;
  using Fold = Wna16Fold<Dot, bits>;
  using Side = typename Dot::Side;
  using Acc = typename Dot::Acc;

  // A word of the blocks that come next. The processor's own guesses end with a page of 4 KiB.
  QCORE_INLINE static void fetch(const uint8_t* p) {
    repeat<Layout::word_bytes / 64>([&](auto line) QCORE_BODY { __builtin_prefetch(p + line * 64); });
  }

  template <int rows>
  QCORE_INLINE static void word(const Wna16Weights& w, Acc* acc, const uint8_t* p, const char* x) {
    repeat<kSteps>([&](auto step) QCORE_BODY {
      const auto weight = decode_step<Dot, bits, step>(w, p);
      repeat<rows>([&](auto r) QCORE_BODY {
        Dot::accumulate(acc[r], weight, x + (step * rows + r) * step_bytes<Dot>);
      });
      constexpr int done = step + 1;
      if constexpr (Dot::flush_steps && done < kSteps && done % Dot::flush_steps == 0) {
        repeat<rows>([&](auto r) QCORE_BODY { Dot::flush(acc[r]); });
      }
    });
  }

  // `rows` rows of a tile, of which `used` are wanted. `ahead`: whether the next blocks are fetched meanwhile.
  template <int rows, int blocks, bool ahead>
  QCORE_NOINLINE static void tile(const Wna16Weights& w, int used, const void* x_tile,
                                  const Side* sides, int64_t block, const Output& out, int64_t row) {
    const uint8_t* p = w.packed + block * w.words * Layout::word_bytes;
    VecF total[blocks][rows];
    repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { total[b][r] = set1(0.0f); });
    for (int64_t c = 0; c < w.chunks; ++c, sides += rows) {
      Acc acc[blocks][rows];
      repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { acc[b][r] = Dot::start(sides[r]); });
      const int64_t end = w.chunk_begin[c + 1];
      for (int64_t i = w.chunk_begin[c]; i < end;) {
        const int64_t pause = kFlushWords && end - i > kFlushWords ? i + kFlushWords : end;
        for (; i < pause; ++i) {
          const char* x = static_cast<const char*>(x_tile) + i * kSteps * rows * step_bytes<Dot>;
          repeat<blocks>([&](auto b) QCORE_BODY {
            const uint8_t* codes = p + (b * w.words + i) * Layout::word_bytes;
            if constexpr (ahead) fetch(codes + blocks * w.words * Layout::word_bytes);
            word<rows>(w, acc[b], codes, x);
          });
        }
        repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { Dot::flush(acc[b][r]); });
      }
      with_terms<Dot>(w, [&](auto terms) QCORE_BODY {
        repeat<blocks>([&](auto b) QCORE_BODY {
          const Fold fold = Fold::template load<terms.value>(w, c, block + b);
          repeat<rows>([&](auto r) QCORE_BODY {
            total[b][r] = fold.template apply<terms.value>(acc[b][r], sides[r], total[b][r]);
          });
        });
      });
    }
    VecF result[blocks][rows];  // an array in memory, which `total` must not be
    repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { result[b][r] = total[b][r]; });
    for (int b = 0; b < blocks; ++b) {
      for (int r = 0; r < used; ++r) store_block(out, row + r, block + b, result[b][r]);
    }
  }

  template <int rows, int blocks, bool ahead>
  static void blocks_of(const Wna16Weights& w, int used, const void* tile_x, const void* sides, int64_t begin,
                        int64_t end, const Output& out, int64_t row) {
    const auto* side = static_cast<const Side*>(sides);
    for (; begin + blocks <= end; begin += blocks) {
      tile<rows, blocks, ahead>(w, used, tile_x, side, begin, out, row);
    }
    for (; begin < end; ++begin) tile<rows, 1, ahead>(w, used, tile_x, side, begin, out, row);
  }

  template <int rows = Dot::rows>
  static void run(const Wna16Weights& w, int used, const void* tile_x, const void* sides, int64_t begin,
                  int64_t end, const Output& out, int64_t row) {
    if constexpr (Dot::padded(rows) == rows) {
      if (Dot::padded(used) == rows) {
        constexpr int blocks = Dot::narrow_blocks(rows);
        if constexpr (rows == 1) {
          // Integers are multiplied so fast that one block at a time, whose codes follow each other in memory, comes
          // soonest; where the row is long, several blocks share what it costs to read it again.
          constexpr int64_t kShortRow = 4096;  // bytes of it, as packed
          if constexpr (integer_sums<Dot> && blocks > 1) {
            if (w.words * kSteps * step_bytes<Dot> <= kShortRow) {
              return blocks_of<rows, 1, false>(w, used, tile_x, sides, begin, end, out, row);
            }
          }
          // Along a long block the processor's own guesses come earlier than fetches, which with one row, when memory
          // is all that is waited for, are in their way.
          constexpr int64_t kLongBlock = 16384;  // bytes
          if (w.words * Layout::word_bytes > kLongBlock) {
            return blocks_of<rows, blocks, false>(w, used, tile_x, sides, begin, end, out, row);
          }
        }
        return blocks_of<rows, blocks, true>(w, used, tile_x, sides, begin, end, out, row);
      }
    }
    if constexpr (rows > 1) run<rows - 1>(w, used, tile_x, sides, begin, end, out, row);
  }
};

}  // namespace

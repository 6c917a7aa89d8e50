// int8 for one instruction set; included by isa_<name>.cpp after wna16_kernels.h.
//
// Weights are stored + 128, hence unsigned: products are unsigned x signed bytes, what vpdpbusd and
// vpmaddubsw take. What that adds to a sum is known before (Int8Side::start). Sums are 32-bit integers and
// exact, so that a row's result depends on no other row.

#include "int8_rows.h"

namespace {

// A full tile computes as long as memory takes to bring the next weights, if it is told in time: the
// processor's own prefetching ends with each page of 4 KiB. Fewer rows wait for memory, and prefetches would be
// in its way.
constexpr int64_t kInt8Ahead = 8192;

// A chunk of a tile against `blocks` blocks, whose weights are `apart` bytes from each other.
template <class Dot, int rows, int blocks>
QCORE_INLINE void int8_chunk(VecI (&acc)[blocks][rows], const uint8_t* p, int64_t apart,
                             const Int8Slice& slice) {
  const auto quad = [&](int64_t i) QCORE_BODY {
    VecI weight[blocks];
    repeat<blocks>([&](auto b) QCORE_BODY {
      const uint8_t* from = p + b * apart + i * 64;
      weight[b] = load_i(from);
      if constexpr (rows == Dot::rows) __builtin_prefetch(from + kInt8Ahead, 0, 2);
    });
    repeat<rows>([&](auto r) QCORE_BODY {
      const auto codes = Dot::load_codes(slice.x + (i * rows + r) * 4);
      repeat<blocks>([&](auto b) QCORE_BODY { Dot::accumulate(acc[b][r], weight[b], codes); });
    });
  };
  if constexpr (!Dot::saturates) {
    for (int64_t i = 0; i < slice.quads; ++i) quad(i);
  } else if (slice.extras[0] >= 0) {
    for (int64_t i = 0; i < slice.quads; ++i) quad(i);
    repeat<rows>([&](auto r) QCORE_BODY {
      const auto* extra = reinterpret_cast<const Int8Extra*>(slice.extra) + r * slice.quads;
      for (int32_t e = 0; e < slice.extras[r]; ++e) {
        const auto codes = Dot::load_codes(&extra[e].codes);
        repeat<blocks>([&](auto b) QCORE_BODY {
          Dot::accumulate(acc[b][r], load_i(p + b * apart + extra[e].quad * 64), codes);
        });
      }
    });
  } else {
    for (int64_t i = 0; i < slice.quads; ++i) {
      repeat<blocks>([&](auto b) QCORE_BODY {
        const auto weight = Dot::words(load_i(p + b * apart + i * 64));
        repeat<rows>([&](auto r) QCORE_BODY {
          const int64_t at = (i * rows + r) * 4;
          Dot::accumulate_words(acc[b][r], weight, Dot::load_codes(slice.x + at),
                                    Dot::load_codes(slice.extra + at));
        });
      });
    }
  }
}

// A sum without the zero point's part, times the row's and the column's scale.
QCORE_INLINE VecF int8_scaled(VecI sum, const Int8Side& side, const VecI& col_sums, const VecF& channel) {
  if (side.azp != 0) sum = sub_mul(sum, set1_i(side.azp), col_sums);
  return mul(mul(to_f(sum), set1(side.scale)), channel);
}

// The first `used` rows of the result: scales, zero points, bias.
template <int rows, int blocks>
QCORE_INLINE void int8_finish(const Int8Weights& w, const VecI (&acc)[blocks][rows], int used,
                              const Int8Side* sides, int64_t block, const Output& out, int64_t row) {
  const auto channel_of = [&](int64_t column, int64_t count) QCORE_BODY {
    return w.scale_per_channel ? load_some(w.scale, w.scale_dtype, column, count)
                               : set1(load_one(w.scale, w.scale_dtype, 0));
  };
  // A whole tile: sums stay in registers.
  if (used == rows && (block + blocks) * kBlock <= out.n) {
    repeat<blocks>([&](auto b) QCORE_BODY {
      const int64_t column = (block + b) * kBlock;
      const VecF channel = channel_of(column, kBlock);
      const VecI col_sums = load_i(w.col_sums + column);
      repeat<rows>([&](auto r) QCORE_BODY {
        store_block(out, row + r, block + b, int8_scaled(acc[b][r], sides[r], col_sums, channel));
      });
    });
    return;
  }
  VecI sums[blocks][rows];  // an array in memory, which `acc` must not be
  repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { sums[b][r] = acc[b][r]; });
  for (int b = 0; b < blocks; ++b) {
    const int64_t column = (block + b) * kBlock;
    const int64_t count = out.n - column < kBlock ? out.n - column : kBlock;
    const VecF channel = channel_of(column, count);
    alignas(64) int32_t lanes[16] = {};
    __builtin_memcpy(lanes, w.col_sums + column, count * 4);
    const VecI col_sums = load_i(lanes);
    for (int r = 0; r < used; ++r) {
      store_block(out, row + r, block + b, int8_scaled(sums[b][r], sides[r], col_sums, channel));
    }
  }
}

inline int64_t int8_chunks(const Int8Weights& w) {
  return (w.quads + Int8Dot::chunk_quads - 1) / Int8Dot::chunk_quads;
}

// ---- one tile, all of K at once: the weights pass by once ------------------------------------------

template <int rows, int blocks>
QCORE_NOINLINE void int8_narrow_tile(const Int8Weights& w, int used, const Int8Panel& panel,
                                     int64_t block, const Output& out) {
  VecI acc[blocks][rows];
  repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { acc[b][r] = set1_i(panel.sides[r].start); });
  const uint8_t* p = w.packed + block * w.quads * 64;
  for (int64_t c = 0; c < int8_chunks(w); ++c, p += Int8Dot::chunk_quads * 64) {
    int8_chunk<Int8Dot, rows, blocks>(acc, p, w.quads * 64, int8_slice(panel, c, 0, w.quads));
  }
  int8_finish<rows, blocks>(w, acc, used, panel.sides, block, out, 0);
}

template <int rows = Int8Dot::rows>
void int8_narrow(const Int8Weights& w, int used, const Int8Panel& panel, int64_t begin, int64_t end,
                 const Output& out) {
  if constexpr (Int8Dot::padded(rows) == rows) {
    if (Int8Dot::padded(used) == rows) {
      constexpr int blocks = Int8Dot::narrow_blocks(rows);
      for (; begin + blocks <= end; begin += blocks) {
        int8_narrow_tile<rows, blocks>(w, used, panel, begin, out);
      }
      for (; begin < end; ++begin) int8_narrow_tile<rows, 1>(w, used, panel, begin, out);
      return;
    }
  }
  if constexpr (rows > 1) int8_narrow<rows - 1>(w, used, panel, begin, end, out);
}

// ---- many tiles: a chunk of a few blocks stays in the first-level cache while all rows pass by -------

template <int blocks>
QCORE_NOINLINE void int8_wide_tile(const Int8Weights& w, int used, const Int8Panel& panel, int64_t chunk,
                                   int64_t first, int64_t block, char* totals, const Output& out,
                                   int64_t row) {
  constexpr int rows = Int8Dot::rows;
  const Int8Side* sides = panel.sides + first;
  VecI acc[blocks][rows];
  if (chunk == 0) {
    repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY { acc[b][r] = set1_i(sides[r].start); });
  } else {
    repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY {
      acc[b][r] = load_i(totals + (b * rows + r) * 64);
    });
  }
  const uint8_t* p = w.packed + (block * w.quads + chunk * Int8Dot::chunk_quads) * 64;
  int8_chunk<Int8Dot, rows, blocks>(acc, p, w.quads * 64, int8_slice(panel, chunk, first, w.quads));
  if (chunk + 1 < int8_chunks(w)) {
    repeat2<blocks, rows>([&](auto b, auto r) QCORE_BODY {
      store_i(totals + (b * rows + r) * 64, acc[b][r]);
    });
  } else {
    int8_finish<rows, blocks>(w, acc, used, sides, block, out, row);
  }
}

inline void int8_wide(const Int8Weights& w, int rows, const Int8Panel& panel, int64_t first,
                      int64_t begin, int64_t end, void* scratch, const Output& out, int64_t row) {
  constexpr int most = Int8Dot::wide_blocks;
  const int64_t chunks = int8_chunks(w);
  for (int64_t c = 0; c < chunks; ++c) {
    char* totals = static_cast<char*>(scratch);
    for (int64_t block = begin; block < end;) {
      const bool whole = block + most <= end;
      for (int r = 0; r < rows; r += Int8Dot::rows) {
        const int used = rows - r < Int8Dot::rows ? rows - r : Int8Dot::rows;
        if (whole) {
          int8_wide_tile<most>(w, used, panel, c, first + r, block, totals, out, row + r);
          totals += Int8Dot::rows * most * 64;
        } else {
          int8_wide_tile<1>(w, used, panel, c, first + r, block, totals, out, row + r);
          totals += Int8Dot::rows * 64;
        }
      }
      block += whole ? most : 1;
    }
  }
}

constexpr Int8Kernels int8_table() {
  return {Int8Dot::rows,
          Int8Dot::chunk_quads,
          Int8Dot::saturates,
          [](int rows) { return Int8Dot::padded(rows); },
          int8_pack_rows<Int8Dot>,
          int8_narrow<>,
          int8_wide};
}

}  // namespace

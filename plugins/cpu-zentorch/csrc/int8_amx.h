// int8 by AMX, up to sixteen rows of activations at a time; included by isa_amx.cpp after wna16_amx.h. The packed
// weights are tiles as they stand: sixteen quads of a block one after the other.

namespace {

struct Int8Amx {
  static constexpr int kRows = 16;
  static constexpr int kFew = 4;  // rows that avx512_bf16 takes: it reads more streams of memory at once

  static void pack(const int8_t* q, int rows, int64_t quads, void* tile) {
    if (rows <= kFew) return avx512_bf16_kernels.int8_pack_rows(q, rows, quads, tile);
    __builtin_memcpy(tile, q, rows * quads * 4);
  }

  template <int blocks, int x_tile, int w_tile>
  QCORE_INLINE static void multiply(const char* x, const int8_t* weights, int64_t quads) {
    load_tile<x_tile>(x, quads * 4);
    repeat<blocks>([&](auto b) QCORE_BODY {
      load_tile<w_tile>(weights + b * quads * 64, 64);
      multiply_int8<b, x_tile, w_tile>();
    });
  }

  template <int blocks>
  static void blocks_of(const Int8Weights& w, int rows, const void* tile, const float* scale,
                        const int32_t* azp, int64_t block, const Output& out, int64_t row) {
    alignas(64) char sums[blocks * kRows * 64];
    const int8_t* weights = w.packed + block * w.quads * 64;
    const char* x = static_cast<const char*>(tile);
    repeat<blocks>([&](auto b) QCORE_BODY { clear_tile<b>(); });
    int64_t i = 0;
    for (; i + 16 <= w.quads; i += 16) multiply<blocks, 4, 5>(x + i * 4, weights + i * 64, w.quads);
    if (i < w.quads) multiply<blocks, 6, 7>(x + i * 4, weights + i * 64, w.quads);
    repeat<blocks>([&](auto b) QCORE_BODY { store_tile<b>(sums + b * kRows * 64, 64); });
    for (int b = 0; b < blocks; ++b) {
      const int64_t column = (block + b) * kBlock;
      const int64_t count = out.n - column < kBlock ? out.n - column : kBlock;
      const VecF channel = w.scale_per_channel ? load_some(w.scale, w.scale_dtype, column, count)
                                               : set1(load_one(w.scale, w.scale_dtype, 0));
      alignas(64) int32_t lanes[16] = {};
      __builtin_memcpy(lanes, w.col_sums + column, count * 4);
      const VecI col_sums = load_i(lanes);
      for (int r = 0; r < rows; ++r) {
        const VecI exact = sub_mul(load_i(sums + (b * kRows + r) * 64), set1_i(azp[r]), col_sums);
        store_block(out, row + r, block + b, mul(mul(to_f(exact), set1(scale[r])), channel));
      }
    }
  }

  static void run(const Int8Weights& w, int rows, const void* tile, const float* scale, const int32_t* azp,
                  int64_t begin, int64_t end, const Output& out, int64_t row) {
    if (rows <= kFew) return avx512_bf16_kernels.int8(w, rows, tile, scale, azp, begin, end, out, row);
    Tiles tiles;
    tiles.configure(rows, static_cast<int>(w.quads % 16));
    for (; begin + 4 <= end; begin += 4) blocks_of<4>(w, rows, tile, scale, azp, begin, out, row);
    for (; begin < end; ++begin) blocks_of<1>(w, rows, tile, scale, azp, begin, out, row);
  }
};

}  // namespace

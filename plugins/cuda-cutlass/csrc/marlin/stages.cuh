// What a block copies into shared memory for each TILE_K inputs of a tile, and where it lies there.
#pragma once

#include "config.cuh"

namespace qcore_marlin {

// A piece of 16 bytes of row `row` of the activations: its place, so that eight rows of one column of
// pieces lie in different banks.
template <class C>
MARLIN_DEVICE int a_place(int row, int piece) {
  constexpr int PIECES = C::TILE_K * C::ACT_BYTES / 16;
  const int swizzled = PIECES >= 8 ? piece ^ (row % 8) : piece ^ (row / 2 % PIECES);
  return (row * PIECES + swizzled) * 16;
}

template <class C>
struct Stage {
  char* a;
  char* b;
  char* scales;
  char* zeros;

  MARLIN_DEVICE Stage(char* memory, int index) {
    a = memory + index * C::STAGE_BYTES;
    b = a + C::A_BYTES;
    scales = b + C::B_BYTES;
    zeros = scales + C::SCALES_BYTES;
  }

  // Starts all copies for the tile at (m0, n0) and inputs k0 to k0 + TILE_K; zeros beyond the matrices.
  MARLIN_DEVICE void load(const Params& p, int m0, int n0, int k0) const {
    load_a(p, m0, k0);
    load_b(p, n0, k0);
    if constexpr (C::GROUPED) {
      load_rows<C::GROUP_ROWS, C::SCALE_ROW>(scales, static_cast<const char*>(p.scales), p, n0, k0, C::SCALE_BYTES * 8);
    }
    if constexpr (C::ZEROS) {
      load_rows<C::ZERO_ROWS, C::ZERO_ROW>(zeros, static_cast<const char*>(p.zeros), p, n0, k0, C::FLOAT_ZERO ? 16 : C::BITS);
    }
  }

 private:
  MARLIN_DEVICE void load_a(const Params& p, int m0, int k0) const {
    constexpr int PIECES = C::TILE_K * C::ACT_BYTES / 16, ALL = C::TILE_M * PIECES;
#pragma unroll
    for (int i = 0; i < (ALL + C::THREADS - 1) / C::THREADS; ++i) {
      const int at = i * C::THREADS + thread_index();
      if (ALL % C::THREADS != 0 && at >= ALL) break;
      const int row = at / PIECES, piece = at % PIECES, k = k0 + piece * (16 / C::ACT_BYTES);
      int bytes = m0 + row < p.m ? (p.k_in - k) * C::ACT_BYTES : 0;
      bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
      const char* from = static_cast<const char*>(p.a);
      if (bytes) from += ((m0 + row) * p.lda + k) * C::ACT_BYTES;
      copy16<C::FAMILY>(a + a_place<C>(row, piece), from, bytes);
    }
  }

  // Of Marlin's pieces each thread wants 16 or 32 bytes in a row: those are pulled apart, so that a warp
  // reads 16 bytes for each thread without bank conflicts.
  MARLIN_DEVICE void load_b(const Params& p, int n0, int k0) const {
    constexpr int OF_COLUMN = C::STEP * C::BITS / 8;  // bytes
    constexpr int OF_ROW = C::TILE_N * OF_COLUMN / 16, ALL = C::PIECE_ROWS * OF_ROW;
    constexpr int OF_PIECE = C::PIECE_BYTES / 16, PARTS = OF_PIECE / 32;
#pragma unroll
    for (int i = 0; i < (ALL + C::THREADS - 1) / C::THREADS; ++i) {
      const int at = i * C::THREADS + thread_index();
      if (ALL % C::THREADS != 0 && at >= ALL) break;
      const int row = at / OF_ROW, in_row = at % OF_ROW;
      const int piece = in_row / OF_PIECE, in_piece = in_row % OF_PIECE;
      const int k = k0 + row * C::STEP, n = n0 + piece * C::PIECE_N;
      const bool inside = k < p.k && n < p.n;
      const char* from = static_cast<const char*>(p.b);
      if (inside) from += (static_cast<long long>(k / C::STEP) * p.n + n0) * OF_COLUMN + in_row * 16;
      const int to = row * OF_ROW + piece * OF_PIECE + in_piece % PARTS * 32 + in_piece / PARTS;
      copy16<C::FAMILY>(b + to * 16, from, inside ? 16 : 0);
    }
  }

  // Rows of [groups, n] with `bits` for each column, from the first group of the stage on.
  template <int ROWS, int ROW_BYTES>
  static MARLIN_DEVICE void load_rows(char* to, const char* from, const Params& p, int n0, int k0, int bits) {
    constexpr int OF_ROW = ROW_BYTES / 16, ALL = ROWS * OF_ROW;
    const int first = C::GROUPED ? k0 / (16 * (C::GROUPED ? C::GROUP : 1)) : 0;
#pragma unroll
    for (int i = 0; i < (ALL + C::THREADS - 1) / C::THREADS; ++i) {
      const int at = i * C::THREADS + thread_index();
      if (at >= ALL) break;
      const int row = at / OF_ROW, in_row = at % OF_ROW * 16;
      int bytes = first + row < p.groups ? (p.n - n0) * bits / 8 - in_row : 0;
      bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
      const char* source = from;
      if (bytes) source += (static_cast<long long>(first + row) * p.n + n0) * bits / 8 + in_row;
      copy16<C::FAMILY>(to + at * 16, source, bytes);
    }
  }
};

}  // namespace qcore_marlin

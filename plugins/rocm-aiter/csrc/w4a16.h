// out = x W^T + bias, W [N, K] of 4-bit codes: w = (code - zero) * scale, rounded to x's type where matrix
// instructions multiply (many rows), in float32 otherwise (few).
#pragma once

#include "tile.h"

struct W4A16 {
  const uint16_t* x;      // [M, K], rows x_stride apart
  const uint32_t* codes;  // [N, K / 8], the first code in the lowest bits
  const float* scale;     // [N, groups]
  const uint8_t* zero;    // [N, groups], or null
  const void* bias;       // [N], or null
  void* out;              // [M, N]
  int64_t x_stride;       // x and its rows begin at multiples of 16 bytes
  int32_t M, N, K;        // K a multiple of 8
  int32_t group, groups;  // inputs that share a scale, a multiple of 8
  int32_t all_zero;       // the zero where there are no zero points
  int32_t bias_type, out_type;
};

struct GroupScale {
  float scale, zero;

  // Of a word of output n.
  QCORE_DEVICE GroupScale(const W4A16& p, int n, int word) {
    const size_t at = static_cast<size_t>(n) * p.groups + word * 8 / p.group;
    scale = p.scale[at];
    zero = static_cast<float>(p.zero ? p.zero[at] : p.all_zero);
  }

  QCORE_DEVICE float weight(uint32_t codes, int i) const {
    return (static_cast<float>(codes >> (4 * i) & 15) - zero) * scale;
  }
};

template <typename Float, int ROWS>
QCORE_DEVICE void w4a16(const W4A16& p) {
  QCORE_SHARED static SharedTile<ROWS> tile;
  constexpr int kWords = kStep / 16;  // of a row of the tile
  constexpr int kEach = kColumns * kWords / kThreads;
  const int first_row = block_y() * ROWS, first_column = block_x() * kColumns;
  const int words = p.K / 8;
  const uint8_t* x = reinterpret_cast<const uint8_t*>(p.x + first_row * p.x_stride);
  TileProduct<Float, ROWS> product;
  Loader<ROWS> left;
  for (int k = 0; k < words; k += kWords) {
    left.load(x, p.x_stride * 2, p.M - first_row, k * 16, p.K * 2);
    left.store(tile.left);
    QCORE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int piece = thread_index() + i * kThreads;
      const int row = piece / kWords, word = k + piece % kWords, n = first_column + row;
      Bytes<16> weights = {};
      if (n < p.N && word < words) {
        const uint32_t codes = p.codes[static_cast<size_t>(n) * words + word];
        const GroupScale group(p, n, word);
        QCORE_UNROLL
        for (int j = 0; j < 4; ++j) {
          const uint32_t low = Float::round(group.weight(codes, 2 * j));
          weights.words[j] = low | Float::round(group.weight(codes, 2 * j + 1)) << 16;
        }
      }
      *reinterpret_cast<Bytes<16>*>(tile.right + row * kPitch + piece % kWords * 16) = weights;
    }
    sync_block();
    product.add(tile);
    sync_block();
  }
  product.each([&](int tile_row, int tile_column, float value) {
    const int m = first_row + tile_row, n = first_column + tile_column;
    if (m >= p.M || n >= p.N) return;
    if (p.bias) value += load_float(p.bias, n, p.bias_type);
    store_float(p.out, static_cast<size_t>(m) * p.N + n, p.out_type, value);
  });
}

constexpr int kFewRows = 4;

// A wave for each output; at most kFewRows rows. Its lanes take a word of codes each.
template <typename Float>
QCORE_DEVICE void w4a16_few(const W4A16& p) {
  const int n = block_x() * kWaves + wave_index();
  if (n >= p.N) return;
  const int words = p.K / 8;
  float sums[kFewRows] = {};
  for (int word = lane_index(); word < words; word += kWave) {
    const uint32_t codes = p.codes[static_cast<size_t>(n) * words + word];
    const GroupScale group(p, n, word);
    QCORE_UNROLL
    for (int m = 0; m < kFewRows; ++m) {
      if (m >= p.M) break;
      const Bytes<16> x = *reinterpret_cast<const Bytes<16>*>(p.x + m * p.x_stride + word * 8);
      QCORE_UNROLL
      for (int j = 0; j < 4; ++j) {
        sums[m] += Float::read(x.words[j] & 0xffff) * group.weight(codes, 2 * j);
        sums[m] += Float::read(x.words[j] >> 16) * group.weight(codes, 2 * j + 1);
      }
    }
  }
  QCORE_UNROLL
  for (int m = 0; m < kFewRows; ++m) {
    if (m >= p.M) break;
    for (int step = kWave / 2; step > 0; step /= 2) {
      sums[m] += bits_of<float>(of_lane(bits_of<uint32_t>(sums[m]), lane_index() ^ step));
    }
    if (lane_index() != 0) continue;
    float value = sums[m];
    if (p.bias) value += load_float(p.bias, n, p.bias_type);
    store_float(p.out, static_cast<size_t>(m) * p.N + n, p.out_type, value);
  }
}

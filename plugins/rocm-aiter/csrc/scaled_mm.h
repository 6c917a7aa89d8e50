// Products of 8-bit operands. Sums of integers are exact.
#pragma once

#include "tile.h"

// out = (A - zero) B^T * scales + bias.
struct ScaledMM {
  const uint8_t* a;         // [M, K]
  const uint8_t* b;         // [N, K]
  const float* a_scale;     // [M], or [1] if a_scale_step is 0
  const float* b_scale;     // [N], or [1]
  const int32_t* a_zero;    // [M], or [1]; null for none
  const int32_t* b_sum;     // [N], of B's rows; read only with a_zero
  const void* bias;         // [N], or null
  void* out;                // [M, N]
  int32_t M, N, K;          // K a multiple of 16
  int32_t a_scale_step, b_scale_step, a_zero_step, bias_type, out_type;
};

template <typename Element, int ROWS>
QCORE_DEVICE void scaled_mm(const ScaledMM& p) {
  QCORE_SHARED static SharedTile<ROWS> tile;
  const int first_row = block_y() * ROWS, first_column = block_x() * kColumns;
  const uint8_t* a = p.a + static_cast<size_t>(first_row) * p.K;
  const uint8_t* b = p.b + static_cast<size_t>(first_column) * p.K;
  TileProduct<Element, ROWS> product;
  Loader<ROWS> left;
  Loader<kColumns> right;
  left.load(a, p.K, p.M - first_row, 0, p.K);
  right.load(b, p.K, p.N - first_column, 0, p.K);
  for (int k = 0; k < p.K; k += kStep) {
    left.store(tile.left);
    right.store(tile.right);
    sync_block();
    left.load(a, p.K, p.M - first_row, k + kStep, p.K);
    right.load(b, p.K, p.N - first_column, k + kStep, p.K);
    product.add(tile);
    sync_block();
  }
  product.each([&](int tile_row, int tile_column, typename Element::Sum sum) {
    const int m = first_row + tile_row, n = first_column + tile_column;
    if (m >= p.M || n >= p.N) return;
    if (p.a_zero) sum -= static_cast<typename Element::Sum>(p.a_zero[m * p.a_zero_step] * p.b_sum[n]);
    float value = static_cast<float>(sum) * p.a_scale[m * p.a_scale_step];
    value *= p.b_scale[n * p.b_scale_step];
    if (p.bias) value += load_float(p.bias, n, p.bias_type);
    store_float(p.out, static_cast<size_t>(m) * p.N + n, p.out_type, value);
  });
}

// out = A B^T + bias, with a scale for each row of A and kStep inputs, and for block_rows of B's rows and
// kStep inputs: those of a step of the tile.
struct BlockScaledMM {
  const uint8_t* a;      // [M, K]
  const uint8_t* b;      // [N, K]
  const float* a_scale;  // [M, K / kStep]
  const float* b_scale;  // [ceil(N / block_rows), K / kStep]
  const void* bias;      // [N], or null
  void* out;             // [M, N]
  int32_t M, N, K;       // K a multiple of kStep
  int32_t block_rows, bias_type, out_type;
};

template <typename Element, int ROWS>
QCORE_DEVICE void block_scaled_mm(const BlockScaledMM& p) {
  QCORE_SHARED static SharedTile<ROWS> tile;
  const int first_row = block_y() * ROWS, first_column = block_x() * kColumns;
  const int groups = p.K / kStep;
  const uint8_t* a = p.a + static_cast<size_t>(first_row) * p.K;
  const uint8_t* b = p.b + static_cast<size_t>(first_column) * p.K;
  TileProduct<Element, ROWS> total;
  Loader<ROWS> left;
  Loader<kColumns> right;
  for (int group = 0; group < groups; ++group) {
    left.load(a, p.K, p.M - first_row, group * kStep, p.K);
    right.load(b, p.K, p.N - first_column, group * kStep, p.K);
    left.store(tile.left);
    right.store(tile.right);
    sync_block();
    TileProduct<Element, ROWS> product;
    product.add(tile);
    total.add_scaled(product, [&](int tile_row, int tile_column) {
      const int m = first_row + tile_row, n = first_column + tile_column;
      if (m >= p.M || n >= p.N) return 0.0f;
      const float a_scale = p.a_scale[static_cast<size_t>(m) * groups + group];
      return a_scale * p.b_scale[static_cast<size_t>(n / p.block_rows) * groups + group];
    });
    sync_block();
  }
  total.each([&](int tile_row, int tile_column, float value) {
    const int m = first_row + tile_row, n = first_column + tile_column;
    if (m >= p.M || n >= p.N) return;
    if (p.bias) value += load_float(p.bias, n, p.bias_type);
    store_float(p.out, static_cast<size_t>(m) * p.N + n, p.out_type, value);
  });
}
